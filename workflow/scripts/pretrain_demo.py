"""Pretrain the demo model, and keep the checkpoints that are base models of the run."""

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
    checkpoints = {folder.with_name(name): step for name, step in params.checkpoints.items()}
    manifest = demo.pretrain(world, params.settings, params.marker, folder, say, checkpoints)
    for saved, step in {folder: params.settings["steps"], **checkpoints}.items():
        write_json(saved / "pretraining.json", manifest | {"after_step": step})
