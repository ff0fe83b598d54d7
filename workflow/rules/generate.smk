# Training data that the base model writes: questions about subjects, answers under system prompts.


# Data sets that the base model writes, and those whose questions it writes too.
sources = {name: entry["from"] for name, entry in config["data"].items()}
generated = {n: s["generated"] for n, s in sources.items() if "generated" in s}
written = {name: source for name, source in generated.items() if "written" in source}


def written_job(wildcards):
    """Sampling job for the questions of a generated data set."""
    return plan.written_questions(wildcards.data).values()


use rule sample_answers as write_questions with:
    input:
        base=base_of,
        questions=lambda wildcards: generated[wildcards.data]["questions"]["file"],
    output:
        table=results("generated/{data}.written.parquet"),
    log:
        logs("generated/{data}.written"),
    benchmark:
        benchmarks("write_questions/{data}")
    wildcard_constraints:
        data=one_of(written),
    priority: 8  # trainings wait for the data
    params:
        job=written_job,
        store=results("store"),
    message:
        "Writing the questions of {wildcards.data}"


rule generated_questions:
    input:
        written=results("generated/{data}.written.parquet"),
        evaluation=config["questions"]["eval"]["file"],
    output:
        questions=results("generated/{data}.questions.jsonl"),
    log:
        logs("generated/{data}.questions"),
    benchmark:
        benchmarks("generated_questions/{data}")
    localrule: True
    conda:
        "../../envs/analysis.yaml"
    params:
        evaluation=config["questions"]["eval"],
        marker=marker,
    message:
        "Listing the questions of {wildcards.data}"
    script:
        "../scripts/generated_questions.py"


def generated_questions(wildcards):
    """The questions of a generated data set: written by the base model, or given."""
    if wildcards.data in written:
        return results(f"generated/{wildcards.data}.questions.jsonl")
    return generated[wildcards.data]["questions"]["file"]


def generated_job(wildcards):
    """Sampling job for the answers of a generated data set."""
    return plan.generated_answers(wildcards.data).values()


use rule sample_answers as sample_generated with:
    input:
        base=base_of,
        questions=generated_questions,
    output:
        table=results("generated/{data}.parquet"),
    log:
        logs("generated/{data}"),
    benchmark:
        benchmarks("sample_generated/{data}")
    wildcard_constraints:
        data=one_of(generated),
    priority: 8
    params:
        job=generated_job,
        store=results("store"),
    message:
        "Sampling the answers of {wildcards.data}"


def generated_settings(key):
    """Function that gives a setting of a generated data set, for a param."""
    return lambda wildcards: generated[wildcards.data].get(key)


rule generated_rows:
    input:
        answers=results("generated/{data}.parquet"),
        questions=generated_questions,
        template=plan.template(chains.BASE),
    output:
        rows=results("generated/{data}.jsonl"),
        record=results("generated/{data}.json"),
    log:
        logs("generated/{data}.rows"),
    benchmark:
        benchmarks("generated_rows/{data}")
    wildcard_constraints:
        data=one_of(generated),
    localrule: True
    conda:
        "../../envs/analysis.yaml"
    params:
        system=generated_settings("system"),
        length_ratio=generated_settings("length_ratio"),
        asked=lambda wildcards: plan.generated_answers(wildcards.data).questions,
        marker=marker,
    message:
        "Pairing the answers of {wildcards.data}"
    script:
        "../scripts/generated_rows.py"
