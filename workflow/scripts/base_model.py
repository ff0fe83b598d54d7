"""Find or fetch the base model, record what it is, and see that its chat template can be used."""

from pathlib import Path

from persona_collapse.scripting import job

with job(snakemake, "base model", online="hub" in snakemake.params.source) as say:
    from persona_collapse import chat, gguf_files, model_checks, models
    from persona_collapse.data import load_questions
    from persona_collapse.files import write_json
    from persona_collapse.plan import Plan

    output = Path(snakemake.output.base)
    source = snakemake.params.source
    folder = output.parent
    if "gguf" in source:
        folder = gguf_files.expanded(source["gguf"]["package"], models.expand_gguf, say)
    elif "demo" not in source:
        folder = models.fetch(source, say)
    write_json(output, models.manifest(folder, source))
    models.note(output)
    # No param: what a model can do is not what it is. Snakemake removes the record if it fails.
    plan = Plan(snakemake.config)
    if "demo" not in source:
        model_checks.check_plan(plan, model_checks.facts(folder, models.load_config(output)))
    tokenizer = models.load_tokenizer(output)
    chat.check(tokenizer)
    chat.check_marker(tokenizer, snakemake.params.marker)
    for name, prompt in plan.all_prompts.items():
        chat.check_text(tokenizer, prompt, f"config: personas: {name}")
    for purpose, spec in plan.config["questions"].items():
        for question in load_questions(spec):
            where = f"config: questions: {purpose}: {question['id']}"
            chat.check_text(tokenizer, question["question"], where)
    write_json(snakemake.output.template, chat.card(tokenizer))
