"""Measure chains by running their models.

For a measure with one file per chain, a job does its own chain, and then everything else that is ready,
including other measures, because the base model is loaded. For a measure with a table, a job does the
remaining chains and joins the tables of all chains.
"""

from pathlib import Path

from persona_collapse.runtime.job import job as running

with running(snakemake, " ".join(snakemake.wildcards) or snakemake.params.jobs[0]["kind"]) as log:
    from persona_collapse.jobs import MeasureJob
    from persona_collapse.measures import _taking
    from persona_collapse.runtime import code_hash, shared_engine
    from persona_collapse.study.plan import Plan

    params, config = snakemake.params, snakemake.config
    plan, store, loaded = Plan(config), shared_engine.Store(params.store, config["runtime"]), {}
    jobs = [MeasureJob(**values) for values in params.jobs]

    def key(job):
        """Key of a measurement; None while a file that it needs is missing."""
        code = code_hash.of(f"measures.{job.kind}")
        return shared_engine.ready_key(job, code, plan.base(job.chain))

    def runner(model):
        """A base model, loaded once for all its measurements in turn."""
        if model not in loaded:
            import torch
            from persona_collapse.models.runner import ModelRunner

            torch.set_num_threads(snakemake.threads)
            loaded.clear()
            loaded[model] = ModelRunner(Path(plan.base(model)), config["dtype"])
        return loaded[model]

    def work(runner, job, path):
        """Take one measurement."""
        batch_size = config["runtime"]["activations"]["batch_size"]
        _taking.write(job, path, runner=runner, log=log, batch_size=batch_size)

    if jobs[0].suffix != ".csv":
        shared_engine.run(
            store,
            jobs[0],
            [job for job in plan.measurements if job.model == jobs[0].model],
            key=key,
            open_engine=lambda: runner(jobs[0].model),
            work=work,
            limit=config["runtime"]["chains_per_engine"],
            output=snakemake.output[0],
            log=log,
        )
    else:
        import pandas as pd
        from persona_collapse.tables_io import read_csv, write_csv

        # Chains of a model with equally many stages in a row: their adapters mostly have the same
        # shape.
        order = list(plan.models)
        for job in sorted(jobs, key=lambda job: (order.index(job.model), len(job.adapters))):
            with store.claimed(job, wait=True):
                if not store.holds(job, key(job)):
                    store.put(
                        job, key(job), lambda path, job=job: work(runner(job.model), job, path)
                    )
        tables = [read_csv(store.path(job)) for job in jobs]
        write_csv(snakemake.output[0], pd.concat(tables, ignore_index=True))
