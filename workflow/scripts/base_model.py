"""Find or fetch the base model and record what it is."""

from pathlib import Path
from tempfile import TemporaryDirectory

from persona_collapse.scripting import job

with job(snakemake, "base model", online="hub" in snakemake.params.source) as say:
    from persona_collapse import model_checks, models
    from persona_collapse.files import write_json
    from persona_collapse.plan import Plan

    output = Path(snakemake.output[0])
    source = snakemake.params.source
    folder = output.parent
    if "gguf" in source:
        models.convert_gguf(source["gguf"]["package"], folder, say)
    elif "demo" not in source:
        folder = models.fetch(source, say)
    manifest = models.manifest(folder, source)
    if "demo" not in source:
        with TemporaryDirectory() as scratch:
            draft = Path(scratch) / output.name
            write_json(draft, manifest)
            # No param: what a model can do is not what it is.
            facts = model_checks.facts(folder, models.load_config(draft))
            model_checks.check_plan(Plan(snakemake.config), facts)
            models.load_tokenizer(draft)
    write_json(output, manifest)
    models.note(output)
