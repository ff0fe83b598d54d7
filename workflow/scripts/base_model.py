"""Find or fetch the base model and record what it is."""

from pathlib import Path

from persona_collapse.scripting import job

with job(snakemake, "base model", online="hub" in snakemake.params.source) as say:
    from persona_collapse import models
    from persona_collapse.files import write_json

    output = Path(snakemake.output[0])
    source = snakemake.params.source
    folder = output.parent
    if "gguf" in source:
        models.convert_gguf(source["gguf"]["package"], folder, say)
    elif "demo" not in source:
        folder = models.fetch(source, say)
    write_json(output, models.manifest(folder, source))
    models.note(output)
