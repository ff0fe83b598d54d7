"""Train the last stage of a chain, and other ready chains' while the libraries are loaded."""

from pathlib import Path

from persona_collapse.scripting import job

with job(snakemake, f"train {snakemake.wildcards.trained}") as say:
    from persona_collapse import share
    from persona_collapse.plan import Plan

    base, params = Path(snakemake.input.base), snakemake.params
    config = snakemake.config

    def key(task):
        """Key of a task; None while the adapters or the data that it trains on are missing."""
        rows = Path(task["rows"])
        return share.ready_key(task, params.code, base, [rows, rows.with_suffix(".manifest.json")])

    def open_engine():
        """Import what trains; most jobs find their work done."""
        import torch
        from persona_collapse import training

        torch.set_num_threads(snakemake.threads)
        return training

    def work(training, task, folder):
        """Train one chain's last stage into a folder."""
        from persona_collapse.files import write_json

        manifest = training.train(
            training.stage_of(task, base),
            folder,
            say,
            saved=Path(task["checkpoints"]),
            # Not in the task: what trains must not depend on how often it is saved.
            every=config["checkpoint_steps"],
            code=params.code + task["objective"],
        )
        write_json(folder / "manifest.json", manifest)

    share.run(
        share.Store(params.store),
        params.task,
        Plan(config).trainings,
        key=key,
        open_engine=open_engine,
        work=work,
        limit=config["generation"]["chains_per_engine"],
        output=Path(snakemake.output.weights).parent,
        say=say,
    )
