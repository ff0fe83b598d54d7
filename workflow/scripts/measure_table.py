"""Join the chains' tables of a measure."""

from persona_collapse.runtime.job import job

with job(snakemake, snakemake.wildcards.measure):
    import pandas as pd
    from persona_collapse.tables_io import read_csv, write_csv

    write_csv(snakemake.output[0], pd.concat(map(read_csv, snakemake.input), ignore_index=True))
