"""Sample answers from a chain, and from other ready chains while the engine is up (`Plan.beside`)."""

from pathlib import Path

from persona_collapse.runtime.job import job as running

with running(snakemake, f"{snakemake.rule} {snakemake.params.job['name']}") as log:
    from persona_collapse.jobs import SamplingJob
    from persona_collapse.parquet_files import write_parquet
    from persona_collapse.runtime import shared_engine
    from persona_collapse.study.plan import Plan

    base, params = Path(snakemake.input.base), snakemake.params
    own, plan = SamplingJob(**params.job), Plan(snakemake.config)

    def key(job):
        """Key of a job; None while adapters of its chain are missing."""
        return shared_engine.ready_key(job, params.code_hash, base)

    def open_engine():
        """Start the engine; imports are done here, because most jobs find their work done."""
        import torch
        from persona_collapse import adapter_files
        from persona_collapse.models import loading
        from persona_collapse.sampling import sample

        torch.set_num_threads(snakemake.threads)
        name, reason = sample.choose_backend(own.engine["backend"])
        log(f"backend {name} ({reason})")
        # The same engine settings for every job of the run, because rounding depends on them.
        planned = [*plan.couplings_answers, *plan.chains_answers]
        served = {own.chain, *(job.chain for job in planned if job.model == own.model)}
        backend = sample.open_backend(
            name,
            base,
            {
                **own.engine,
                **plan.runtime["sampling"],
                "jobs_per_gpu": plan.runtime["jobs_per_gpu"],
            },
            max(map(plan.rank, served)),
            set().union(*map(plan.projections, served)),
            any(map(plan.shifted, served)),
            adapter_files.split(own.adapters)[0],
        )
        return backend, loading.load_tokenizer(base), sample

    def work(engine, job, path):
        """Sample one job's answers into a file."""
        backend, tokenizer, sample = engine
        write_parquet(path, sample.answer(backend, job, tokenizer, log))

    shared_engine.run(
        shared_engine.Store(params.store, plan.config["runtime"]),
        own,
        plan.beside(own),
        key=key,
        open_engine=open_engine,
        work=work,
        limit=plan.runtime["chains_per_engine"],
        output=snakemake.output.table,
        log=log,
    )
