"""Draw one figure."""

from pathlib import Path

from persona_collapse.runtime.job import job

with job(snakemake, f"figure {snakemake.wildcards.figure}"):
    from persona_collapse.report.figures import _render, catalogue
    from persona_collapse.tables_io import read_csv

    figure = catalogue()[snakemake.wildcards.figure]
    rows = _render.data(figure, {Path(path).stem: read_csv(path) for path in snakemake.input})
    _render.save(figure, rows, Path(snakemake.output.svg).with_suffix(""))
