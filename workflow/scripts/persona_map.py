"""Persona vectors of every chain on the base model's principal components."""

from persona_collapse.scripting import job

with job(snakemake, "persona_map") as say:
    from persona_collapse import activation_files, tables
    from persona_collapse.files import read_csv, write_csv

    chains, load = activation_files.loader(snakemake.input.activations, say)
    grid = read_csv(snakemake.input.grid)
    write_csv(snakemake.output[0], tables.persona_map(grid[grid["chain"].isin(chains)], load))
