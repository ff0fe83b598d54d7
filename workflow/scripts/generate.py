"""Sample answers from a chain, and from other ready chains while the engine is up (`Plan.beside`)."""

from pathlib import Path

from persona_collapse.runtime.job import job

with job(snakemake, f"{snakemake.rule} {snakemake.params.task['name']}") as say:
    from persona_collapse.runtime import shared_engine
    from persona_collapse.study.plan import Plan
    from persona_collapse.tables_io import write_parquet

    base, params = Path(snakemake.input.base), snakemake.params

    def key(task):
        """Key of a task; None while adapters of its chain are missing."""
        return shared_engine.ready_key(task, params.code_hash, base)

    def open_engine():
        """Start the engine; imports are done here, for most jobs find their work done."""
        import torch
        from persona_collapse.models import loading
        from persona_collapse.sampling import sample

        torch.set_num_threads(snakemake.threads)
        name, reason = sample.choose_backend(params.task["engine"]["backend"])
        say(f"backend {name} ({reason})")
        # The same engine for every job of the run, whatever it serves: rounding depends on its settings.
        served = plan.tasks(["answers", "completions", "responses"])
        chains = [task["chain"] for task in [params.task, *served]]
        backend = sample.open_backend(
            name,
            base,
            {**params.task["engine"], "jobs_per_gpu": config["jobs_per_gpu"]},
            max(plan.rank(chain) for chain in chains),
            set().union(*(plan.projections(chain) for chain in chains)),
        )
        return backend, loading.load_tokenizer(base), sample

    def work(engine, task, path):
        """Sample one task's answers into a file."""
        backend, tokenizer, generation = engine
        write_parquet(path, generation.answer(backend, task, tokenizer, say))

    config = snakemake.config
    plan = Plan(config)
    shared_engine.run(
        shared_engine.Store(params.store),
        params.task,
        plan.beside(params.task),
        key=key,
        open_engine=open_engine,
        work=work,
        limit=config["generation"]["chains_per_engine"],
        output=snakemake.output.table,
        say=say,
    )
