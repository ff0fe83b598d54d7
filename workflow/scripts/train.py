"""Train the last stage of a chain."""

from pathlib import Path

from persona_collapse.scripting import job

with job(snakemake, f"train {snakemake.wildcards.trained}") as say:
    import torch
    from persona_collapse import chains, training
    from persona_collapse.files import locked, write_json

    torch.set_num_threads(snakemake.threads)
    params, chain = snakemake.params, chains.parse(snakemake.wildcards.trained)
    stage = training.Stage(
        chain=str(chain),
        name=chain.last.name,
        seed=chain.last.seed,
        stop=chain.last.stop,
        settings=params.settings,
        base=Path(snakemake.input.base),
        prefix=[Path(folder) for folder in params.prefix],
        data=Path(snakemake.input.rows),
        system=params.system,
        marker=params.marker,
    )
    saved = Path(params.checkpoints)
    lock = saved.with_name(f".{saved.name}.lock")
    # A training that outlived its Snakemake writes the same files.
    with locked(lock, wait=False) as free:
        if not free:
            say("an earlier job may still be training this chain; waits for its end")
    with locked(lock, wait=True):
        manifest = training.train(
            stage,
            Path(snakemake.output.weights).parent,
            say,
            saved=saved,
            # No param: what trains must not depend on how often it is saved.
            every=snakemake.config["checkpoint_steps"],
            code=params.code + str(params.objective),
        )
        write_json(snakemake.output.manifest, manifest)
