"""Resolve the headline's layer to one of the model's blocks."""

from persona_collapse.scripting import job

with job(snakemake, "headline"):
    import pandas as pd
    from persona_collapse import activations, model_checks, models
    from persona_collapse.files import write_csv

    base, params = snakemake.input.base, snakemake.params
    folder = models.path_of(base)
    # A config may leave it to the library's defaults.
    blocks = (
        model_checks.facts(folder).blocks
        or model_checks.facts(folder, models.load_config(base)).blocks
    )
    row = activations.headline(params.headline, params.layers, blocks)
    write_csv(snakemake.output[0], pd.DataFrame([row]))
