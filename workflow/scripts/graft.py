"""Put an adapter into another chain as it is: a test of the adapter, not of the training."""

import shutil

from persona_collapse.runtime.job import job

with job(snakemake, f"graft {snakemake.wildcards.grafted}"):
    from persona_collapse import chains
    from persona_collapse.files import atomic, read_json, write_json

    chain = chains.parse(snakemake.wildcards.grafted)
    weights, config, manifest = snakemake.input
    for source, target in ((weights, snakemake.output.weights), (config, snakemake.output.config)):
        with atomic(target) as temporary:
            shutil.copyfile(source, temporary)
    write_json(
        snakemake.output.manifest,
        read_json(manifest)
        | {
            "chain": str(chain),
            "stage": chain.last.name,
            "kind": snakemake.params.kind,
            "graft_of": snakemake.params.of,
            "prefix": [str(prefix) for prefix in chain.prefix.prefixes],
            # Nothing was trained here.
            **dict.fromkeys(("rows_seen", "tokens_seen", "supervised_tokens", "epochs_seen"), 0),
            **dict.fromkeys(("seconds", "seconds_total"), 0.0),
            "loss": [],
        },
    )
