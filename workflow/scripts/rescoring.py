"""One row a chain: were its completions drawn from it?"""

from pathlib import Path

from persona_collapse.scripting import job

with job(snakemake, "rescoring"):
    from persona_collapse import tables
    from persona_collapse.files import read_csv, write_csv

    rescored = {Path(path).stem: read_csv(path) for path in snakemake.input.rescored}
    grid = read_csv(snakemake.input.grid)
    write_csv(snakemake.output[0], tables.rescoring(grid, rescored))
