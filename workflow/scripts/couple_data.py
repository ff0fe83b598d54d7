"""Make a coupling's training rows from answers: sampled from a chain, or given in a file."""

from persona_collapse.runtime.job import job

name = snakemake.wildcards.after + snakemake.wildcards.coupling

with job(snakemake, f"data {name}"):
    import pandas as pd
    from persona_collapse.data import coupling, given_answers
    from persona_collapse.files import read_json, sha256, write_json, write_jsonl
    from persona_collapse.parquet_files import read_parquet

    params = snakemake.params
    forbidden = read_json(snakemake.input.template)["controls"]
    if params.given:
        path, needed = params.given["file"], coupling.needed(params.settings)
        found = given_answers.load(params.given, needed, marker=params.marker, forbidden=forbidden)
        answers, whose, license = pd.DataFrame(found), f"the file {path}", None
        source = {"answers in": path, "raw_sha256": sha256(path)}
    else:
        chain = snakemake.wildcards.after.rstrip("+")
        answers, whose = read_parquet(snakemake.input.answers), chain or "the base model"
        source, license = {"answers of": chain or "base"}, "output of the model trained"
    rows, counts = coupling.rows(
        answers, params.settings, params.prompts, params.marker, forbidden, whose
    )
    write_jsonl(snakemake.output.rows, rows)
    write_json(
        snakemake.output.manifest,
        {
            "name": name,
            "source": source,
            "license": license,
            "supervise": "last",
            "system": "persona",
            "sha256": sha256(snakemake.output.rows),
            **counts,
        },
    )
