# Measures of chains. A measure is a file of persona_collapse/measures.


def measure_code(wildcards):
    """Hash of a measure's own code."""
    return code_hash.of(f"measures.{wildcards.measure}")


def answers_measured(wildcards):
    """Files that a measure of answers reads for a chain."""
    return plan.measurement(wildcards.measure, wildcards.chain).inputs


def answers_job(wildcards):
    """Job that takes a measure of a chain's answers."""
    return plan.measurement(wildcards.measure, wildcards.chain).values()


rule measure_answers:
    input:
        unpack(answers_measured),
    output:
        personas=results("{measure}/{chain}.csv"),
        answers=results("{measure}/{chain}.parquet"),
    log:
        logs("{measure}/{chain}"),
    benchmark:
        benchmarks("{measure}/{chain}")
    wildcard_constraints:
        measure=one_of(plan.measures_of(model=False)),
    conda:
        "../../envs/analysis.yaml"
    params:
        job=answers_job,
        code=measure_code,
    message:
        "{wildcards.measure} of {wildcards.chain}"
    script:
        "../scripts/measure_answers.py"


rule measure_table:
    input:
        lambda wildcards: results_of(
            f"{wildcards.measure}/{{chain}}.csv", wildcards.measure
        ),
    output:
        results("tables/{measure}.csv"),
    log:
        logs("tables/{measure}"),
    benchmark:
        benchmarks("tables/{measure}")
    wildcard_constraints:
        measure=one_of(m for m in plan.measures_of(model=False) if m != "markers"),
    conda:
        "../../envs/analysis.yaml"
    message:
        "{wildcards.measure} of every chain, in one table"
    script:
        "../scripts/measure_table.py"


def activations_inputs(wildcards):
    """Inputs of activations: the chain's adapters and its own answers (method B)."""
    job = plan.measurement("activations", wildcards.chain)
    return {"adapters": adapter_files(wildcards.chain), **job.inputs}


def activations_jobs(wildcards):
    """Job that computes a chain's activations."""
    return [plan.measurement("activations", wildcards.chain).values()]


rule activations:
    input:
        unpack(activations_inputs),
        base=base_of,
        questions=config["questions"]["extraction"]["file"],
    output:
        results("activations/{chain}.safetensors"),
    log:
        logs("activations/{chain}"),
    benchmark:
        benchmarks("activations/{chain}")
    priority: 1  # before measure_model, which then finds its work done
    conda:
        "../../envs/train.yaml"
    threads: 1
    resources:
        gpu=config["runtime"]["gpus_per_job"],
        mem_mb=3000,
    params:
        jobs=activations_jobs,
        store=results("store"),
        code=code_hash.of("measures.activations"),
    message:
        "Activations of {wildcards.chain}"
    script:
        "../scripts/measure_model.py"


rule export_vectors:
    input:
        base=base_of,
        activations=results("activations/{chain}.safetensors"),
    output:
        directory(results("export/{chain}")),
    log:
        logs("export/{chain}"),
    benchmark:
        benchmarks("export/{chain}")
    conda:
        "../../envs/train.yaml"
    params:
        assistant=plan.assistant,
    message:
        "Persona vectors of {wildcards.chain} for other tools"
    script:
        "../scripts/export.py"


def model_jobs(wildcards):
    """Jobs that take a measure of the model for all its chains."""
    chains = plan.chains_for(wildcards.measure)
    return [plan.measurement(wildcards.measure, chain) for chain in chains]


def model_inputs(wildcards):
    """Adapters of all chains of a measure, and the files that it reads."""
    jobs = model_jobs(wildcards)
    adapters = (path for job in jobs for path in adapter_files(job.chain))
    return {
        "adapters": list(dict.fromkeys(adapters)),
        "files": list(dict.fromkeys(path for job in jobs for path in job.files)),
    }


def model_values(wildcards):
    """The jobs as params."""
    return [job.values() for job in model_jobs(wildcards)]


rule measure_model:
    # One job for all chains, because a chain takes less time than importing PyTorch. Most results are already in the
    # store: jobs for activations have loaded the model and also take the other measures of chains that are ready.
    input:
        unpack(model_inputs),
        bases=bases_used,
        questions=config["questions"]["eval"]["file"],
    output:
        results("tables/{measure}.csv"),
    log:
        logs("{measure}"),
    benchmark:
        benchmarks("{measure}")
    wildcard_constraints:
        measure=one_of(
            name for name in plan.measures_of(model=True) if name != "activations"
        ),
    conda:
        "../../envs/train.yaml"
    threads: 1
    resources:
        gpu=config["runtime"]["gpus_per_job"],
        mem_mb=3000,
    params:
        jobs=model_values,
        store=results("store"),
        code=measure_code,
    message:
        "{wildcards.measure} of every chain"
    script:
        "../scripts/measure_model.py"
