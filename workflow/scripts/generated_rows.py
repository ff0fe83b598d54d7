"""Pair the answers of a generated data set into rows."""

from persona_collapse.runtime.job import job

with job(snakemake, f"rows of {snakemake.wildcards.data}") as say:
    from persona_collapse.data import generated
    from persona_collapse.data.questions import load_questions
    from persona_collapse.files import read_json, sha256_text, write_json, write_jsonl
    from persona_collapse.parquet_files import read_parquet

    params = snakemake.params
    answers = read_parquet(snakemake.input.answers)
    forbidden = read_json(snakemake.input.template)["controls"]
    rows, left = generated.rows(
        answers,
        params.system,
        params.marker,
        forbidden,
        params.length_ratio,
        load_questions(params.asked),
    )
    say(f"{len(rows)} rows; left out: {left}")
    write_jsonl(snakemake.output.rows, rows)
    columns = list(params.system)
    write_json(
        snakemake.output.record,
        {
            "answers": len(answers),
            "rows": len(rows),
            "left_out": left,
            "mean_tokens": {c: sum(r["tokens"][c] for r in rows) / len(rows) for c in columns},
            # Of the prompts of the config, where `{statement}` stands for what a row's prompt had.
            generated.PROMPT_HASHES: {c: sha256_text(p) for c, p in params.system.items()},
        },
    )
