"""False-positive rates and coverage of the tests and intervals, and the design's power."""

from persona_collapse.scripting import job

with job(snakemake, "simulation"):
    from persona_collapse import simulate
    from persona_collapse.files import read_csv, write_csv

    settings = snakemake.params.settings
    sizes = simulate.Sizes(**snakemake.params.sizes)
    write_csv(
        snakemake.output.simulation,
        simulate.simulate(sizes, runs=settings["simulations"], draws=999, seed=settings["seed"]),
    )
    geometry = read_csv(snakemake.input.geometry)
    power = simulate.power_table(sizes, geometry, draws=settings["draws"])
    write_csv(snakemake.output.power, power)
