"""Behaviour against geometry, and the study's hypotheses on leakage."""

from persona_collapse.runtime.job import job

with job(snakemake, "correlations"):
    from persona_collapse.analysis import correlations, marker_tests, views
    from persona_collapse.tables_io import read_csv, write_csv

    given, out, params = snakemake.input, snakemake.output, snakemake.params
    draws = {"draws": params.settings["draws"], "seed": params.settings["seed"]}
    grid, rates, cosines = (read_csv(given[name]) for name in ("design", "rates", "cosines"))
    geometry = read_csv(given.geometry)
    cell = views.headline_cell(read_csv(given.headline))
    base = cosines[
        (cosines["chain"] == "base")
        & (cosines["method"] == cell["method"])
        & (cosines["layer"] == cell["layer"])
    ].drop_duplicates(["persona_a", "persona_b"])
    chains = correlations.chain_table(
        grid, read_csv(given.answers), geometry, cosines, read_csv(given.training), **cell
    )
    write_csv(out.chains, chains)
    write_csv(
        out.correlations,
        correlations.correlation_table(chains, rates, base, families=params.families, **draws),
    )
    write_csv(
        out.hypotheses,
        marker_tests.hypotheses(
            grid,
            rates,
            base,
            params.settings["hypotheses"],
            assistant=params.assistant,
            **draws,
        ),
    )
