"""Compute size and overlap of the updates of every trained chain."""

from persona_collapse.runtime.job import job

with job(snakemake, "updates"):
    from functools import lru_cache
    from pathlib import Path

    from persona_collapse.analysis import updates
    from persona_collapse.files import read_json
    from persona_collapse.tables_io import write_csv

    manifests = [read_json(path) for path in snakemake.input.manifests]
    folders = {
        manifest["chain"]: Path(path).parent
        for manifest, path in zip(manifests, snakemake.input.manifests, strict=True)
    }
    # The update of a 7B model takes a third of a gigabyte, and twice that as float64.
    read = lru_cache(3)(lambda chain: updates.read(folders[chain]))
    by_chain = {manifest["chain"]: manifest for manifest in manifests}
    write_csv(snakemake.output[0], updates.updates_table(by_chain, read))
