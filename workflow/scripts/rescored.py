"""Score some completions of every chain again, but for chains that have not changed since."""

from pathlib import Path

from persona_collapse.runtime.job import job

with job(snakemake, "rescored") as say:
    import pandas as pd
    from persona_collapse.runtime import code_hash, shared_engine
    from persona_collapse.tables_io import read_csv, write_csv

    base, params = Path(snakemake.input.base), snakemake.params
    store, carrier, tables = shared_engine.Store(params.store), None, {}
    code = code_hash.of("measures.logprob_check")
    # Chains of equally many stages after each other: their adapters mostly have one shape.
    for task in sorted(params.tasks, key=lambda task: len(task["stages"])):
        key = shared_engine.key_of(
            {**task, "code": code_hash.of("measures.logprob_check")}, base, [task["completions"]]
        )
        with store.claimed(task, wait=True):
            if not store.holds(task, key):
                if carrier is None:
                    import torch
                    from persona_collapse.measures import logprob_check
                    from persona_collapse.models.runner import Carrier

                    torch.set_num_threads(snakemake.threads)
                    carrier = Carrier(base, snakemake.config["dtype"])
                store.put(
                    task,
                    key,
                    lambda path, task=task, carrier=carrier: logprob_check.write(
                        carrier, task, path, say
                    ),
                )
            tables[task["name"]] = read_csv(store.path(task))
    ordered = [tables[task["name"]] for task in params.tasks]
    write_csv(snakemake.output[0], pd.concat(ordered, ignore_index=True))
