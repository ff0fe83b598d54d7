"""Recompute the write-up's figures from the study's published numbers."""

from persona_collapse.runtime.job import job

with job(snakemake, "errata"):
    from persona_collapse.analysis import errata
    from persona_collapse.tables_io import read_csv, write_csv

    given = snakemake.input
    published = errata.Published(read_csv(given.counts), read_csv(given.cosines))
    write_csv(snakemake.output[0], errata.errata_table(errata.load(given.errata), published))
