# Figures: drawing is apart from computing, so restyling one retrains nothing.


def figure_tables(wildcards):
    """Tables of a figure."""
    return {
        k: results(f"tables/{v}.csv")
        for k, v in FIGURES[wildcards.figure]["tables"].items()
    }


def figure_text(wildcards):
    """Title of a figure, and how to read it."""
    return FIGURES[wildcards.figure]["text"]


def figure_labels(wildcards):
    """What Snakemake's own report lists a figure by."""
    return {"figure": figure_text(wildcards)[0]}


rule figure:
    input:
        unpack(figure_tables),
        grid=results("tables/design.csv"),
        headline=results("tables/headline.csv"),
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
        text=figure_text,
    message:
        "Drawing {wildcards.figure}"
    script:
        "../scripts/figure.py"
