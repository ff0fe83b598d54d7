# One target per stage of the workflow, so that a run can stop at any of them. Each also registers the claims' bars,
# which is to happen before there are data.
bars = results("tables/registered_claims.csv")


# Data sets of the config that the run trains on. Rows of couplings are made later, from sampled answers.
fetched = [name for name in plan.data_used if name in config["data"]]


# Measures with a table of their own.
tabled = [name for name in plan.measures if name not in ("markers", "activations")]


rule fetch:
    # Everything that may need the network; run this on a machine that has it. Later targets run offline.
    input:
        bars,
        bases_used,
        expand(results("data/{name}.jsonl"), name=fetched),
        expand(results("models/{chain}/manifest.json"), chain=imported),
    localrule: True


rule adapters:
    input:
        bars,
        expand(
            results("models/{chain}/manifest.json"),
            chain=plan.trained_chains,
        ),
    localrule: True


rule behaviour:
    input:
        bars,
        results_of("markers/{chain}.csv", "markers"),
    localrule: True


rule geometry_dumps:
    input:
        bars,
        results_of("activations/{chain}.safetensors", "activations"),
    localrule: True


rule export:
    input:
        bars,
        results_of("export/{chain}", "activations"),
    localrule: True


rule tables:
    input:
        expand(results("tables/{table}.csv"), table=[*reported, *tabled]),
    localrule: True
