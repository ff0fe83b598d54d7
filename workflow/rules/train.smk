# Training: one recursive rule. A chain depends on its own prefix, its data and nothing else.


grafted = [
    name
    for name in plan.trained_chains
    if not plan.stages[chains.parse(name).last.name].trains
]


def graft_of(wildcards):
    """The chain whose last adapter a graft puts in."""
    return plan.stages[chains.parse(wildcards.grafted).last.name].origin


def graft_kind(wildcards):
    """Kind of the stage that a graft is, for its record."""
    return plan.stages[chains.parse(wildcards.grafted).last.name].kind


def graft_code(wildcards):
    """Hash of the code of that kind."""
    return code_hash.of(f"stages.{graft_kind(wildcards)}")


def graft_origin(wildcards):
    """Files of the adapter that a graft puts in."""
    folder = f"models/{graft_of(wildcards)}"
    names = ("adapter_model.safetensors", "adapter_config.json", "manifest.json")
    return [results(f"{folder}/{name}") for name in names]


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
    wildcard_constraints:
        grafted=one_of(grafted),
    localrule: True
    conda:
        "../../envs/train.yaml"
    params:
        of=graft_of,
        kind=graft_kind,
        code=graft_code,
    message:
        "Putting the adapter of {params.of} into {wildcards.grafted}"
    script:
        "../scripts/graft.py"


ruleorder: graft > train


def prefix_adapters(wildcards):
    """Adapter files of the stages before a chain's last."""
    return adapters_in(plan.earlier_folders(wildcards.trained))


def training_rows(wildcards):
    """Data of the stage that a chain trains last: a data set's, or a coupling's own."""
    return results(f"data/{plan.data_of(chains.parse(wildcards.trained))}.jsonl")


def defence_files(wildcards):
    """Files that the defences of the stage read that a chain trains last."""
    chain = chains.parse(wildcards.trained)
    return list(plan.defence_inputs(chain.last.name, chain.model).values())


def training_job(wildcards):
    """What the job does that trains a chain's last stage; see Plan.training."""
    return plan.training(wildcards.trained).values()


rule train:
    input:
        base=base_of,
        prefix=prefix_adapters,
        rows=training_rows,
        defence=defence_files,
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
        gpu=config["runtime"]["gpus_per_job"],
        mem_mb=4000,
    params:
        job=training_job,
        store=results("store"),
    message:
        "Training {wildcards.trained}"
    script:
        "../scripts/train.py"
