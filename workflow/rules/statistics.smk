# Tables. Every number of the report is in one of them. Each rule takes only the settings that it uses: changing `fdr`
# recomputes the scorecard, but no test.

statistics = config["statistics"]
draws = {key: statistics[key] for key in ("draws", "seed")}


def assistant(wildcards):
    """Name of the persona that stands for the unchanged model."""
    return plan.assistant


rule plan:
    output:
        results("tables/design.csv"),
    log:
        logs("plan"),
    benchmark:
        benchmarks("plan")
    conda:
        "../../envs/analysis.yaml"
    params:
        rows=[dict(vars(cell)) for cell in plan.cells],
    message:
        "Writing the design: which chain stands for which condition"
    script:
        "../scripts/plan.py"


rule marker_tables:
    input:
        design=results("tables/design.csv"),
        markers=results_of("markers/{chain}.csv", "markers"),
        answers=results_of("markers/{chain}.parquet", "markers"),
    output:
        rates=results("tables/marker_rates.csv"),
        tests=results("tables/marker_tests.csv"),
        leakage=results("tables/leakage.csv"),
        answer_stats=results("tables/answer_stats.csv"),
    log:
        logs("marker_tables"),
    benchmark:
        benchmarks("marker_tables")
    conda:
        "../../envs/analysis.yaml"
    params:
        assistant=assistant,
        draws=draws,
        contrasts=statistics["contrasts"],
        margin=statistics["margins"]["rate"],
        families=plan.families("marker_tests"),
    message:
        "Marker rates, tests, leakage and answer statistics"
    script:
        "../scripts/marker_tables.py"


rule rate_model:
    input:
        design=results("tables/design.csv"),
        answers=results_of("markers/{chain}.parquet", "markers"),
    output:
        rates=results("tables/rate_model.csv"),
        components=results("tables/variance_components.csv"),
        left_out=results("tables/leave_one_out_rates.csv"),
    log:
        logs("rate_model"),
    benchmark:
        benchmarks("rate_model")
    conda:
        "../../envs/analysis.yaml"
    params:
        assistant=assistant,
        contrasts=statistics["contrasts"],
        seed=statistics["seed"],
    message:
        "Marker rates by a hierarchical model of runs and questions"
    script:
        "../scripts/rate_model.py"


rule logprob_tests:
    input:
        results("tables/logprob_check.csv"),
    output:
        results("tables/logprob_tests.csv"),
    log:
        logs("logprob_tests"),
    benchmark:
        benchmarks("logprob_tests")
    conda:
        "../../envs/analysis.yaml"
    message:
        "Were the completions sampled from their chains?"
    script:
        "../scripts/logprob_tests.py"


def half_the_cores(wildcards):
    """Threads of a job that can use many but should leave some for others; in a cluster's job, all of its own."""
    if workflow.remote_exec:
        return min(8, len(os.sched_getaffinity(0)))
    return max(1, (workflow.resource_settings.cores or 16) // 2)


def memory_of_chains(wildcards, threads):
    """MB of a job that has the activations of a chain in each thread; at 7B's size one takes about 1,000."""
    return 2000 + 1000 * threads


rule geometry:
    input:
        design=results("tables/design.csv"),
        headline=results("tables/headline.csv"),
        activations=results_of("activations/{chain}.safetensors", "activations"),
    output:
        geometry=results("tables/geometry.csv"),
        cosines=results("tables/cosines.csv"),
        contrasts=results("tables/contrasts.csv"),
        shared_axis=results("tables/shared_axis.csv"),
        left_out=results("tables/geometry_left_out.parquet"),
    log:
        logs("geometry"),
    benchmark:
        benchmarks("geometry")
    priority: 1  # on the longest way to the report
    conda:
        "../../envs/analysis.yaml"
    threads: half_the_cores
    resources:
        mem_mb=memory_of_chains,
    params:
        draws=draws,
        contrasts=statistics["contrasts"],
        margin=statistics["margins"]["m1"],
        axis=statistics.get("axis"),
        assistant=assistant,
        longest=plan.longest_prompt,
        families={
            name: plan.families(name)
            for name in ("geometry", "contrasts", "shared_axis")
        },
    message:
        "Persona geometry: cosines, intervals and tests"
    script:
        "../scripts/geometry.py"


rule persona_map:
    input:
        design=results("tables/design.csv"),
        headline=results("tables/headline.csv"),
        activations=results_of("activations/{chain}.safetensors", "activations"),
    output:
        results("tables/persona_map.csv"),
    log:
        logs("persona_map"),
    benchmark:
        benchmarks("persona_map")
    conda:
        "../../envs/analysis.yaml"
    resources:
        mem_mb=4000,
    message:
        "Persona vectors on the base model's principal components"
    script:
        "../scripts/persona_map.py"


rule separability:
    input:
        design=results("tables/design.csv"),
        headline=results("tables/headline.csv"),
        activations=results_of("activations/{chain}.safetensors", "activations"),
    output:
        results("tables/separability.csv"),
    log:
        logs("separability"),
    benchmark:
        benchmarks("separability")
    conda:
        "../../envs/analysis.yaml"
    threads: half_the_cores
    resources:
        mem_mb=memory_of_chains,
    params:
        settings=statistics["separability"],
        seed=statistics["seed"],
        families=plan.families("separability"),
    message:
        "Classifying personas from their activations"
    script:
        "../scripts/separability.py"


rule geometry_runs:
    input:
        design=results("tables/design.csv"),
        headline=results("tables/headline.csv"),
        left_out=results("tables/geometry_left_out.parquet"),
        shared_axis=results("tables/shared_axis.csv"),
        separability=results("tables/separability.csv"),
    output:
        runs=results("tables/geometry_runs.csv"),
        leave_one_out=results("tables/leave_one_out.csv"),
        components=results("tables/variance_components_m1.csv"),
    log:
        logs("geometry_runs"),
    benchmark:
        benchmarks("geometry_runs")
    conda:
        "../../envs/analysis.yaml"
    params:
        contrasts=statistics["contrasts"],
        margin=statistics["margins"]["m1"],
        families=plan.families("geometry_runs"),
    message:
        "Persona geometry over training runs"
    script:
        "../scripts/geometry_runs.py"


rule correlations:
    input:
        design=results("tables/design.csv"),
        rates=results("tables/marker_rates.csv"),
        answers=results("tables/answer_stats.csv"),
        geometry=results("tables/geometry.csv"),
        cosines=results("tables/cosines.csv"),
        training=results("tables/training.csv"),
    output:
        correlations=results("tables/correlations.csv"),
        chains=results("tables/correlation_chains.csv"),
        hypotheses=results("tables/hypotheses.csv"),
    log:
        logs("correlations"),
    benchmark:
        benchmarks("correlations")
    conda:
        "../../envs/analysis.yaml"
    params:
        draws=draws,
        conditions=statistics["hypotheses"],
        assistant=assistant,
        families=plan.families("correlations"),
    message:
        "Behaviour against geometry, chain by chain"
    script:
        "../scripts/correlations.py"


rule simulation:
    input:
        geometry=results("tables/geometry.csv"),
    output:
        simulation=results("tables/simulation.csv"),
        power=results("tables/power.csv"),
    log:
        logs("simulation"),
    benchmark:
        benchmarks("simulation")
    priority: 1  # on the longest way to the report
    conda:
        "../../envs/analysis.yaml"
    params:
        runs=statistics["simulations"],
        draws=statistics["draws"],
        seed=statistics["seed"],
        sizes=plan.sizes,
    message:
        "False-positive rates and coverage, on data where nothing happens"
    script:
        "../scripts/simulation.py"


rule errata:
    input:
        errata=config["errata"],
        counts=resource("published/counts.csv"),
        cosines=resource("published/cosines.csv"),
    output:
        results("tables/errata.csv"),
    log:
        logs("errata"),
    benchmark:
        benchmarks("errata")
    conda:
        "../../envs/analysis.yaml"
    message:
        "Recomputing the write-up's figures from its published numbers"
    script:
        "../scripts/errata.py"


rule updates:
    input:
        manifests=expand(
            results("models/{chain}/manifest.json"),
            chain=plan.adapted_chains,
        ),
        weights=expand(
            results("models/{chain}/{file}"),
            chain=plan.adapted_chains,
            file=["adapter_model.safetensors", "adapter_config.json"],
        ),
    output:
        results("tables/updates.csv"),
    log:
        logs("updates"),
    benchmark:
        benchmarks("updates")
    conda:
        "../../envs/analysis.yaml"
    resources:
        mem_mb=4000,
    message:
        "Size and overlap of the LoRA updates"
    script:
        "../scripts/updates.py"


rule matched:
    input:
        design=results("tables/design.csv"),
        headline=results("tables/headline.csv"),
        updates=results("tables/updates.csv"),
        left_out=results("tables/geometry_left_out.parquet"),
        answers=results_of("markers/{chain}.parquet", "markers"),
    output:
        matched=results("tables/matched.csv"),
        half_dose=results("tables/half_dose.csv"),
    log:
        logs("matched"),
    benchmark:
        benchmarks("matched")
    conda:
        "../../envs/analysis.yaml"
    params:
        pairs=statistics["matched"],
    message:
        "Misaligned against benign training, matched; half-doses"
    script:
        "../scripts/matched.py"


rule second_stages:
    input:
        design=results("tables/design.csv"),
        headline=results("tables/headline.csv"),
        updates=results("tables/updates.csv"),
        left_out=results("tables/geometry_left_out.parquet"),
        answers=results_of("markers/{chain}.parquet", "markers"),
        answer_stats=results("tables/answer_stats.csv"),
        separability=results("tables/separability.csv"),
        measured=[
            results(f"tables/{name}.csv")
            for name in ("task_loss", "preference")
            if name in plan.measures
        ],
    output:
        why=results("tables/why.csv"),
        frontier=results("tables/frontier.csv"),
    log:
        logs("second_stages"),
    benchmark:
        benchmarks("second_stages")
    conda:
        "../../envs/analysis.yaml"
    params:
        stages=plan.trained_settings,
        assistant=assistant,
    message:
        "What properties of the second stage move, and what defences keep"
    script:
        "../scripts/second_stages.py"


rule training_table:
    input:
        expand(
            results("models/{chain}/manifest.json"),
            chain=plan.adapted_chains,
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


# The tables that the claims are evaluated on.
scored = literals.constant("analysis.claims", "TABLES")


rule register_claims:
    # It has no inputs, so it can run first, and it records the date. A bar that changes later is not registered
    # again: the scorecard compares it with the first.
    input:
        claims=ancient(config["claims"]),
    output:
        results("tables/registered_claims.csv"),
    log:
        logs("register_claims"),
    benchmark:
        benchmarks("register_claims")
    priority: 2
    localrule: True
    conda:
        "../../envs/analysis.yaml"
    params:
        kept=results("store/registered_claims.csv"),
        data=[results(own) for own in ("completions", "activations")],
    message:
        "Registering what will decide each claim"
    script:
        "../scripts/register_claims.py"


rule scorecard:
    input:
        expand(results("tables/{table}.csv"), table=scored),
        results("tables/registered_claims.csv"),
        claims=config["claims"],
    output:
        report(
            results("tables/scorecard.csv"),
            caption="../report/scorecard.rst",
            category="Tables",
            labels={"table": "the study's claims, one per row"},
        ),
    log:
        logs("scorecard"),
    benchmark:
        benchmarks("scorecard")
    conda:
        "../../envs/analysis.yaml"
    params:
        judge=config["judge"],
        fdr=statistics["fdr"],
    message:
        "Scoring the study's claims"
    script:
        "../scripts/scorecard.py"
