"""Persona geometry of every chain."""

from persona_collapse.scripting import job

with job(snakemake, "geometry") as say:
    from pathlib import Path

    from persona_collapse import activations, tables
    from persona_collapse.files import read_csv, write_csv

    settings = snakemake.params.settings
    paths = {Path(path).stem: path for path in snakemake.input.activations}

    def load(chain):
        """Activations of a chain, read when they are needed."""
        say(f"reading {chain}")
        return activations.load(paths[chain])

    grid = read_csv(snakemake.input.grid)
    grid = grid[grid["chain"].isin(paths)]
    write_csv(
        snakemake.output.geometry,
        tables.geometry_table(grid, load, draws=settings["draws"], seed=settings["seed"]),
    )
    write_csv(snakemake.output.cosines, tables.cosines(grid, load))
