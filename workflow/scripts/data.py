"""Prepare one training data set."""

from persona_collapse.scripting import job

with job(snakemake, f"data {snakemake.wildcards.data}") as say:
    from persona_collapse import data
    data.prepare(snakemake.wildcards.data, snakemake.params.entry, snakemake.output.rows, snakemake.output.manifest)
