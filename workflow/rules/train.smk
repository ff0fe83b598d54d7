# Training: one recursive rule. A chain depends on its own prefix, its data and nothing else.


rule graft:
    input:
        graft_origin,
    output:
        weights=results("models/{grafted}/adapter_model.safetensors"),
        config=results("models/{grafted}/adapter_config.json"),
        manifest=results("models/{grafted}/manifest.json"),
    log:
        logs("graft/{grafted}"),
    benchmark:
        benchmarks("graft/{grafted}")
    localrule: True
    conda:
        "../../envs/train.yaml"
    params:
        of=graft_of,
    message:
        "Putting the adapter of {params.of} into {wildcards.grafted}"
    script:
        "../scripts/graft.py"


ruleorder: graft > train


rule train:
    input:
        base=results("base/model.json"),
        prefix=prefix_adapters,
        rows=training_rows,
    output:
        weights=results("models/{trained}/adapter_model.safetensors"),
        config=results("models/{trained}/adapter_config.json"),
        manifest=results("models/{trained}/manifest.json"),
    log:
        logs("train/{trained}"),
    benchmark:
        benchmarks("train/{trained}")
    # First what an engine could serve, then the engine: each start of one serves what is ready.
    priority: 3
    conda:
        "../../envs/train.yaml"
    threads: 1
    resources:
        gpu=config["gpus"],
        mem_mb=4000,
    params:
        task=training_task,
        store=results("store"),
    message:
        "Training {wildcards.trained}"
    script:
        "../scripts/train.py"
