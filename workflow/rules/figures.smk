# Figures: drawing is separate from computing, so restyling one retrains nothing.
from persona_collapse.report.figures import catalogue

# A figure of a measure's table needs the measure.
untaken = set(MEASURES.names()) - set(plan.measures)
figures = {
    name: one for name, one in catalogue().items() if not untaken & set(one.tables)
}


wildcard_constraints:
    figure=one_of(figures),


def figure_tables(wildcards):
    """Tables of a figure."""
    return expand(results("tables/{table}.csv"), table=figures[wildcards.figure].tables)


def figure_labels(wildcards):
    """Labels of a figure in Snakemake's own report."""
    return {"figure": figures[wildcards.figure].title}


def figure_reading(wildcards):
    """How to read a figure."""
    return figures[wildcards.figure].reading


def figure_code(wildcards):
    """Hash of a figure's own code: the script does not import the figure by name."""
    return code_hash.of(f"report.figures.{wildcards.figure}")


rule figure:
    input:
        figure_tables,
    output:
        svg=report(
            results("figures/{figure}.svg"),
            caption="../report/figure.rst",
            category="Figures",
            labels=figure_labels,
        ),
        png=results("figures/{figure}.png"),
        csv=results("figures/{figure}.csv"),
    log:
        logs("figures/{figure}"),
    benchmark:
        benchmarks("figures/{figure}")
    conda:
        "../../envs/analysis.yaml"
    params:
        reading=figure_reading,
        code=figure_code,
    message:
        "Drawing {wildcards.figure}"
    script:
        "../scripts/figure.py"
