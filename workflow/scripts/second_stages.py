"""Tables on the effects of properties of the second stage, and on costs and benefits of defences."""

from persona_collapse.runtime.job import job

with job(snakemake, "second stages"):
    from pathlib import Path

    import pandas as pd
    from persona_collapse.analysis import frontier, matched, views, why
    from persona_collapse.parquet_files import read_parquet
    from persona_collapse.tables_io import read_csv, write_csv

    inputs, outputs, params = snakemake.input, snakemake.output, snakemake.params
    design, left_out = read_csv(inputs.design), read_parquet(inputs.left_out)
    headline = views.headline_cell(read_csv(inputs.headline))
    scored = pd.concat(map(read_parquet, inputs.answers), ignore_index=True)
    found = matched.outcomes(left_out, scored, headline)
    metrics = {name: matched.metric_of(left_out, headline, name) for name in why.CHANGES}
    answers = read_csv(inputs.answer_stats)
    more = {Path(path).stem: read_csv(path) for path in inputs.measured}
    updates, loss = read_csv(inputs.updates), more.get("task_loss")
    moved = why.why_table(design, params.stages, updates, found, metrics, answers, loss)
    write_csv(outputs.why, views.with_model(moved, design))
    tables = frontier.Tables(
        found,
        metrics["angle"],
        answers,
        read_csv(inputs.separability),
        headline,
        **more,
        assistant=params.assistant,
    )
    kept = frontier.frontier_table(design, params.stages, tables)
    write_csv(outputs.frontier, views.with_model(kept, design))
