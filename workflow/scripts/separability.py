"""Linear classification of personas on held-out questions."""

from persona_collapse.scripting import job

with job(snakemake, "separability") as say:
    from pathlib import Path

    from persona_collapse import activations, lda
    from persona_collapse.files import read_csv, write_csv

    params = snakemake.params
    paths = {Path(path).stem: path for path in snakemake.input.activations}

    def load(chain):
        """Activations of a chain, read when they are needed."""
        say(f"reading {chain}")
        return activations.load(paths[chain])

    grid = read_csv(snakemake.input.grid)
    table = lda.lda_table(
        grid[grid["chain"].isin(paths)],
        load,
        folds=params.settings["folds"],
        shuffles=params.settings["shuffles"],
        seed=params.seed,
        families=params.families,
    )
    write_csv(snakemake.output[0], table)
