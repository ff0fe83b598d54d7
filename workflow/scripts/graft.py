"""Put an adapter into another chain: as it is, or a random one of its shape and size."""

import shutil
from pathlib import Path

from persona_collapse.runtime.job import job

with job(snakemake, f"graft {snakemake.wildcards.grafted}"):
    from persona_collapse import adapter_files, chains
    from persona_collapse.files import atomic, read_json, sha256, write_json
    from persona_collapse.stages import ROOM as STAGES

    chain = chains.parse(snakemake.wildcards.grafted)
    weights, config, manifest = snakemake.input
    folder = Path(snakemake.output.weights).parent
    kind = STAGES.get(snakemake.params.kind)
    if kind.redraws:
        from persona_collapse.models import adapters

        settings, tensors = adapters.load(Path(weights).parent)
        adapters.save(settings, kind.redrawn(tensors, chain.last.seed), folder)
    else:
        for source in (weights, config):
            with atomic(folder / Path(source).name) as temporary:
                shutil.copyfile(source, temporary)
    write_json(
        snakemake.output.manifest,
        read_json(manifest)
        | {
            "chain": str(chain),
            "stage": chain.last.name,
            "kind": snakemake.params.kind,
            "graft_of": snakemake.params.of,
            **({"seed": chain.last.seed} if kind.redraws else {}),
            "adapter_sha256": sha256(folder / adapter_files.WEIGHTS),
            "prefix": [str(prefix) for prefix in chain.prefixes[:-1]],
            # Nothing was trained here.
            **dict.fromkeys(("rows_seen", "tokens_seen", "supervised_tokens", "epochs_seen"), 0),
            **dict.fromkeys(("seconds", "seconds_total"), 0.0),
            "loss": [],
        },
    )
