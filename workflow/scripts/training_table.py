"""Collect the training records of all manifests."""

from persona_collapse.runtime.job import job

with job(snakemake, "training table"):
    import pandas as pd
    from persona_collapse.analysis.updates import last_task_loss
    from persona_collapse.files import read_json
    from persona_collapse.tables_io import write_csv

    manifests = [read_json(path) for path in snakemake.input]
    keys = ["chain", "stage", "kind", "seed"]
    of_adapter = ["r", "alpha", "use_rslora", "scale"]
    of_data = ["name", "rows", "rows_dropped_no_loss"]
    of_training = [
        "loss_on", "objective", "steps", "schedule_steps", "tokens_seen", "supervised_tokens",
        "seconds", "device", "peak_gpu_mib", "adapter_sha256", "commit",
    ]  # fmt: skip
    write_csv(
        snakemake.output.curves,
        pd.DataFrame(
            [{k: m[k] for k in keys} | point for m in manifests for point in m["loss"]],
            columns=[*keys, "step", "loss", "task_loss", "penalty", "lr"],
        ),
    )
    write_csv(
        snakemake.output.runs,
        pd.DataFrame(
            [
                {k: m[k] for k in keys}
                # A stage that trained all weights has no adapter.
                | {k: m.get("lora", {}).get(k) for k in of_adapter}
                | {k: m.get("data", {}).get(k) for k in of_data}
                | {"final_loss": last_task_loss(m)}
                | {k: m.get(k) for k in of_training}  # an imported adapter has only some of them
                for m in manifests
            ],
            columns=[*keys, *of_adapter, *of_data, "final_loss", *of_training],
        ),
    )
