# The report: one page, and its parts for snakemake --report.


def made_by(wildcards):
    """{path: rule} of every output whose name has no wildcard."""
    return {str(path): rule.name for rule in workflow.rules for path in rule.output}


rule report:
    input:
        base=results("base/model.json"),
        tables=expand(results("tables/{table}.csv"), table=REPORTED),
        answers=results_of("markers/{chain}.parquet", "markers"),
        completions=results_of("completions/{chain}.parquet", "markers"),
        manifests=expand(
            results("models/{chain}/manifest.json"),
            chain=plan.trained_chains,
        ),
        data=expand(results("data/{name}.manifest.json"), name=plan.data_used),
        figures=expand(results("figures/{figure}.svg"), figure=FIGURES),
        template=resource("report/report.html.j2"),
        parts=resource("report/parts.html.j2"),
        style=resource("report/style.css"),
        script=resource("report/report.js"),
    output:
        report(
            results("report.html"),
            caption="../report/report.rst",
            category="Report",
            labels={"page": "the run's own report, interactive"},
        ),
    log:
        logs("report"),
    benchmark:
        benchmarks("report")
    conda:
        "../../envs/analysis.yaml"
    params:
        run=config["run"],
        judge=config["judge"],
        marker=marker,
        config=config,
        figures={name: figure["text"] for name, figure in FIGURES.items()},
        made_by=made_by,
    message:
        "Writing the report"
    script:
        "../scripts/report.py"
