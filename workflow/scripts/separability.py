"""Linear classification of personas on held-out questions."""

from persona_collapse.runtime.job import job

with job(snakemake, "separability") as log:
    from persona_collapse import activation_files
    from persona_collapse.analysis import separability, views
    from persona_collapse.tables_io import read_csv, write_csv

    inputs, params = snakemake.input, snakemake.params
    chains, load = activation_files.loader(inputs.activations, log)
    design = read_csv(inputs.design)
    table = separability.lda_table(
        design[design["chain"].isin(chains)],
        load,
        views.headline_cell(read_csv(inputs.headline)),
        **params.settings,
        seed=params.seed,
        families=params.families,
        threads=snakemake.threads,
    )
    write_csv(snakemake.output[0], views.with_model(table, design))
