# Tables. Every number of the report is in one of them.


rule plan:
    output:
        results("tables/grid.csv"),
    log:
        logs("plan"),
    benchmark:
        benchmarks("plan")
    conda:
        "../../envs/analysis.yaml"
    params:
        rows=configuration.grid(config).to_dict("records"),
    message:
        "Writing the grid of conditions and chains"
    script:
        "../scripts/plan.py"


rule marker_tables:
    input:
        grid=results("tables/grid.csv"),
        markers=measured("markers/{chain}.csv", "markers"),
    output:
        rates=results("tables/marker_rates.csv"),
        tests=results("tables/marker_tests.csv"),
        leakage=results("tables/leakage.csv"),
    log:
        logs("marker_tables"),
    benchmark:
        benchmarks("marker_tables")
    conda:
        "../../envs/analysis.yaml"
    params:
        code=code("tables", "statistics"),
    message:
        "Marker rates, tests and leakage"
    script:
        "../scripts/marker_tables.py"


rule geometry:
    input:
        grid=results("tables/grid.csv"),
        activations=measured("activations/{chain}.safetensors", "geometry"),
    output:
        geometry=results("tables/geometry.csv"),
        cosines=results("tables/cosines.csv"),
    log:
        logs("geometry"),
    benchmark:
        benchmarks("geometry")
    conda:
        "../../envs/analysis.yaml"
    resources:
        mem_mb=4000,
    params:
        settings=config["statistics"],
        code=code("tables", "statistics", "geometry", "activations"),
    message:
        "Persona geometry: cosines, intervals and tests"
    script:
        "../scripts/geometry.py"


rule training_table:
    input:
        expand(
            results("models/{chain}/manifest.json"),
            chain=configuration.trained_chains(config),
        ),
    output:
        curves=results("tables/training_curves.csv"),
        runs=results("tables/training.csv"),
    log:
        logs("training_table"),
    benchmark:
        benchmarks("training_table")
    conda:
        "../../envs/analysis.yaml"
    message:
        "Loss curves and training records"
    script:
        "../scripts/training_table.py"


rule scorecard:
    input:
        claims=config["claims"],
        rates=results("tables/marker_rates.csv"),
        geometry=results("tables/geometry.csv"),
    output:
        results("tables/scorecard.csv"),
    log:
        logs("scorecard"),
    benchmark:
        benchmarks("scorecard")
    conda:
        "../../envs/analysis.yaml"
    params:
        scale=config["scale"],
        headline=headline,
        fdr=config["statistics"]["fdr"],
        code=code("claims", "tables", "statistics"),
    message:
        "Scoring the study's claims"
    script:
        "../scripts/scorecard.py"
