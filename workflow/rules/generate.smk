# Sampling: training answers of the base model, completions and responses of every chain; counting.


rule sample_answers:
    input:
        base=results("base/model.json"),
        adapters=answering_adapters,
        questions=question_file("train"),
    output:
        table=results("answers/{after}{coupling}.parquet"),
    log:
        logs("answers/{after}{coupling}"),
    benchmark:
        benchmarks("answers/{after}{coupling}")
    priority: 5  # couplings wait for it, and second stages for them
    conda:
        "../../envs/generate.yaml"
    threads: 1
    resources:
        gpu=config["gpus"],
        mem_mb=3000,
    params:
        task=coupling_answers_task,
        store=results("store"),
    message:
        "Sampling the answers that {wildcards.after}{wildcards.coupling} is made from"
    script:
        "../scripts/generate.py"


rule completions:
    input:
        base=results("base/model.json"),
        adapters=chain_adapters,
        questions=question_file("eval"),
    output:
        table=results("completions/{chain}.parquet"),
    log:
        logs("completions/{chain}"),
    benchmark:
        benchmarks("completions/{chain}")
    priority: 2  # before activations, each start of which serves the chains that have responses
    conda:
        "../../envs/generate.yaml"
    threads: 1
    resources:
        gpu=config["gpus"],
        mem_mb=3000,
    params:
        task=task_of("completions"),
        store=results("store"),
    message:
        "Sampling completions of {wildcards.chain}"
    script:
        "../scripts/generate.py"


rule responses:
    input:
        base=results("base/model.json"),
        adapters=chain_adapters,
        questions=question_file("extraction"),
    output:
        table=results("responses/{chain}.parquet"),
    log:
        logs("responses/{chain}"),
    benchmark:
        benchmarks("responses/{chain}")
    priority: 2  # before activations, each start of which serves the chains that have responses
    conda:
        "../../envs/generate.yaml"
    threads: 1
    resources:
        gpu=config["gpus"],
        mem_mb=3000,
    params:
        task=task_of("responses"),
        store=results("store"),
    message:
        "Greedy responses of {wildcards.chain} for method B"
    script:
        "../scripts/generate.py"


rule markers:
    input:
        results("completions/{chain}.parquet"),
    output:
        results("markers/{chain}.csv"),
    log:
        logs("markers/{chain}"),
    benchmark:
        benchmarks("markers/{chain}")
    conda:
        "../../envs/analysis.yaml"
    params:
        marker=marker,
    message:
        "Counting the marker in {wildcards.chain}"
    script:
        "../scripts/markers.py"
