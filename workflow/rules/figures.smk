# Figures: drawing is apart from computing, so restyling one retrains nothing.


rule figure:
    input:
        unpack(figure_tables),
        grid=results("tables/grid.csv"),
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
