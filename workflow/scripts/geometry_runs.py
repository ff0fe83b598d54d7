"""Geometry of every condition over its training runs."""

from persona_collapse.runtime.job import job

with job(snakemake, "geometry_runs"):
    from persona_collapse.analysis import geometry_runs, views
    from persona_collapse.parquet_files import read_parquet
    from persona_collapse.tables_io import read_csv, write_csv

    inputs, params = snakemake.input, snakemake.params
    given = (
        read_csv(inputs.design),
        read_parquet(inputs.left_out),
        views.headline_cell(read_csv(inputs.headline)),
    )
    runs = geometry_runs.geometry_runs(
        *given,
        params.contrasts,
        shared_axis=read_csv(inputs.shared_axis),
        separability=read_csv(inputs.separability),
        margin=params.margin,
        families=params.families,
    )
    outputs = snakemake.output
    left_out = geometry_runs.leave_one_out(*given, params.contrasts)
    components = geometry_runs.variance_components(*given)
    for path, table in zip(outputs, (runs, left_out, components), strict=True):
        write_csv(path, views.with_model(table, given[0]))
