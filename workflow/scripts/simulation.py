"""Simulate false-positive rates and coverage of tests and intervals, and the design's power."""

from persona_collapse.runtime.job import job

with job(snakemake, "simulation"):
    from persona_collapse.analysis import power, simulation
    from persona_collapse.tables_io import read_csv, write_csv

    outputs, params = snakemake.output, snakemake.params
    sizes = simulation.Sizes(**params.sizes)
    write_csv(
        outputs.simulation,
        simulation.simulate(sizes, runs=params.runs, draws=999, seed=params.seed),
    )
    geometry = read_csv(snakemake.input.geometry)
    write_csv(outputs.power, power.power_table(sizes, geometry, draws=params.draws))
