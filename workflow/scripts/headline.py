"""Resolve the headline's layer to a block of each model."""

from persona_collapse.runtime.job import job

with job(snakemake, "headline"):
    import pandas as pd
    from persona_collapse.measures import activations
    from persona_collapse.models import loading
    from persona_collapse.study import model_checks
    from persona_collapse.tables_io import write_csv

    params, rows = snakemake.params, []
    for model, base in zip(params.models, snakemake.input, strict=True):
        folder = loading.path_of(base)
        # A model's config may leave it to the library's default.
        blocks = (
            model_checks.facts(folder).blocks
            or model_checks.facts(folder, loading.load_config(base)).blocks
        )
        with model_checks.about(model):
            row = activations.headline(params.headline, params.layers, blocks)
        rows.append({"model": model} | row)
    write_csv(snakemake.output[0], pd.DataFrame(rows))
