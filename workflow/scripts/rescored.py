"""Score some completions of every chain again, but for chains that have not changed since."""

from pathlib import Path

from persona_collapse.scripting import job

with job(snakemake, "rescored") as say:
    import pandas as pd
    from persona_collapse import share
    from persona_collapse.files import read_csv, write_csv

    base, params = Path(snakemake.input.base), snakemake.params
    store, carrier, tables = share.Store(params.store), None, {}
    # Chains of equally many stages after each other: their adapters mostly have one shape.
    for task in sorted(params.tasks, key=lambda task: len(task["stages"])):
        key = share.key_of({**task, "code": params.code}, base, [task["completions"]])
        with store.claimed(task, wait=True):
            if not store.holds(task, key):
                if carrier is None:
                    import torch
                    from persona_collapse import rescoring
                    from persona_collapse.carrier import Carrier

                    torch.set_num_threads(snakemake.threads)
                    carrier = Carrier(base, snakemake.config["dtype"])
                store.put(
                    task,
                    key,
                    lambda path, task=task, carrier=carrier: rescoring.write(
                        carrier, task, path, say
                    ),
                )
            tables[task["name"]] = read_csv(store.path(task))
    ordered = [tables[task["name"]] for task in params.tasks]
    write_csv(snakemake.output[0], pd.concat(ordered, ignore_index=True))
