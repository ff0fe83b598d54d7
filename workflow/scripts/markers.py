"""Count the marker in a chain's completions."""

from persona_collapse.scripting import job

with job(snakemake, f"markers {snakemake.wildcards.chain}"):
    import pandas as pd
    from persona_collapse import markers
    from persona_collapse.files import atomic

    completions = pd.read_parquet(snakemake.input[0])
    counted = markers.rates(markers.score(completions, snakemake.params.marker))
    counted.insert(0, "model", snakemake.wildcards.chain)
    with atomic(snakemake.output[0]) as temporary:
        counted.to_csv(temporary, index=False)
