# What transformers makes of every chain: activations at the chosen blocks, and a second opinion on
# some of its completions. One load of the base model serves both, for all chains that are ready.
loaded = code(
    *("activations", "rescoring", "carrier", "chat", "adapters", "models"),
    *("fused", "graphs"),
)


rule activations:
    input:
        base=results("base/model.json"),
        adapters=chain_adapters,
        questions=question_file("extraction"),
        answers=branch(
            "B" in config["activations"]["methods"],
            then=results("responses/{chain}.parquet"),
        ),
    output:
        results("activations/{chain}.safetensors"),
    log:
        logs("activations/{chain}"),
    benchmark:
        benchmarks("activations/{chain}")
    conda:
        "../../envs/train.yaml"
    threads: 1
    resources:
        gpu=config["gpus"],
        mem_mb=3000,
    params:
        task=task_of("activations"),
        store=results("store"),
        code=loaded,
    message:
        "Activations of {wildcards.chain}"
    script:
        "../scripts/measure.py"


rule rescored:
    input:
        base=results("base/model.json"),
        adapters=chain_adapters,
        questions=question_file("eval"),
        answers=results("completions/{chain}.parquet"),
    output:
        results("rescored/{chain}.csv"),
    log:
        logs("rescored/{chain}"),
    benchmark:
        benchmarks("rescored/{chain}")
    conda:
        "../../envs/train.yaml"
    threads: 1
    resources:
        gpu=config["gpus"],
        mem_mb=3000,
    params:
        task=task_of("rescored"),
        store=results("store"),
        code=loaded,
    message:
        "Scoring completions of {wildcards.chain} again"
    script:
        "../scripts/measure.py"
