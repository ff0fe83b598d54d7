"""False-positive rates and coverage of the tests and intervals, and the design's power."""

from persona_collapse.runtime.job import job

with job(snakemake, "simulation"):
    from persona_collapse.analysis import simulation
    from persona_collapse.tables_io import read_csv, write_csv

    settings = snakemake.params.settings
    sizes = simulation.Sizes(**snakemake.params.sizes)
    write_csv(
        snakemake.output.simulation,
        simulation.simulate(sizes, runs=settings["simulations"], draws=999, seed=settings["seed"]),
    )
    geometry = read_csv(snakemake.input.geometry)
    power = simulation.power_table(sizes, geometry, draws=settings["draws"])
    write_csv(snakemake.output.power, power)
