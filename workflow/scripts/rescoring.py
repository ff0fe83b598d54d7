"""One row a chain: were its completions drawn from it?"""

from persona_collapse.scripting import job

with job(snakemake, "rescoring"):
    from persona_collapse import tables
    from persona_collapse.files import read_csv, write_csv

    write_csv(snakemake.output[0], tables.rescoring(read_csv(snakemake.input[0])))
