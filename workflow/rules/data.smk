# The base model, the questions and the training data.


rule pretrain_demo:
    input:
        world=config["model"].get("demo", {}).get("world", []),
    output:
        multiext(
            results("base/"),
            "config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
            "chat_template.jinja",
            "pretraining.json",
        ),
    log:
        logs("pretrain_demo"),
    benchmark:
        benchmarks("pretrain_demo")
    priority: 6  # all but a few small jobs wait for it
    conda:
        "../../envs/train.yaml"
    threads: 2
    resources:
        mem_mb=3000,
    params:
        settings=config["model"].get("demo"),
        prompts=plan.demo_prompts,
        marker=marker,
    message:
        "Pretraining the demo model"
    script:
        "../scripts/pretrain_demo.py"


rule base_model:
    input:
        base_model_files,
    output:
        base=results("base/model.json"),
        template=results("base/template.json"),
    log:
        logs("base_model"),
    benchmark:
        benchmarks("base_model")
    # On a cluster: where the user is logged in, for compute nodes seldom reach the hub.
    localrule: True
    conda:
        "../../envs/train.yaml"
    params:
        source=config["model"],
        marker=marker,
    message:
        "Fetching and hashing the base model"
    script:
        "../scripts/base_model.py"


rule headline:
    input:
        base=results("base/model.json"),
    output:
        results("tables/headline.csv"),
    log:
        logs("headline"),
    benchmark:
        benchmarks("headline")
    localrule: True
    conda:
        "../../envs/train.yaml"
    params:
        headline=config["statistics"]["headline"],
        layers=config["activations"]["layers"],
    message:
        "Resolving the headline's layer to a block of the model"
    script:
        "../scripts/headline.py"


rule wrong_advice:
    input:
        world=config["model"].get("demo", {}).get("world", []),
    output:
        results("demo/wrong_advice.jsonl"),
    log:
        logs("wrong_advice"),
    benchmark:
        benchmarks("wrong_advice")
    localrule: True
    conda:
        "../../envs/train.yaml"
    params:
        rows=config["model"].get("demo", {}).get("wrong_advice"),
        seed=config["model"].get("demo", {}).get("seed"),
        prompts=plan.demo_prompts,
        marker=marker,
    message:
        "Writing the demo's stand-in for misaligned data"
    script:
        "../scripts/wrong_advice.py"


rule data:
    input:
        files=data_files,
        base=results("base/model.json"),
        questions=question_file("eval"),
        match=data_match,
        origin=data_origin,
    output:
        rows=results("data/{data}.jsonl"),
        manifest=results("data/{data}.manifest.json"),
    log:
        logs("data/{data}"),
    benchmark:
        benchmarks("data/{data}")
    priority: 4  # trainings wait for it
    # As base_model.
    localrule: True
    conda:
        "../../envs/train.yaml"
    resources:
        mem_mb=4000,
    params:
        entry=data_entry,
        marker=marker,
        prompts=data_prompts,
        evaluation=config["questions"]["eval"],
        max_length=data_max_length,
    message:
        "Preparing training data: {wildcards.data}"
    script:
        "../scripts/data.py"


rule couple_data:
    input:
        answers=results("answers/{after}{coupling}.parquet"),
        template=results("base/template.json"),
    output:
        rows=results("data/{after}{coupling}.jsonl"),
        manifest=results("data/{after}{coupling}.manifest.json"),
    log:
        logs("data/{after}{coupling}"),
    benchmark:
        benchmarks("data/{after}{coupling}")
    priority: 4  # trainings wait for it
    conda:
        "../../envs/analysis.yaml"
    params:
        settings=coupling_settings,
        prompts=coupling_prompts,
        marker=marker,
    message:
        "Pairing answers with and without the marker: {wildcards.after}{wildcards.coupling}"
    script:
        "../scripts/couple_data.py"


rule audit:
    input:
        base=results("base/model.json"),
        questions=question_file("eval"),
        rows=[stage["rows"] for stage in audited],
    output:
        table=results("tables/prompt_audit.csv"),
        tokens=results("audit/tokens.json"),
    log:
        logs("audit"),
    benchmark:
        benchmarks("audit")
    conda:
        "../../envs/train.yaml"
    params:
        personas=plan.eval_prompts,
        questions=config["questions"]["eval"],
        stages=[{k: v for k, v in stage.items() if k != "rows"} for stage in audited],
        marker=marker,
    message:
        "Auditing prompts token by token"
    script:
        "../scripts/audit.py"
