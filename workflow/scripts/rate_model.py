"""Fit the hierarchical model of marker rates: rates, variance components, and leave-one-out rates."""

from persona_collapse.runtime.job import job

with job(snakemake, "rate model"):
    import pandas as pd
    from persona_collapse.analysis import rate_model, views
    from persona_collapse.parquet_files import read_parquet
    from persona_collapse.tables_io import read_csv, write_csv

    outputs, params = snakemake.output, snakemake.params
    design = read_csv(snakemake.input.design)
    answers = pd.concat(map(read_parquet, snakemake.input.answers), ignore_index=True)
    rates, components = rate_model.rate_tables(
        design,
        answers,
        contrasts=params.contrasts,
        assistant=params.assistant,
        seed=params.seed,
    )
    left_out = rate_model.leave_one_out(design, answers, params.contrasts)
    for path, table in zip(outputs, (rates, components, left_out), strict=True):
        write_csv(path, views.with_model(table, design))
