"""Resolve the headline's layer to one of the model's blocks."""

from persona_collapse.runtime.job import job

with job(snakemake, "headline"):
    import pandas as pd
    from persona_collapse.measures import activations
    from persona_collapse.models import loading
    from persona_collapse.study import model_checks
    from persona_collapse.tables_io import write_csv

    base, params = snakemake.input.base, snakemake.params
    folder = loading.path_of(base)
    # A config may leave it to the library's defaults.
    blocks = (
        model_checks.facts(folder).blocks
        or model_checks.facts(folder, loading.load_config(base)).blocks
    )
    row = activations.headline(params.headline, params.layers, blocks)
    write_csv(snakemake.output[0], pd.DataFrame([row]))
