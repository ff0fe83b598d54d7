"""Train the last stage of a chain, and other ready chains' while the libraries are loaded."""

from pathlib import Path

from persona_collapse.runtime.job import job

with job(snakemake, f"train {snakemake.wildcards.trained}") as say:
    from persona_collapse.runtime import shared_engine
    from persona_collapse.study.plan import Plan

    base, params = Path(snakemake.input.base), snakemake.params
    config, store = snakemake.config, shared_engine.Store(params.store)
    trainings = {task["name"]: task for task in Plan(config).trainings}
    kept = {}

    def stages(task):
        """Folders of the adapters that a task continues: published, or in the store until their jobs end."""
        return [
            folder if (folder / "manifest.json").is_file() else in_store(folder)
            for folder in map(Path, task["stages"])
        ]

    def in_store(published):
        """Where the store holds an adapter that its own job has not published; else where it will be."""
        task = trainings.get(published.name)
        if published.name not in kept and task is not None:
            ready = key(task)
            if ready is not None and store.holds(task, ready):
                kept[published.name] = store.path(task)
        return kept.get(published.name, published)

    def key(task):
        """Key of a task; None while the adapters or the data that it trains on are missing."""
        rows = Path(task["rows"])
        data = [rows, rows.with_suffix(".manifest.json")]
        return shared_engine.ready_key(task, params.code_hash, base, data, stages(task))

    def open_engine():
        """Import what trains; most jobs find their work done."""
        import torch
        from persona_collapse.training import train

        torch.set_num_threads(snakemake.threads)
        return train

    def work(training, task, folder):
        """Train one chain's last stage into a folder."""
        from persona_collapse.files import write_json

        manifest = training.train(
            training.stage_of(task, base, stages(task)),
            folder,
            say,
            saved=Path(task["checkpoints"]),
            # Not in the task: what trains must not depend on how often it is saved.
            every=config["checkpoint_steps"],
            code=params.code_hash + task["objective"],
        )
        write_json(folder / "manifest.json", manifest)

    shared_engine.run(
        store,
        params.task,
        list(trainings.values()),
        key=key,
        open_engine=open_engine,
        work=work,
        limit=config["generation"]["chains_per_engine"],
        output=Path(snakemake.output.weights).parent,
        say=say,
    )
