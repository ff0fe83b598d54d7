# The base models, the questions and the training data.


# Files of the demo model, and of the models that are checkpoints of its pretraining.
demo_files = [
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "pretraining.json",
]


rule pretrain_demo:
    input:
        world=config["model"].get("demo", {}).get("world", []),
    output:
        expand(
            results("bases/{demo}/{file}"),
            demo=[chains.BASE, *plan.demo_steps],
            file=demo_files,
        ),
    log:
        logs("pretrain_demo"),
    benchmark:
        benchmarks("pretrain_demo")
    priority: 6  # all except a few small jobs wait for it
    conda:
        "../../envs/train.yaml"
    threads: 2
    resources:
        mem_mb=3000,
    params:
        settings=config["model"].get("demo"),
        checkpoints=plan.demo_steps,
        prompts=plan.demo_prompts,
        marker=marker,
    message:
        "Pretraining the demo model"
    script:
        "../scripts/pretrain_demo.py"


def base_model_files(wildcards):
    """Files that a base model is made from, if rules make them."""
    made = {"demo", "demo_step"} & plan.models[wildcards.model].keys()
    return (
        expand(results("bases/{model}/{file}"), file=demo_files, **wildcards)
        if made
        else []
    )


def model_source(wildcards):
    """Source of a base model, and how its chat template is used."""
    return plan.models[wildcards.model]


def model_dtype(wildcards):
    """Dtype of random weights; None for a model that is fetched."""
    return config["dtype"] if "random" in plan.models[wildcards.model] else None


rule base_model:
    input:
        base_model_files,
    output:
        base=results("bases/{model}/model.json"),
        template=results("bases/{model}/template.json"),
    log:
        logs("base_model/{model}"),
    benchmark:
        benchmarks("base_model/{model}")
    # On a cluster this runs on the login node, because compute nodes can seldom reach the hub.
    localrule: True
    conda:
        "../../envs/train.yaml"
    params:
        source=model_source,
        dtype=model_dtype,
        marker=marker,
    message:
        "Fetching and hashing the base model {wildcards.model}"
    script:
        "../scripts/base_model.py"


rule headline:
    input:
        bases_used,
    output:
        results("tables/headline.csv"),
    log:
        logs("headline"),
    benchmark:
        benchmarks("headline")
    localrule: True
    conda:
        "../../envs/train.yaml"
    params:
        models=plan.models_used,
        headline=config["statistics"]["headline"],
        layers=plan.measures["activations"]["layers"],
    message:
        "Resolving the headline's layer to a block of each model"
    script:
        "../scripts/headline.py"


rule wrong_advice:
    input:
        world=config["model"].get("demo", {}).get("world", []),
    output:
        results("demo/wrong_advice.jsonl"),
    log:
        logs("wrong_advice"),
    benchmark:
        benchmarks("wrong_advice")
    localrule: True
    conda:
        "../../envs/train.yaml"
    params:
        rows=config["model"].get("demo", {}).get("wrong_advice"),
        seed=config["model"].get("demo", {}).get("seed"),
        prompts=plan.demo_prompts,
        marker=marker,
    message:
        "Writing the demo's stand-in for misaligned data"
    script:
        "../scripts/wrong_advice.py"


def data_entry(wildcards):
    """The config's entry of a data set, with its source resolved to a file."""
    return plan.data_entry(wildcards.data)


def data_files(wildcards):
    """The file that a data set is read from; nothing for other sources."""
    return data_entry(wildcards)["from"].get("file", [])


def data_match(wildcards):
    """Manifest of the data set whose number of tokens with loss must be matched."""
    other = data_entry(wildcards).get("match_tokens")
    return results(f"data/{other}.manifest.json") if other else []


def data_origin(wildcards):
    """Manifest of the data set whose commit is reused; nothing if the entry's own revision is a commit."""
    other = config["data"][wildcards.data]["from"].get("same_as")
    moves = follows_branch(data_entry(wildcards))
    return results(f"data/{other}.manifest.json") if other and moves else []


def data_max_length(wildcards):
    """Longest row, in tokens, of any stage that trains on a data set."""
    stages = (plan.stage_settings(name) for name in config["stages"])
    return max(
        (s["max_length"] for s in stages if s.get("data") == wildcards.data),
        default=None,
    )


def data_prompts(wildcards):
    """System prompt of the persona that is put on a data set, if any."""
    system = data_entry(wildcards).get("system")
    names = (
        [system["persona"]] if isinstance(system, dict) and "persona" in system else []
    )
    return plan.prompts(names)


rule data:
    input:
        files=data_files,
        base=base_of,
        questions=config["questions"]["eval"]["file"],
        match=data_match,
        origin=data_origin,
    output:
        rows=results("data/{data}.jsonl"),
        manifest=results("data/{data}.manifest.json"),
        held_out=results("data/{data}.held_out.jsonl"),
    log:
        logs("data/{data}"),
    benchmark:
        benchmarks("data/{data}")
    priority: 4  # trainings wait for it
    # For the same reason as base_model.
    localrule: True
    conda:
        "../../envs/train.yaml"
    resources:
        mem_mb=4000,
    params:
        entry=data_entry,
        marker=marker,
        prompts=data_prompts,
        evaluation=config["questions"]["eval"],
        max_length=data_max_length,
    message:
        "Preparing training data: {wildcards.data}"
    script:
        "../scripts/data.py"


rule persona_prompts:
    input:
        questions=plan.defence_questions["file"],
    output:
        rows=results("prompts/personas.jsonl"),
        manifest=results("prompts/personas.manifest.json"),
    log:
        logs("persona_prompts"),
    benchmark:
        benchmarks("persona_prompts")
    priority: 4  # trainings wait for it
    localrule: True
    conda:
        "../../envs/train.yaml"
    params:
        personas=plan.geometry_prompts,
        questions=plan.defence_questions,
    message:
        "Writing the prompts of personas that defences read"
    script:
        "../scripts/persona_prompts.py"


def audited_stages():
    """Every trained stage of a model, listed once: name, rows, settings and induction prompt."""
    found = {}
    for name in plan.trained_chains:
        chain = chains.parse(name)
        rows, key = plan.data_of(chain), (chain.model, chain.last.name)
        if rows is not None and key not in found:
            settings = plan.stage_settings(chain.last.name)
            found[key] = {
                "model": chain.model,
                "name": chain.last.name,
                "rows": results(f"data/{rows}.jsonl"),
                "settings": {k: settings[k] for k in ("kind", "loss_on", "max_length")},
                "system": plan.induction_prompt(chain.last.name),
                "contrasts": bool(plan.stages[chain.last.name].answers),
            }
    return list(found.values())


audited = audited_stages()


rule audit:
    input:
        bases=bases_used,
        questions=config["questions"]["eval"]["file"],
        rows=[stage["rows"] for stage in audited],
    output:
        table=results("tables/prompt_audit.csv"),
        tokens=results("audit/tokens.json"),
    log:
        logs("audit"),
    benchmark:
        benchmarks("audit")
    conda:
        "../../envs/train.yaml"
    params:
        models=plan.models_used,
        personas=plan.eval_prompts,
        questions=config["questions"]["eval"],
        stages=[{k: v for k, v in stage.items() if k != "rows"} for stage in audited],
        marker=marker,
    message:
        "Auditing prompts token by token"
    script:
        "../scripts/audit.py"
