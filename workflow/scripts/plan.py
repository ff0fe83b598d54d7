"""Write the design: which chain stands for which condition."""

from persona_collapse.runtime.job import job

with job(snakemake, "plan"):
    import pandas as pd
    from persona_collapse.tables_io import write_csv

    write_csv(snakemake.output[0], pd.DataFrame(snakemake.params.rows))
