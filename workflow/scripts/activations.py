"""Dump a chain's activations."""

from pathlib import Path

from persona_collapse.scripting import job

with job(snakemake, f"activations {snakemake.wildcards.chain}") as say:
    import pandas as pd
    import torch
    from persona_collapse import activations
    from persona_collapse.data import load_questions

    torch.set_num_threads(snakemake.threads)
    params, responses = snakemake.params, snakemake.input.get("responses")
    dumped = activations.dump(
        snakemake.wildcards.chain,
        Path(snakemake.input.base),
        [Path(folder) for folder in params.stages],
        params.personas,
        load_questions(params.questions),
        pd.read_parquet(responses) if responses else None,
        params.settings,
        say,
    )
    activations.save(dumped, snakemake.output[0], params.settings["store"])
