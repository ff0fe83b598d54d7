"""Behaviour against geometry, and the study's hypotheses on leakage."""

from persona_collapse.runtime.job import job

with job(snakemake, "correlations"):
    from persona_collapse.analysis import correlations, hypotheses
    from persona_collapse.chains import BASE
    from persona_collapse.tables_io import read_csv, write_csv

    outputs, params = snakemake.output, snakemake.params
    tables = {name: read_csv(path) for name, path in snakemake.input.items()}
    cosines = tables["cosines"]
    base = cosines[cosines["headline"] & (cosines["chain"] == BASE)]
    base = base.drop_duplicates(["persona_a", "persona_b"])
    chains = correlations.chain_table(
        *(tables[name] for name in ("design", "answers", "geometry", "cosines", "training"))
    )
    write_csv(outputs.chains, chains)
    write_csv(
        outputs.correlations,
        correlations.correlation_table(
            chains, tables["rates"], base, families=params.families, **params.draws
        ),
    )
    write_csv(
        outputs.hypotheses,
        hypotheses.hypotheses(
            tables["design"],
            tables["rates"],
            base,
            params.conditions,
            assistant=params.assistant,
            **params.draws,
        ),
    )
