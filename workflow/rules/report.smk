# The report: one page, and its parts for snakemake --report.


rule report:
    input:
        base=results("base/model.json"),
        tables=expand(results("tables/{table}.csv"), table=REPORTED),
        completions=measured("completions/{chain}.parquet", "markers"),
        manifests=expand(
            results("models/{chain}/manifest.json"),
            chain=configuration.trained_chains(config),
        ),
        data=expand(
            results("data/{name}.manifest.json"), name=configuration.data_used(config)
        ),
        figures=expand(results("figures/{figure}.svg"), figure=FIGURES),
        template=workflow.source_path("../resources/report/report.html.j2"),
        style=workflow.source_path("../resources/report/style.css"),
    output:
        results("report.html"),
    log:
        logs("report"),
    benchmark:
        benchmarks("report")
    conda:
        "../../envs/analysis.yaml"
    params:
        run=config["run"],
        scale=config["scale"],
        marker=config["marker"],
        config=config,
        headline=headline,
        figures={name: figure["text"] for name, figure in FIGURES.items()},
        code=code("report", "tables"),
    message:
        "Writing the report"
    script:
        "../scripts/report.py"
