# What transformers makes of the chains: activations at the chosen blocks, and a second opinion on some
# of their completions.


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
    priority: 1  # before rescored, which then finds its work done
    conda:
        "../../envs/train.yaml"
    threads: 1
    resources:
        gpu=config["gpus"],
        mem_mb=3000,
    params:
        task=task_of("activations"),
        store=results("store"),
    message:
        "Activations of {wildcards.chain}"
    script:
        "../scripts/activations.py"


rule rescored:
    # One job for all chains: a chain takes less time than PyTorch takes to start. Most are in the store:
    # jobs that dump activations have the model, and score what completions there are by then.
    input:
        base=results("base/model.json"),
        adapters=[
            path
            for chain in plan.chains_for("markers")
            for path in adapter_files(chain)
        ],
        questions=question_file("eval"),
        completions=measured("completions/{chain}.parquet", "markers"),
    output:
        results("rescored.csv"),
    log:
        logs("rescored"),
    benchmark:
        benchmarks("rescored")
    conda:
        "../../envs/train.yaml"
    threads: 1
    resources:
        gpu=config["gpus"],
        mem_mb=3000,
    params:
        tasks=plan.tasks(["rescored"]),
        store=results("store"),
    message:
        "Scoring some completions of every chain again"
    script:
        "../scripts/rescored.py"
