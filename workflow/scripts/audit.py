"""Write the audit of every family of prompts."""

from persona_collapse.runtime.job import job

with job(snakemake, "audit"):
    from persona_collapse.data import prompt_audit
    from persona_collapse.data.questions import load_questions
    from persona_collapse.files import read_json, read_jsonl, write_json
    from persona_collapse.models import chat_template, loading
    from persona_collapse.tables_io import write_csv

    params = snakemake.params
    tokenizers = {
        model: loading.load_tokenizer(base)
        for model, base in zip(params.models, snakemake.input.bases, strict=True)
    }
    question = load_questions(params.questions)[0]["question"]
    lines, tokens = [], {}
    for model, tokenizer in tokenizers.items():
        for line, row in prompt_audit.prompts(tokenizer, params.personas, question):
            lines.append({"model": model} | line)
            tokens[f"{model}/sampling/{line['name']}"] = chat_template.describe(tokenizer, row)
    for path, stage in zip(snakemake.input.rows, params.stages, strict=True):
        model, tokenizer = stage["model"], tokenizers[stage["model"]]
        manifest = read_json(path.removesuffix(".jsonl") + ".manifest.json")
        rows = read_jsonl(path)
        # The first row, and for a coupling also the first negative, whose loss differs.
        chosen = {stage["name"]: rows[0]}
        if stage["contrasts"]:
            last = len(rows) - 1
            chosen = {
                f"{stage['name']} (positive)": rows[0],
                f"{stage['name']} (negative)": rows[last],
            }
        for name, row in chosen.items():
            line, encoded = prompt_audit.training_row(
                tokenizer,
                name,
                row["messages"],
                stage["settings"],
                supervise=manifest["supervise"],
                policy=manifest["system"],
                system=stage["system"],
                marker=params.marker,
            )
            if manifest.get("sensitive"):
                line["first_with_loss"] = line["last_with_loss"] = "(not shown)"
            else:
                tokens[f"{model}/training/{name}"] = chat_template.describe(tokenizer, encoded)
            lines.append({"model": model} | line)
    write_csv(snakemake.output.table, prompt_audit.table(lines))
    write_json(snakemake.output.tokens, tokens)
