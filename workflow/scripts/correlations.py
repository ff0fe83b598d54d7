"""Correlate behaviour with geometry, and test the study's hypotheses on leakage."""

from persona_collapse.runtime.job import job

with job(snakemake, "correlations"):
    from persona_collapse.analysis import correlations, hypotheses, views
    from persona_collapse.tables_io import read_csv, write_csv

    outputs, params = snakemake.output, snakemake.params
    tables = {name: read_csv(path) for name, path in snakemake.input.items()}
    cosines = tables["cosines"]
    base = cosines[cosines["headline"] & views.untrained(cosines["chain"])]
    base = base.drop_duplicates(["chain", "persona_a", "persona_b"])
    chains = correlations.chain_table(
        *(tables[name] for name in ("design", "answers", "geometry", "cosines", "training"))
    )
    correlated = correlations.correlation_table(
        chains, tables["rates"], base, families=params.families, **params.draws
    )
    tested = hypotheses.hypotheses(
        tables["design"],
        tables["rates"],
        base,
        params.conditions,
        assistant=params.assistant,
        **params.draws,
    )
    for path, table in zip(outputs, (correlated, chains, tested), strict=True):
        write_csv(path, views.with_model(table, tables["design"]))
