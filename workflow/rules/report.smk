# The report: one page, and its parts for snakemake --report.
# The tables that it shows, and those that its claims and figures use.
reported = sorted(
    {*literals.constant("report.page", "TABLES"), *scored}.union(
        *(figure.tables for figure in figures.values())
    )
)


# Measures of answers other than the marker, and the question that each answers.
counted = {
    name: MEASURES.get(name).title
    for name in plan.measures_of(model=False)
    if name != "markers"
}


def made_by(wildcards):
    """{table: the rule that makes it}."""
    tables = expand(results("tables/{table}.csv"), table=[*reported, *counted])
    return {
        table: rule.name
        for table in tables
        for rule in workflow.rules
        if rule.is_producer(table)
    }


rule report:
    input:
        bases=bases_used,
        tables=expand(results("tables/{table}.csv"), table=[*reported, *counted]),
        answers=results_of("markers/{chain}.parquet", "markers"),
        completions=results_of("completions/{chain}.parquet", "markers"),
        manifests=expand(
            results("models/{chain}/manifest.json"),
            chain=plan.adapted_chains,
        ),
        data=expand(results("data/{name}.manifest.json"), name=plan.data_used),
        figures=expand(results("figures/{figure}.svg"), figure=figures),
        template=resource("report/report.html.j2"),
        glossary=resource("report/glossary.yaml"),
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
        code=code_hash.of(*(f"report.figures.{name}" for name in figures)),
        made_by=made_by,
        counted=counted,
    message:
        "Writing the report"
    script:
        "../scripts/report.py"
