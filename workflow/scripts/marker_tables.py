"""Marker rates, tests, leakage and answer statistics of every cell."""

from persona_collapse.runtime.job import job

with job(snakemake, "marker tables"):
    from pathlib import Path

    import pandas as pd
    from persona_collapse.analysis import answer_stats, marker_rates, marker_tests
    from persona_collapse.tables_io import read_csv, read_parquet, write_csv

    params = snakemake.params
    grid = read_csv(snakemake.input.design)
    markers = {Path(path).stem: read_csv(path) for path in snakemake.input.markers}
    # One chain's texts at a time: those of hundreds would fill the memory.
    scored = pd.concat(
        [
            marker_tests.score({Path(path).stem: read_parquet(path)}, params.marker)
            for path in snakemake.input.completions
        ],
        ignore_index=True,
    )
    rates = marker_rates.marker_rates(grid, markers, params.assistant)
    tests = marker_tests.marker_tests(
        grid,
        scored,
        contrasts=params.contrasts,
        margin=params.margin,
        families=params.families,
        **params.draws,
    )
    write_csv(snakemake.output.rates, rates)
    write_csv(snakemake.output.tests, tests)
    write_csv(snakemake.output.leakage, marker_rates.leakage(grid, rates))
    write_csv(snakemake.output.answers, answer_stats.answer_stats(grid, scored))
