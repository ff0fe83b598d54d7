"""Dump a chain's activations, and while the model is loaded serve other ready chains and `rescored`."""

from pathlib import Path

from persona_collapse.runtime.job import job

with job(snakemake, f"activations {snakemake.wildcards.chain}") as say:
    from persona_collapse.runtime import code_hash, shared_engine
    from persona_collapse.study.plan import Plan

    base, params = Path(snakemake.input.base), snakemake.params
    config = snakemake.config

    def key(task):
        """Key of a task; None while adapters or answers of its chain are missing."""
        if task["kind"] == "rescored":
            # No param: what scores completions is not what dumps activations.
            own = code_hash.of("measures.logprob_check")
            return shared_engine.ready_key(task, own, base, [task["completions"]])
        answers = [task["responses"]] if task["responses"] else []
        return shared_engine.ready_key(task, code_hash.of("measures.activations"), base, answers)

    def open_engine():
        """Load the base model once."""
        import torch
        from persona_collapse.models.runner import Carrier

        torch.set_num_threads(snakemake.threads)
        return Carrier(base, config["dtype"])

    def work(carrier, task, path):
        """Dump one chain's activations into a file, or score some of its completions again."""
        if task["kind"] == "rescored":
            from persona_collapse.measures import logprob_check

            return logprob_check.write(carrier, task, path, say)
        from persona_collapse import activation_files
        from persona_collapse.data.questions import load_questions
        from persona_collapse.measures import activations
        from persona_collapse.tables_io import read_parquet

        responses = read_parquet(task["responses"]) if task["responses"] else None
        questions = load_questions(task["questions"])
        dumped = activations.dump(carrier, task, questions, responses, say)
        activation_files.save(dumped, path, task["settings"]["store"])

    shared_engine.run(
        shared_engine.Store(params.store),
        params.task,
        Plan(config).tasks(["activations", "rescored"]),
        key=key,
        open_engine=open_engine,
        work=work,
        limit=config["generation"]["chains_per_engine"],
        output=snakemake.output[0],
        say=say,
    )
