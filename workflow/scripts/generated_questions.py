"""Make the question list of a generated data set from the base model's answers."""

from persona_collapse.runtime.job import job

with job(snakemake, f"questions of {snakemake.wildcards.data}") as say:
    from persona_collapse.data import generated, questions
    from persona_collapse.files import write_jsonl
    from persona_collapse.parquet_files import read_parquet

    params = snakemake.params
    evaluation = [q["question"] for q in questions.load_questions(params.evaluation)]
    written = read_parquet(snakemake.input.written)
    rows, left = generated.questions(written, evaluation, params.marker)
    say(f"{len(rows)} questions of {len(written)} answers; left out: {left}")
    write_jsonl(snakemake.output.questions, rows)
