"""Marker rates, tests and leakage over the whole grid."""

from persona_collapse.scripting import job

with job(snakemake, "marker tables"):
    from pathlib import Path

    from persona_collapse import tables
    from persona_collapse.files import read_csv, write_csv

    grid = read_csv(snakemake.input.grid)
    markers = {Path(path).stem: read_csv(path) for path in snakemake.input.markers}
    rates = tables.marker_rates(grid, markers)
    write_csv(snakemake.output.rates, rates)
    write_csv(snakemake.output.tests, tables.marker_tests(grid, rates))
    write_csv(snakemake.output.leakage, tables.leakage(grid, rates))
