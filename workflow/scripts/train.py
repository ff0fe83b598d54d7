"""Train the last stage of a chain, and other ready chains' while the libraries are loaded."""

import os
import shlex
from pathlib import Path

from persona_collapse.runtime.job import job as running

with running(snakemake, f"train {snakemake.wildcards.trained}") as log:
    from persona_collapse.jobs import TrainingJob
    from persona_collapse.runtime import shared_engine
    from persona_collapse.study.plan import Plan

    base, params = Path(snakemake.input.base), snakemake.params
    plan = Plan(snakemake.config)
    store = shared_engine.Store(params.store, plan.config["runtime"])
    own = TrainingJob(**params.job)
    trainings = {job.name: job for job in plan.trainings if job.model == own.model}
    # Not in the jobs: what is trained does not depend on it.
    runtime, shares = plan.runtime, plan.gpu_shares(own.name)
    kept = {}

    def stages(job):
        """Folders of the adapters that a job continues: published, or in the store until their own jobs
        end."""
        return [
            folder if (folder / "manifest.json").is_file() else in_store(folder)
            for folder in map(Path, job.adapters)
        ]

    def in_store(published):
        """The adapter's folder in the store if its own job has not published it yet; else its final
        folder."""
        job = trainings.get(published.name)
        if published.name not in kept and job is not None:
            ready = key(job)
            if ready is not None and store.holds(job, ready):
                kept[published.name] = store.path(job)
        return kept.get(published.name, published)

    def key(job):
        """Key of a job; None while adapters or training data are missing."""
        return shared_engine.ready_key(job, params.code_hash, base, stages(job))

    def open_engine():
        """Import the training code; not at the top, because most jobs find their work done."""
        import torch
        from persona_collapse.training import train

        torch.set_num_threads(snakemake.threads)
        return train

    def work(training, job, folder):
        """Train one chain's last stage into a folder."""
        from persona_collapse.files import read_json, write_json, write_text
        from persona_collapse.training import card
        from persona_collapse.training.run import run_of
        from persona_collapse.training.runtime import Runtime

        manifest = training.train(
            run_of(job, base, stages(job)),
            folder,
            log,
            runtime=Runtime(**runtime["training"]),
            saved=Path(job.checkpoints),
            every=runtime["checkpoint_steps"],
            code=params.code_hash + job.loss_code,
        )
        write_json(folder / "manifest.json", manifest)
        read = [path.removesuffix(".jsonl") for path in job.files if path.endswith(".jsonl")]
        data = [read_json(f"{path}.manifest.json") for path in read]
        target = f"results/{plan.config['run']}/models/{job.name}/README.md"
        command = f"{os.environ['PERSONA_COLLAPSE_COMMAND']} -- {shlex.quote(target)}"
        write_text(folder / "README.md", card.text(manifest, data, command))

    shared_engine.run(
        store,
        own,
        # Those that fit into this job's share of the GPU.
        [job for job in trainings.values() if plan.gpu_shares(job.name) <= shares],
        key=key,
        open_engine=open_engine,
        work=work,
        limit=runtime["chains_per_engine"],
        output=Path(snakemake.output.weights).parent,
        log=log,
    )
