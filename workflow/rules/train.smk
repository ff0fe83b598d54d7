# Training: one recursive rule. A chain depends only on its own prefix and its data.


last_stages = {
    name: plan.stages[chains.parse(name).last.name] for name in plan.trained_chains
}
imported = [name for name, stage in last_stages.items() if stage.source]
made = [
    name for name, stage in last_stages.items() if not stage.trains and not stage.source
]


def made_from(wildcards):
    """Files that an untrained stage is made from."""
    return plan.made_from(wildcards.made)


def made_settings(wildcards):
    """Its settings."""
    return plan.made_settings(wildcards.made)


def made_code(wildcards):
    """Hash of the code of the stage's kind."""
    return code_hash.of(f"stages.{made_settings(wildcards)['kind']}")


rule make_stage:
    input:
        unpack(made_from),
    output:
        weights=results("models/{made}/adapter_model.safetensors"),
        config=results("models/{made}/adapter_config.json"),
        manifest=results("models/{made}/manifest.json"),
    log:
        logs("make/{made}"),
    benchmark:
        benchmarks("make/{made}")
    wildcard_constraints:
        made=one_of(made),
    # One engine serves the chains that are ready when it starts, so make these first.
    priority: 3
    localrule: True
    conda:
        "../../envs/train.yaml"
    params:
        settings=made_settings,
        code=made_code,
    message:
        "Making the last stage of {wildcards.made}"
    script:
        "../scripts/make_stage.py"


def import_source(wildcards):
    """Source of an imported adapter."""
    return last_stages[wildcards.imported].source


def import_files(wildcards):
    """Files of an imported adapter in a folder."""
    folder = import_source(wildcards).get("path")
    return adapters_in([folder] if folder else [])


rule import_adapter:
    input:
        import_files,
        base=lambda wildcards: plan.base(wildcards.imported),
    output:
        weights=results("models/{imported}/adapter_model.safetensors"),
        config=results("models/{imported}/adapter_config.json"),
        manifest=results("models/{imported}/manifest.json"),
    log:
        logs("import/{imported}"),
    benchmark:
        benchmarks("import/{imported}")
    wildcard_constraints:
        imported=one_of(imported),
    # On a cluster this runs on the login node, because compute nodes can seldom reach the hub.
    localrule: True
    conda:
        "../../envs/train.yaml"
    params:
        source=import_source,
        kind=lambda wildcards: last_stages[wildcards.imported].kind,
        dtype=config["dtype"],
    message:
        "Importing the adapter of {wildcards.imported}"
    script:
        "../scripts/import_adapter.py"


ruleorder: make_stage > train
ruleorder: import_adapter > train


def prefix_adapters(wildcards):
    """Adapter files of the stages before a chain's last."""
    return adapters_in(plan.earlier_folders(wildcards.trained))


def training_rows(wildcards):
    """Training rows of a chain's last stage: a data set's, or a coupling's own."""
    return results(f"data/{plan.data_of(chains.parse(wildcards.trained))}.jsonl")


def defence_files(wildcards):
    """Files that the defences of a chain's last stage read."""
    chain = chains.parse(wildcards.trained)
    return list(plan.defence_inputs(chain.last.name, chain.model).values())


def training_gpus(wildcards):
    """Places on a GPU that the training takes; of a cluster, GPUs."""
    shares = 1 if submitting else plan.gpu_shares(wildcards.trained)
    return config["runtime"]["gpus_per_job"] * shares


def training_job(wildcards):
    """Training job of a chain's last stage; see Plan.training."""
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
        card=results("models/{trained}/README.md"),
    log:
        logs("train/{trained}"),
    benchmark:
        benchmarks("train/{trained}")
    # Trainings come before sampling, because each engine serves the chains that are ready when it starts.
    priority: 3
    conda:
        "../../envs/train.yaml"
    threads: 1
    resources:
        gpu=training_gpus,
        mem_mb=4000,
    params:
        job=training_job,
        store=results("store"),
    message:
        "Training {wildcards.trained}"
    script:
        "../scripts/train.py"
