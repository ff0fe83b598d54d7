"""Put an adapter that was trained elsewhere into a chain."""

import os
from pathlib import Path

from persona_collapse.runtime.job import job

source = snakemake.params.source

with job(snakemake, f"import {snakemake.wildcards.imported}", online="hub" in source) as say:
    from persona_collapse import adapter_files, chains
    from persona_collapse.errors import UserError
    from persona_collapse.files import read_json, sha256, write_json
    from persona_collapse.models import adapters, chat_template, imported, loading
    from persona_collapse.training.manifest import versions

    base, folder = snakemake.input.base, Path(snakemake.output.weights).parent
    chain = chains.parse(snakemake.wildcards.imported)
    try:
        found = imported.fetch(source, say)
        config, tensors, record = imported.read(source, found, base)
    except UserError as error:
        raise UserError(f"config: stages: {chain.last.name}: {error}") from error
    adapters.save(config, tensors, folder)
    tokenizer = loading.load_tokenizer(base)
    write_json(
        snakemake.output.manifest,
        {
            "chain": str(chain),
            "stage": chain.last.name,
            "kind": snakemake.params.kind,
            "seed": chain.last.seed,
            "prefix": [str(prefix) for prefix in chain.prefixes[:-1]],
            "base": read_json(base),
            **record,
            **adapter_files.UNTRAINED,
            "device": "cpu",
            "dtype": snakemake.params.dtype,
            "template_sha256": chat_template.template_sha256(tokenizer),
            "adapter_sha256": sha256(folder / adapter_files.WEIGHTS),
            "versions": versions(),
            "commit": os.environ.get("PERSONA_COLLAPSE_COMMIT", ""),
        },
    )
