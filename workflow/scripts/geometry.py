"""Persona geometry of every chain: M1 and the other metrics, contrasts, the shared axis."""

from persona_collapse.runtime.job import job

with job(snakemake, "geometry") as log:
    from persona_collapse import activation_files
    from persona_collapse.analysis import (
        contrasts,
        geometry_runs,
        geometry_tables,
        shared_axis,
        views,
    )
    from persona_collapse.parquet_files import write_parquet
    from persona_collapse.tables_io import read_csv, write_csv

    inputs, outputs, params = snakemake.input, snakemake.output, snakemake.params
    families, draws = params.families, params.draws
    chains, load = activation_files.loader(inputs.activations, log)
    design = read_csv(inputs.design)
    design = design[design["chain"].isin(chains)]
    headline = views.headline_cell(read_csv(inputs.headline))

    def write(path, table):
        """A table with the model in each row."""
        write_csv(path, views.with_model(table, design))

    left_out = geometry_runs.left_out_table(design, load, snakemake.threads)
    write_parquet(outputs.left_out, left_out)
    write(
        outputs.geometry,
        geometry_tables.geometry_table(
            design,
            load,
            headline,
            longest=params.longest,
            families=families["geometry"],
            left_out=left_out,
            threads=snakemake.threads,
            **draws,
        ),
    )
    write(outputs.cosines, geometry_tables.cosines(design, load, headline))
    write(
        outputs.contrasts,
        contrasts.contrasts_table(
            design,
            load,
            headline,
            params.contrasts,
            margin=(
                geometry_runs.replicate_margins(design, left_out)
                if params.margin == "replicate"
                else params.margin
            ),
            families=families["contrasts"],
            **draws,
        ),
    )
    anchors = design.loc[design["condition"] == params.axis, "chain"]
    write(
        outputs.shared_axis,
        shared_axis.axis_table(
            design,
            load,
            headline,
            anchor=next(iter(anchors), ""),
            assistant=params.assistant,
            families=families["shared_axis"],
            **draws,
        ),
    )
