"""Write the grid: which chain stands for which condition."""

from persona_collapse.scripting import job

with job(snakemake, "plan"):
    import pandas as pd
    from persona_collapse.files import write_csv

    write_csv(snakemake.output[0], pd.DataFrame(snakemake.params.rows))
