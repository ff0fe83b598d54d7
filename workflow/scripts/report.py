"""Render the report."""

from pathlib import Path

from persona_collapse.scripting import job

with job(snakemake, "report"):
    import yaml
    from persona_collapse import report
    from persona_collapse.files import read_csv, read_json, read_parquet, write_text
    from persona_collapse.tables import headline_cell

    given, params = snakemake.input, snakemake.params
    sampled = {"answers": 0, "tokens": 0}

    def completions():
        """Each chain's table in turn, counted: the answers of hundreds would fill the memory."""
        for path in given.completions:
            table = read_parquet(path)
            sampled["answers"] += len(table)
            sampled["tokens"] += int(table["n_tokens"].sum())
            yield table

    samples = report.sample_answers(completions(), params.marker)
    base = read_json(given.base)
    tables = {Path(path).stem: read_csv(path) for path in given.tables}
    figures = [
        report.Figure(name, title, reading, Path(svg), Path(svg).with_suffix(".csv"))
        for (name, (title, reading)), svg in zip(params.figures.items(), given.figures, strict=True)
    ]
    costs = report.costs(Path(snakemake.output[0]).parents[1], params.run)
    page = report.render(
        report.Inputs(
            run=params.run,
            scale=params.scale,
            marker=params.marker,
            model={"label": report.model_label(base)},
            data=[read_json(path) for path in given.data],
            figures=figures,
            samples=samples,
            completions=sampled["answers"],
            margins=params.config["statistics"]["margins"],
            config=yaml.safe_dump(params.config, sort_keys=False, allow_unicode=True),
            provenance=report.provenance(read_json(given.manifests[0]), base),
            sources=report.sources(list(given.tables), params.made_by),
            costs=costs,
            spent=report.spent(costs, tables["training"], sampled["tokens"]),
            **headline_cell(tables["headline"]),
            tables=tables,
        )
    )
    write_text(snakemake.output[0], page)
