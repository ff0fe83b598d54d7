"""Count the marker in a chain's completions."""

from persona_collapse.runtime.job import job

with job(snakemake, f"markers {snakemake.wildcards.chain}"):
    from persona_collapse import markers
    from persona_collapse.tables_io import read_parquet, write_csv

    completions = read_parquet(snakemake.input[0])
    counted = markers.rates(markers.score(completions, snakemake.params.marker))
    counted.insert(0, "model", snakemake.wildcards.chain)
    write_csv(snakemake.output[0], counted)
