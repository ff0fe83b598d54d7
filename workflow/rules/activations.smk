# Activations of every chain at the chosen blocks.


rule activations:
    input:
        base=results("base/model.json"),
        adapters=chain_adapters,
        questions=question_file("extraction"),
        responses=branch(
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
        code=code("activations", "chat", "adapters", "models", "fused", "graphs"),
    message:
        "Activations of {wildcards.chain}"
    script:
        "../scripts/activations.py"
