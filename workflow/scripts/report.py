"""Render the report."""

from pathlib import Path

from persona_collapse.runtime.job import job

with job(snakemake, "report"):
    import yaml
    from persona_collapse.analysis.views import headline_cell
    from persona_collapse.files import read_json, write_text
    from persona_collapse.parquet_files import read_parquet
    from persona_collapse.report import rendering
    from persona_collapse.tables_io import read_csv

    given, params = snakemake.input, snakemake.params
    sampled = {"answers": 0, "tokens": 0}

    def answers():
        """What is known of each chain's answers, in turn, counted."""
        for path in given.answers:
            table = read_parquet(path)
            sampled["answers"] += len(table)
            sampled["tokens"] += int(table["n_tokens"].sum())
            yield table

    texts = {Path(path).stem: path for path in given.completions}
    samples = rendering.sample_answers(answers(), lambda chain: read_parquet(texts[chain]))
    base = read_json(given.base)
    tables = {Path(path).stem: read_csv(path) for path in given.tables}
    figures = [
        rendering.Figure(name, title, reading, Path(svg), Path(svg).with_suffix(".csv"))
        for (name, (title, reading)), svg in zip(params.figures.items(), given.figures, strict=True)
    ]
    costs = rendering.costs(Path(snakemake.output[0]).parents[1], params.run)
    page = rendering.render(
        rendering.Inputs(
            run=params.run,
            judge=params.judge,
            marker=params.marker,
            model={"label": rendering.model_label(base)},
            data=[read_json(path) for path in given.data],
            figures=figures,
            samples=samples,
            completions=sampled["answers"],
            margins=params.config["statistics"]["margins"],
            config=yaml.safe_dump(params.config, sort_keys=False, allow_unicode=True),
            provenance=rendering.provenance(read_json(given.manifests[0]), base),
            sources=rendering.sources(list(given.tables), params.made_by),
            costs=costs,
            spent=rendering.spent(costs, tables["training"], sampled["tokens"]),
            **headline_cell(tables["headline"]),
            tables=tables,
        )
    )
    write_text(snakemake.output[0], page)
