"""Take a measure of a chain's sampled answers."""

from pathlib import Path

from persona_collapse.runtime.job import job as running

with running(snakemake, " ".join(snakemake.wildcards)):
    from persona_collapse.jobs import MeasureJob
    from persona_collapse.measures import _taking

    job = MeasureJob(**snakemake.params.job)
    _taking.write_counted(job, Path(snakemake.output.answers), Path(snakemake.output.personas))
