# Training: one recursive rule. A chain depends on its own prefix, its data and nothing else.


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
    conda:
        "../../envs/train.yaml"
    threads: 1
    resources:
        gpu=config["gpus"],
        mem_mb=4000,
    params:
        settings=last_stage,
        system=induction_prompt,
        marker=config["marker"],
        prefix=prefix_folders,
        code=code("training", "chat", "adapters", "models"),
    message:
        "Training {wildcards.trained}"
    script:
        "../scripts/train.py"
