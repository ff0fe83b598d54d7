"""Pretrain the demo model."""

from pathlib import Path

from persona_collapse.runtime.job import job

with job(snakemake, "pretrain demo model") as say:
    import torch
    from persona_collapse.files import write_json
    from persona_collapse.models import demo

    torch.set_num_threads(snakemake.threads)
    params = snakemake.params
    world = demo.load_world(snakemake.input.world, params.prompts, params.marker)
    folder = Path(snakemake.output[0]).parent
    manifest = demo.pretrain(world, params.settings, params.marker, folder, say)
    write_json(folder / "pretraining.json", manifest)
