"""Render the report."""

from pathlib import Path

from persona_collapse.runtime.job import job

with job(snakemake, "report"):
    import os

    import yaml
    from persona_collapse.chains import BASE
    from persona_collapse.files import read_json, write_text
    from persona_collapse.parquet_files import read_parquet
    from persona_collapse.report import answers, page, provenance
    from persona_collapse.report import costs as costing
    from persona_collapse.tables_io import read_csv

    given, params = snakemake.input, snakemake.params
    sampled = {"answers": 0, "tokens": 0}

    def counted():
        """Yield the scored answers of each chain in turn, and count them."""
        for path in given.answers:
            table = read_parquet(path)
            sampled["answers"] += len(table)
            sampled["tokens"] += int(table["n_tokens"].sum())
            yield table

    texts = {Path(path).stem: path for path in given.completions}
    samples = answers.sample_answers(counted(), lambda chain: read_parquet(texts[chain]))
    bases = {Path(path).parent.name: read_json(path) for path in given.bases}
    base = bases[BASE]
    first = read_json(given.manifests[0]) if given.manifests else None
    tables = {Path(path).stem: read_csv(path) for path in given.tables}
    costs = costing.costs(Path(snakemake.output[0]).parents[1], params.run)
    html = page.render(
        page.Inputs(
            run=params.run,
            judge=params.judge,
            marker=params.marker,
            model={"label": provenance.models_label(bases), "note": base.get("note", "")},
            data=[read_json(path) for path in given.data],
            figures={Path(path).stem: Path(path) for path in given.figures},
            samples=samples,
            completions=sampled["answers"],
            margins=params.config["statistics"]["margins"],
            config=yaml.safe_dump(params.config, sort_keys=False, allow_unicode=True),
            commands=provenance.commands(os.environ["PERSONA_COLLAPSE_COMMAND"], params.config),
            provenance=provenance.provenance(first, base),
            sources=provenance.sources(list(given.tables), params.made_by),
            costs=costs,
            spent=costing.spent(costs, tables["training"], sampled["tokens"]),
            tables=tables,
            counted=params.counted,
        )
    )
    write_text(snakemake.output[0], html)
