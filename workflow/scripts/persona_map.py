"""Persona vectors of every chain on the base model's principal components."""

from persona_collapse.runtime.job import job

with job(snakemake, "persona_map") as log:
    from persona_collapse import activation_files
    from persona_collapse.analysis import geometry_tables, views
    from persona_collapse.tables_io import read_csv, write_csv

    inputs = snakemake.input
    chains, load = activation_files.loader(inputs.activations, log)
    design = read_csv(inputs.design)
    design = design[design["chain"].isin(chains)]
    headline = views.headline_cell(read_csv(inputs.headline))
    table = geometry_tables.persona_map(design, load, headline)
    write_csv(snakemake.output[0], views.with_model(table, design))
