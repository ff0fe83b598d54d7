"""Persona geometry of every chain: M1 and its kin, contrasts, the shared axis."""

from persona_collapse.runtime.job import job

with job(snakemake, "geometry") as say:
    from persona_collapse import activation_files
    from persona_collapse.analysis import geometry_tables, shared_axis
    from persona_collapse.tables_io import read_csv, write_csv

    params = snakemake.params
    settings, families = params.settings, params.families
    draws = {"draws": settings["draws"], "seed": settings["seed"]}
    chains, load = activation_files.loader(snakemake.input.activations, say)
    grid = read_csv(snakemake.input.design)
    grid = grid[grid["chain"].isin(chains)]
    anchors = grid.loc[grid["condition"] == settings.get("axis"), "chain"]
    out = snakemake.output
    write_csv(
        out.geometry,
        geometry_tables.geometry_table(
            grid, load, longest=params.longest, families=families["geometry"], **draws
        ),
    )
    write_csv(out.cosines, geometry_tables.cosines(grid, load))
    write_csv(
        out.contrasts,
        geometry_tables.geometry_contrasts(
            grid,
            load,
            settings["contrasts"],
            margin=settings["margins"]["m1"],
            families=families["contrasts"],
            **draws,
        ),
    )
    write_csv(
        out.shared_axis,
        shared_axis.axis_table(
            grid,
            load,
            anchor=next(iter(anchors), ""),
            assistant=params.assistant,
            families=families["shared_axis"],
            **draws,
        ),
    )
