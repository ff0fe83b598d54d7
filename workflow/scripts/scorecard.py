"""Score the study's claims against the tables."""

from persona_collapse.runtime.job import job

with job(snakemake, "scorecard"):
    from pathlib import Path

    from persona_collapse.analysis import claims
    from persona_collapse.tables_io import read_csv, write_csv

    inputs, params = snakemake.input, snakemake.params
    tables = {Path(path).stem: read_csv(path) for path in inputs if path.endswith(".csv")}
    entries = claims.load(inputs.claims)
    registration = tables.pop("registered_claims")
    scored = claims.scorecard(
        entries, tables, fdr=params.fdr, judge=params.judge, registration=registration
    )
    write_csv(snakemake.output[0], scored)
