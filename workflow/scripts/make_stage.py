"""Make a stage that is not trained: an adapter from another chain, or a change of block outputs."""

from pathlib import Path

from persona_collapse.runtime.job import job

with job(snakemake, f"make {snakemake.wildcards.made}"):
    from persona_collapse import adapter_files, chains
    from persona_collapse.files import sha256, write_json
    from persona_collapse.stages import ROOM as STAGES

    chain, settings = chains.parse(snakemake.wildcards.made), snakemake.params.settings
    folder = Path(snakemake.output.weights).parent
    stage = STAGES.get(settings["kind"])(chain.last.name, settings)
    files = {name: Path(path) for name, path in snakemake.input.items()}
    write_json(
        snakemake.output.manifest,
        stage.make(chain, files, folder)
        | {
            "chain": str(chain),
            "stage": chain.last.name,
            "kind": stage.kind,
            "adapter_sha256": sha256(folder / adapter_files.WEIGHTS),
            "prefix": [str(prefix) for prefix in chain.prefixes[:-1]],
            **adapter_files.UNTRAINED,
        },
    )
