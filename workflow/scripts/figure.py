"""Draw one figure."""

import inspect
from pathlib import Path

from persona_collapse.runtime.job import job

with job(snakemake, f"figure {snakemake.wildcards.figure}"):
    from persona_collapse.analysis.views import headline_cell
    from persona_collapse.report import figures
    from persona_collapse.tables_io import read_csv

    tables = {name: read_csv(path) for name, path in snakemake.input.items()}
    draw = getattr(figures, snakemake.wildcards.figure)
    takes = inspect.signature(draw).parameters
    if "layer" in takes:
        tables |= headline_cell(tables["headline"])
    figure, data = draw(**{name: given for name, given in tables.items() if name in takes})
    figures.save(figure, data, Path(snakemake.output.svg).with_suffix(""))
