"""Find or fetch the base model and record what it is."""

from pathlib import Path

from persona_collapse.scripting import job

with job(snakemake, "base model", online="hub" in snakemake.params.source) as say:
    from persona_collapse import gguf_files, model_checks, models
    from persona_collapse.files import write_json
    from persona_collapse.plan import Plan

    output = Path(snakemake.output[0])
    source = snakemake.params.source
    folder = output.parent
    if "gguf" in source:
        folder = gguf_files.expanded(source["gguf"]["package"], models.expand_gguf, say)
    elif "demo" not in source:
        folder = models.fetch(source, say)
    write_json(output, models.manifest(folder, source))
    models.note(output)
    if "demo" not in source:
        # No param: what a model can do is not what it is. Snakemake removes the record if it fails.
        facts = model_checks.facts(folder, models.load_config(output))
        model_checks.check_plan(Plan(snakemake.config), facts)
        models.load_tokenizer(output)
