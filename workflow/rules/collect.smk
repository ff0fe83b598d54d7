# One target a stage, so that a run can stop where the user likes.


rule fetch:
    # All that may need the network: on a machine that has it. What follows runs without.
    input:
        results("base/model.json"),
        expand(results("data/{name}.jsonl"), name=fetched),
    localrule: True


rule adapters:
    input:
        expand(
            results("models/{chain}/manifest.json"),
            chain=plan.trained_chains,
        ),
    localrule: True


rule behaviour:
    input:
        measured("markers/{chain}.csv", "markers"),
    localrule: True


rule geometry_dumps:
    input:
        measured("activations/{chain}.safetensors", "geometry"),
    localrule: True


rule tables:
    input:
        expand(results("tables/{table}.csv"), table=REPORTED),
    localrule: True
