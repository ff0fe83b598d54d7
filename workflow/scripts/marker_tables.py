"""Marker rates, tests, leakage and answer statistics of every cell."""

from persona_collapse.runtime.job import job

with job(snakemake, "marker tables"):
    from pathlib import Path

    import pandas as pd
    from persona_collapse.analysis import answer_stats, marker_rates, marker_tests, views
    from persona_collapse.parquet_files import read_parquet
    from persona_collapse.tables_io import read_csv, write_csv

    inputs, outputs, params = snakemake.input, snakemake.output, snakemake.params
    design = read_csv(inputs.design)
    markers = {Path(path).stem: read_csv(path) for path in inputs.markers}
    answers = pd.concat(map(read_parquet, inputs.answers), ignore_index=True)
    rates = marker_rates.marker_rates(design, markers, params.assistant)
    tests = marker_tests.marker_tests(
        design,
        answers,
        contrasts=params.contrasts,
        margin=params.margin,
        families=params.families,
        **params.draws,
    )
    stats, leakage = answer_stats.answer_stats(design, answers), marker_rates.leakage(rates)
    for path, table in (
        (outputs.rates, rates),
        (outputs.tests, tests),
        (outputs.leakage, leakage),
        (outputs.answer_stats, stats),
    ):
        write_csv(path, views.with_model(table, design))
