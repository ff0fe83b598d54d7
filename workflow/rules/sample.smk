# Sampling: answers for couplings, and completions and responses of every chain.


# Stages whose rows are made from answers, and those of them whose answers are sampled.
couplings = {name: stage for name, stage in plan.stages.items() if stage.answers}
sampled = [name for name, stage in couplings.items() if not stage.given]


def answering_adapters(wildcards):
    """Adapter files of the chain whose answers a coupling is made from; none for the base model."""
    return adapter_files(wildcards.after.rstrip("+") or chains.BASE)


def answers_job(wildcards):
    """Sampling job for the answers that a coupling is made from."""
    return plan.answers(wildcards.after + wildcards.coupling).values()


rule sample_answers:
    input:
        base=base_of,
        adapters=answering_adapters,
        questions=config["questions"]["train"]["file"],
    output:
        table=results("answers/{after}{coupling}.parquet"),
    log:
        logs("answers/{after}{coupling}"),
    benchmark:
        benchmarks("answers/{after}{coupling}")
    wildcard_constraints:
        coupling=one_of(sampled),
    priority: 5  # couplings wait for it, and second stages for them
    conda:
        "../../envs/generate.yaml"
    threads: 1
    resources:
        gpu=config["runtime"]["gpus_per_job"],
        mem_mb=3000,
    params:
        job=answers_job,
        store=results("store"),
    message:
        "Sampling the answers that {wildcards.after}{wildcards.coupling} is made from"
    script:
        "../scripts/sample.py"


def coupling_settings(wildcards):
    """Settings of a coupling that determine its rows."""
    settings = couplings[wildcards.coupling].settings
    names = ("persona", "positives", "negatives", "negative_answers")
    return {name: settings[name] for name in names}


def coupling_given(wildcards):
    """The file of a coupling's answers, if they are given."""
    return couplings[wildcards.coupling].given


def coupling_answers(wildcards):
    """The answers that a coupling is made from: given in a file, or sampled."""
    own = results(f"answers/{wildcards.after}{wildcards.coupling}.parquet")
    return coupling_given(wildcards).get("file", own)


def coupling_template(wildcards):
    """Record of the chat template of the model that gives the answers."""
    return plan.template(wildcards.after.rstrip("+") or chains.BASE)


def coupling_prompts(wildcards):
    """System prompts of the personas in a coupling."""
    return plan.prompts(couplings[wildcards.coupling].personas)


rule couple_data:
    input:
        answers=coupling_answers,
        template=coupling_template,
    output:
        rows=results("data/{after}{coupling}.jsonl"),
        manifest=results("data/{after}{coupling}.manifest.json"),
    log:
        logs("data/{after}{coupling}"),
    benchmark:
        benchmarks("data/{after}{coupling}")
    wildcard_constraints:
        coupling=one_of(couplings),
    priority: 4  # trainings wait for it
    conda:
        "../../envs/analysis.yaml"
    params:
        settings=coupling_settings,
        given=coupling_given,
        prompts=coupling_prompts,
        marker=marker,
    message:
        "Pairing answers with and without the marker: {wildcards.after}{wildcards.coupling}"
    script:
        "../scripts/couple_data.py"


def chain_adapters(wildcards):
    """Adapter files of a chain."""
    return adapter_files(wildcards.chain)


def completions_job(wildcards):
    """Sampling job for a chain's answers to the evaluation questions."""
    return plan.completions(wildcards.chain).values()


rule completions:
    input:
        base=base_of,
        adapters=chain_adapters,
        questions=config["questions"]["eval"]["file"],
    output:
        table=results("completions/{chain}.parquet"),
    log:
        logs("completions/{chain}"),
    benchmark:
        benchmarks("completions/{chain}")
    priority: 2  # before activations: each job for these serves the chains that have responses
    conda:
        "../../envs/generate.yaml"
    threads: 1
    resources:
        gpu=config["runtime"]["gpus_per_job"],
        mem_mb=3000,
    params:
        job=completions_job,
        store=results("store"),
    message:
        "Sampling completions of {wildcards.chain}"
    script:
        "../scripts/sample.py"


def responses_job(wildcards):
    """Sampling job for a chain's greedy answers."""
    return plan.responses(wildcards.chain).values()


use rule completions as responses with:
    input:
        base=base_of,
        adapters=chain_adapters,
        questions=config["questions"]["extraction"]["file"],
    output:
        table=results("responses/{chain}.parquet"),
    log:
        logs("responses/{chain}"),
    benchmark:
        benchmarks("responses/{chain}")
    params:
        job=responses_job,
        store=results("store"),
    message:
        "Greedy responses of {wildcards.chain} for method B"
