"""Misaligned against benign training: matched comparisons, and half-doses."""

from persona_collapse.runtime.job import job

with job(snakemake, "matched"):
    import pandas as pd
    from persona_collapse.analysis import half_dose, matched, views
    from persona_collapse.parquet_files import read_parquet
    from persona_collapse.tables_io import read_csv, write_csv

    inputs, outputs = snakemake.input, snakemake.output
    found = matched.outcomes(
        read_parquet(inputs.left_out),
        pd.concat(map(read_parquet, inputs.answers), ignore_index=True),
        views.headline_cell(read_csv(inputs.headline)),
    )
    given = (read_csv(inputs.design), read_csv(inputs.updates), found, snakemake.params.pairs)
    write_csv(outputs.matched, views.with_model(matched.matched_table(*given), given[0]))
    write_csv(outputs.half_dose, half_dose.half_dose_table(*given))
