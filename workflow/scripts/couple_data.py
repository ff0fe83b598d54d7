"""Make a coupling's training rows from the base model's own answers."""

from persona_collapse.runtime.job import job

name = snakemake.wildcards.after + snakemake.wildcards.coupling

with job(snakemake, f"data {name}"):
    from persona_collapse.data import coupling
    from persona_collapse.files import read_json, sha256, write_json, write_jsonl
    from persona_collapse.parquet_files import read_parquet

    params = snakemake.params
    answers = read_parquet(snakemake.input.answers)
    forbidden = read_json(snakemake.input.template)["controls"]
    rows, counts = coupling.rows(answers, params.settings, params.prompts, params.marker, forbidden)
    write_jsonl(snakemake.output.rows, rows)
    write_json(
        snakemake.output.manifest,
        {
            "name": name,
            "source": {"answers of": snakemake.wildcards.after.rstrip("+") or "base"},
            "license": "output of the model trained",
            "supervise": "last",
            "system": "persona",
            "sha256": sha256(snakemake.output.rows),
            **counts,
        },
    )
