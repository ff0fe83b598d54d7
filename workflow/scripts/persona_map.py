"""Persona vectors of every chain on the base model's principal components."""

from persona_collapse.runtime.job import job

with job(snakemake, "persona_map") as say:
    from persona_collapse import activation_files
    from persona_collapse.analysis import geometry_tables
    from persona_collapse.tables_io import read_csv, write_csv

    chains, load = activation_files.loader(snakemake.input.activations, say)
    grid = read_csv(snakemake.input.design)
    write_csv(
        snakemake.output[0], geometry_tables.persona_map(grid[grid["chain"].isin(chains)], load)
    )
