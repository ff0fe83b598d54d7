"""Linear classification of personas on held-out questions."""

from persona_collapse.runtime.job import job

with job(snakemake, "separability") as say:
    from persona_collapse import activation_files
    from persona_collapse.analysis import separability
    from persona_collapse.tables_io import read_csv, write_csv

    params = snakemake.params
    chains, load = activation_files.loader(snakemake.input.activations, say)
    grid = read_csv(snakemake.input.design)
    table = separability.lda_table(
        grid[grid["chain"].isin(chains)],
        load,
        folds=params.settings["folds"],
        shuffles=params.settings["shuffles"],
        seed=params.seed,
        families=params.families,
        threads=snakemake.threads,
    )
    write_csv(snakemake.output[0], table)
