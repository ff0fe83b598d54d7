"""Write the prompts for defences: the geometry's personas with questions that are not measured."""

from persona_collapse.runtime.job import job

with job(snakemake, "persona prompts"):
    from persona_collapse.data import persona_prompts
    from persona_collapse.files import write_json, write_jsonl

    personas, questions = snakemake.params.personas, snakemake.params.questions
    write_jsonl(snakemake.output.rows, persona_prompts.rows(personas, questions))
    write_json(
        snakemake.output.manifest, persona_prompts.manifest(snakemake.output.rows, questions)
    )
