"""Find or fetch a base model, record it, and check that its chat template can be used."""

from pathlib import Path

from persona_collapse.runtime.job import job

source, model = snakemake.params.source, snakemake.wildcards.model
# For random weights, only the tokenizer is fetched.
fetched = source.get("random", {}).get("tokenizer", source)
# Made by the job that pretrains the demo model.
made = {"demo", "demo_step"} & source.keys()

with job(snakemake, "base model", online="hub" in fetched) as say:
    from persona_collapse.data.questions import load_questions
    from persona_collapse.files import write_json
    from persona_collapse.models import chat_template, fetching, gguf, loading, random_model
    from persona_collapse.study import model_checks
    from persona_collapse.study.plan import Plan

    with model_checks.about(model):
        output = Path(snakemake.output.base)
        folder, note = output.parent, {}
        if "gguf" in source:
            folder = gguf.expanded(source["gguf"], fetching.expand_gguf, say)
        elif "random" in source:
            dtype, note = snakemake.params.dtype, {"note": random_model.NOTE}
            folder = random_model.write(source["random"], folder / "random", dtype, say)
        elif not made:
            folder = fetching.fetch(source, say)
        write_json(output, fetching.manifest(folder, source) | note)
        loading.note(output)
        # Not a param, because this check does not change the record. Snakemake removes the record if it
        # fails.
        plan = Plan(snakemake.config)
        if not made:
            model_checks.check(plan, model_checks.facts(folder, loading.load_config(output)), model)
        tokenizer = loading.load_tokenizer(output)
        if "gguf" in fetched:
            gguf.check_words(tokenizer)
        chat_template.check(tokenizer)
        chat_template.check_marker(tokenizer, snakemake.params.marker)
        for name, prompt in plan.all_prompts.items():
            chat_template.check_text(tokenizer, prompt, f"config: personas: {name}")
        for purpose, spec in plan.config["questions"].items():
            for question in load_questions(spec):
                where = f"config: questions: {purpose}: {question['id']}"
                chat_template.check_text(tokenizer, question["question"], where)
        for where, text in plan.writers_texts().items():
            chat_template.check_text(tokenizer, text, f"config: {where}")
        write_json(snakemake.output.template, chat_template.card(tokenizer))
