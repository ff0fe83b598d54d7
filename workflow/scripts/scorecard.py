"""Score the study's claims against the tables."""

from persona_collapse.scripting import job

with job(snakemake, "scorecard"):
    from persona_collapse import claims
    from persona_collapse.files import read_csv, write_csv

    given = snakemake.input
    scored = claims.scorecard(
        claims.load(given.claims),
        marker_rates=read_csv(given.rates),
        geometry=read_csv(given.geometry),
        headline=snakemake.params.headline,
        fdr=snakemake.params.fdr,
        scale=snakemake.params.scale,
    )
    write_csv(snakemake.output[0], scored)
