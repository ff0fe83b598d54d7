"""Score the study's claims against the tables."""

from persona_collapse.runtime.job import job

with job(snakemake, "scorecard"):
    from pathlib import Path

    from persona_collapse.analysis import claims
    from persona_collapse.analysis.views import headline_cell
    from persona_collapse.tables_io import read_csv, write_csv

    tables = {Path(path).stem: read_csv(path) for path in snakemake.input if path.endswith(".csv")}
    scored = claims.scorecard(
        claims.load(snakemake.input.claims),
        tables,
        headline=headline_cell(tables["headline"]),
        fdr=snakemake.params.fdr,
        judge=snakemake.params.judge,
    )
    write_csv(snakemake.output[0], scored)
