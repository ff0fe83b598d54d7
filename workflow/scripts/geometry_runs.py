"""Geometry of every condition over its training runs."""

from persona_collapse.runtime.job import job

with job(snakemake, "geometry_runs"):
    from persona_collapse.analysis import geometry_runs, views
    from persona_collapse.parquet_files import read_parquet
    from persona_collapse.tables_io import read_csv, write_csv

    inputs, params = snakemake.input, snakemake.params
    runs = geometry_runs.geometry_runs(
        read_csv(inputs.design),
        read_parquet(inputs.left_out),
        views.headline_cell(read_csv(inputs.headline)),
        params.contrasts,
        shared_axis=read_csv(inputs.shared_axis),
        separability=read_csv(inputs.separability),
        families=params.families,
    )
    write_csv(snakemake.output.runs, runs)
