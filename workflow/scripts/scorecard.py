"""Score the study's claims against the tables."""

from persona_collapse.scripting import job

with job(snakemake, "scorecard"):
    from persona_collapse import claims
    from persona_collapse.files import read_csv, write_csv

    given = snakemake.input
    scored = claims.scorecard(
        claims.load(given.claims),
        marker_rates=read_csv(given.rates),
        marker_tests=read_csv(given.tests),
        geometry=read_csv(given.geometry),
        leakage=read_csv(given.leakage),
        scale=snakemake.params.scale,
    )
    write_csv(snakemake.output[0], scored)
