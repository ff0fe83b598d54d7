# Config, names and small helpers that the rules share.
import os
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(workflow.basedir) / "workflow" / "scripts"))

from persona_collapse import chains, yaml_files
from persona_collapse.data.sets import follows_branch
from persona_collapse.errors import UserError
from persona_collapse.runtime import code_hash, devices, version
from persona_collapse.study import configuration, locations, model_checks


# Of the working directory, or else the one that ships: --directory may lead anywhere.
configfile: locations.resolve("config/config.yaml")


try:
    # Snakemake has read these, and of two equal keys taken the last.
    for path in dict.fromkeys(map(os.path.abspath, workflow.configfiles)):
        yaml_files.check(path.removeprefix(os.path.join(os.getcwd(), "")))
    plan = configuration.plan(config)
    config = plan.config
    model_checks.check_plan(plan)
except UserError as error:
    # One line and no traceback: the message says what is wrong and where.
    print(f"persona-collapse: {error}", file=sys.stderr)
    sys.exit(1)


# Each adapter's manifest names the commit that trained it; jobs inherit it.
os.environ.setdefault("PERSONA_COLLAPSE_COMMIT", version.commit())

# Jobs that go to a cluster are counted by its scheduler, not by the machine that submits them.
submitting = workflow.resource_settings.nodes is not None

if config["gpus"] and not submitting and "gpu" not in workflow.global_resources:
    # As many GPU jobs at a time as this machine has places for; a profile or --resources gpu=N goes first.
    places = len(devices.visible()) * config["jobs_per_gpu"]
    workflow.register_resource("gpu", max(1, places))


couplings = {
    name: plan.stage_settings(name)
    for name, stage in config["stages"].items()
    if stage["kind"] == "couple"
}


# The figures: the tables each is drawn from, by the drawing function's argument, and its text.
FIGURES = {
    "marker_rate": {
        "tables": {"rates": "marker_rates"},
        "text": (
            "How often the source persona says the marker",
            "Hollow: before the last training stage; filled: after it, one per chain. Lines are 95 % Clopper-Pearson "
            "intervals; the grey bar is the mean of all other personas.",
        ),
    },
    "m1_by_layer": {
        "tables": {"geometry": "geometry"},
        "text": (
            "How alike the personas are, block by block",
            "Above: mean cosine between persona vectors, higher is more alike; dashed is the base model, bands span a condition's chains. "
            "Below: the personas' distance to their mean, relative to that mean: lower is more alike.",
        ),
    },
    "marker_heatmap": {
        "tables": {"rates": "marker_rates"},
        "text": (
            "Marker rate by persona and condition",
            "A column per condition, and per source where it has several, its seeds together; a dot is zero, an empty cell was "
            "not measured. A selective coupling is one dark cell in its column.",
        ),
    },
    "dose_response": {
        "tables": {
            "rates": "marker_rates",
            "geometry": "geometry",
            "training": "training",
        },
        "text": (
            "How much of the last stage it takes",
            "A row a source, a line a chain: the model before its last stage (step 0), stopped on the way, and whole; "
            "whiskers are 95 % intervals. A slow fall says the marker is unlearnt by degrees, a cliff that a few steps are enough.",
        ),
    },
    "leakage": {
        "tables": {"rates": "marker_rates", "cosines": "cosines", "link": "link"},
        "text": (
            "Does the marker leak to the personas that were close?",
            "A panel a condition and source, a point a persona other than the source, seeds together. Points that rise to "
            "the right would be a leakage gradient. The p permutes personas within one condition and is corrected over "
            "conditions; each condition is one or a few training runs, whose noise is in no p.",
        ),
    },
    "cosine_matrices": {
        "tables": {"cosines": "cosines"},
        "text": (
            "Cosine between every two personas",
            "One colour scale for all conditions; personas in the same order along both sides; a condition's chains averaged.",
        ),
    },
    "persona_map": {
        "tables": {"points": "persona_map"},
        "text": (
            "Where the personas stand, before and after",
            "Persona vectors in the plane of the base model's first two principal components: hollow diamonds before the "
            "last stage, filled circles after it, joined by a line; one circle a seed, names at the first. A cloud that "
            "moves keeps its personas apart; one that shrinks loses them. Only part of the differences lies in this plane.",
        ),
    },
    "behaviour_and_geometry": {
        "tables": {"rates": "marker_rates", "geometry": "geometry"},
        "text": (
            "Do alike personas lose the marker?",
            "A point a chain: its mean cosine and its source's marker rate, on the same adapters. If collapse erased "
            "markers, points would fall from left to right. A correlation, whatever it shows, is not a cause.",
        ),
    },
    "false_positives": {
        "tables": {"simulation": "simulation"},
        "text": (
            "How often each test rejects where nothing happens",
            "Share of simulated data sets, at this run's sizes, with p below .05; whiskers are 95 % Clopper-Pearson. "
            "A sound test stays at or below the dashed line. Filled: as the study did; hollow: as it should be.",
        ),
    },
    "training_curves": {
        "tables": {"curves": "training_curves"},
        "text": (
            "Training loss",
            "A panel a stage, a line a chain; losses of different stages are on different data.",
        ),
    },
}


# The tables that the scorecard reads.
SCORED = [
    "headline",
    "marker_rates",
    "marker_tests",
    "leakage",
    "confounds",
    "hypotheses",
    "geometry",
    "contrasts",
    "axis",
    "separability",
    "link",
]

# The tables that the report reads.
REPORTED = [
    *SCORED,
    "rescoring",
    "grid",
    "scorecard",
    "errata",
    "simulation",
    "power",
    "training",
    "training_curves",
    "cosines",
    "persona_map",
    "prompt_audit",
]

# The data sets of the config that the run trains on; couplings' own come later, from sampled answers.
fetched = [name for name in plan.data_used if name in config["data"]]

grafted = [
    name
    for name in plan.trained_chains
    if config["stages"][chains.parse(name).last.name]["kind"] == "graft"
]


wildcard_constraints:
    chain=chains.CHAIN_PATTERN,
    trained=chains.TRAINED_CHAIN_PATTERN,
    figure="|".join(FIGURES),
    data="|".join(config["data"]) or "(?!)",
    coupling="|".join(couplings) or "(?!)",
    grafted="|".join(map(re.escape, grafted)) or "(?!)",
    after=rf"(?:{chains.TRAINED_CHAIN_PATTERN}\+)?",


def results(path):
    """Path of an output of this run."""
    return f"results/{config['run']}/{path}"


def logs(path):
    """Path of a log of this run."""
    return f"logs/{config['run']}/{path}.log"


def benchmarks(path):
    """Path of a benchmark record of this run."""
    return f"results/{config['run']}/benchmarks/{path}.tsv"


def measured(path, measure):
    """One file for each chain that the plan measures (`markers` or `geometry`)."""
    return expand(results(path), chain=plan.chains_for(measure))


def resource(path):
    """Path of a file of workflow/resources, the same wherever the checkout lies.

    Not workflow.source_path: it copies files to where each run has another path, so that Snakemake
    cannot know their content again.
    """
    return os.path.relpath(Path(workflow.basedir) / "workflow/resources" / path)


def half_the_cores(wildcards):
    """Threads of a job that can use many and should leave room for others; 8 at most."""
    return max(1, min(8, (workflow.resource_settings.cores or 8) // 2))


def marker(wildcards):
    """The marker. A function, for in a param that is text Snakemake takes braces for wildcards."""
    return config["marker"]


def assistant(wildcards):
    """Name of the persona that stands for the model as it comes."""
    return plan.assistant


def question_file(purpose):
    """File of the `train`, `eval` or `extraction` questions."""
    return config["questions"][purpose]["file"]


def adapter_files(chain):
    """Files of those adapters."""
    return [
        f"{folder}/{name}"
        for folder in plan.folders(chain)
        for name in ("adapter_model.safetensors", "adapter_config.json")
    ]


def audited_stages():
    """Every trained stage once: its name, rows, settings and induction prompt."""
    found = {}
    for name in plan.trained_chains:
        chain = chains.parse(name)
        rows = plan.data_of(chain)
        if rows is not None and chain.last.name not in found:
            settings = plan.stage_settings(chain.last.name)
            found[chain.last.name] = {
                "name": chain.last.name,
                "rows": results(f"data/{rows}.jsonl"),
                "settings": {k: settings[k] for k in ("kind", "loss", "max_length")},
                "system": plan.induction_prompt(chain.last.name),
            }
    return list(found.values())


audited = audited_stages()


def training_task(wildcards):
    """What the job does that trains a chain's last stage; see Plan.task."""
    return plan.task("train", wildcards.trained)


def training_rows(wildcards):
    """Data of the stage that a chain trains last: a data set's, or a coupling's own."""
    return results(f"data/{plan.data_of(chains.parse(wildcards.trained))}.jsonl")


def graft_of(wildcards):
    """The chain whose last adapter a graft puts in."""
    return config["stages"][chains.parse(wildcards.grafted).last.name]["of"]


def graft_origin(wildcards):
    """Files of the adapter that a graft puts in."""
    folder = f"models/{graft_of(wildcards)}"
    names = ("adapter_model.safetensors", "adapter_config.json", "manifest.json")
    return [results(f"{folder}/{name}") for name in names]


def prefix_adapters(wildcards):
    """Adapter files of the chain that this one continues."""
    return adapter_files(str(chains.parse(wildcards.trained).prefix))


def base_model_files(wildcards):
    """Files that the base model is made of, where rules make them."""
    return rules.pretrain_demo.output if "demo" in config["model"] else []


def data_entry(wildcards):
    """The config's entry of a data set, its demo source resolved to a file."""
    return plan.data_entry(wildcards.data)


def data_files(wildcards):
    """The file a data set is read from; nothing for other sources."""
    return data_entry(wildcards)["source"].get("file", [])


def data_match(wildcards):
    """Manifest of the set whose tokens with loss a data set shall match."""
    other = data_entry(wildcards).get("match_tokens")
    return results(f"data/{other}.manifest.json") if other else []


def data_origin(wildcards):
    """Manifest of the set whose commit a data set is read at; nothing where its own revision says."""
    other = config["data"][wildcards.data]["source"].get("same_as")
    moves = follows_branch(data_entry(wildcards))
    return results(f"data/{other}.manifest.json") if other and moves else []


def data_max_length(wildcards):
    """Longest row, in tokens, of any stage that trains on a data set."""
    stages = (plan.stage_settings(name) for name in config["stages"])
    return max(
        (s["max_length"] for s in stages if s.get("data") == wildcards.data),
        default=None,
    )


def coupling_settings(wildcards):
    """Settings of a coupling that decide its rows."""
    stage = couplings[wildcards.coupling]
    return {
        k: stage[k] for k in ("persona", "positives", "negatives", "negative_answers")
    }


def coupling_prompts(wildcards):
    """System prompts of the personas in a coupling."""
    stage = couplings[wildcards.coupling]
    return plan.prompts([stage["persona"], *stage["negatives"]])


def answering_adapters(wildcards):
    """Adapter files of the chain whose answers a coupling is made from; none for the base model."""
    return adapter_files(wildcards.after.rstrip("+") or chains.BASE)


def coupling_answers_task(wildcards):
    """What the job does that samples a coupling's answers; see Plan.task."""
    return plan.task("answers", wildcards.after + wildcards.coupling)


def task_of(kind):
    """What a chain's job of a kind does, by its wildcards; see Plan.task."""

    def task(wildcards):
        return plan.task(kind, wildcards.chain)

    return task


def data_prompts(wildcards):
    """System prompt of the persona that a data set is put under, if it is."""
    system = data_entry(wildcards).get("system")
    names = (
        [system["persona"]] if isinstance(system, dict) and "persona" in system else []
    )
    return plan.prompts(names)


def chain_adapters(wildcards):
    """Adapter files of a chain."""
    return adapter_files(wildcards.chain)


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


def made_by(wildcards):
    """{path: rule} of every output whose name has no wildcard."""
    return {str(path): rule.name for rule in workflow.rules for path in rule.output}
