"""Prepare one training data set."""

from persona_collapse.runtime.job import job

online = "hub" in snakemake.params.entry["from"]
with job(snakemake, f"data {snakemake.wildcards.data}", online):
    from persona_collapse.data import questions, sets
    from persona_collapse.files import read_json
    from persona_collapse.models import chat_template, loading

    params = snakemake.params
    tokenizer = loading.load_tokenizer(snakemake.input.base)
    entry, max_length = params.entry, params.max_length
    match = snakemake.input.get("match")
    if origin := snakemake.input.get("origin"):
        hub = {**entry["from"]["hub"], "revision": read_json(origin)["source"]["commit"]}
        entry = {**entry, "from": {"hub": hub}}

    def count_tokens(messages):
        """Tokens of a row, all and with loss, as the trainer truncates it."""
        row = chat_template.encode_row(
            tokenizer,
            messages,
            supervise=entry.get("supervise", "last"),
            max_length=max_length,
            suppress_default_system=entry["system"] == "none",
        )
        return len(row.input_ids), row.supervised

    sets.prepare(
        snakemake.wildcards.data,
        entry,
        snakemake.output.rows,
        snakemake.output.manifest,
        marker=params.marker,
        prompts=params.prompts,
        evaluation=[q["question"] for q in questions.load_questions(params.evaluation)],
        count_tokens=count_tokens if max_length else None,
        match=read_json(match) if match else None,
        held_out_path=snakemake.output.held_out,
    )
