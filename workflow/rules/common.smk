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

if (
    config["runtime"]["gpus_per_job"]
    and not submitting
    and "gpu" not in workflow.global_resources
):
    # As many GPU jobs at a time as this machine has places for; a profile or --resources gpu=N goes first.
    places = len(devices.visible()) * config["runtime"]["jobs_per_gpu"]
    workflow.register_resource("gpu", max(1, places))


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
        "tables": {
            "rates": "marker_rates",
            "cosines": "cosines",
            "correlations": "correlations",
        },
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
    "marker_rates",
    "marker_tests",
    "leakage",
    "answer_stats",
    "hypotheses",
    "geometry",
    "contrasts",
    "shared_axis",
    "separability",
    "correlations",
]

# The tables that the report reads.
REPORTED = [
    *SCORED,
    "headline",
    "logprob_tests",
    "design",
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


def one_of(names):
    """Pattern of one of these names; of nothing if there are none."""
    return "|".join(map(re.escape, names)) or "(?!)"


wildcard_constraints:
    chain=chains.CHAIN_PATTERN,
    trained=chains.TRAINED_CHAIN_PATTERN,
    figure=one_of(FIGURES),
    data=one_of(config["data"]),
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


def results_of(path, measure):
    """That output of every chain of a measure (or of its `completions`, or `responses`)."""
    return expand(results(path), chain=plan.chains_for(measure))


def resource(path):
    """Path of a file of workflow/resources, the same wherever the checkout lies.

    Not workflow.source_path: it copies files to where each run has another path, so that Snakemake
    cannot know their content again.
    """
    return os.path.relpath(Path(workflow.basedir) / "workflow/resources" / path)


def marker(wildcards):
    """The marker. A function, for in a param that is text Snakemake takes braces for wildcards."""
    return config["marker"]


def adapter_files(chain):
    """Files of the adapters whose sum is a chain's model."""
    return [
        f"{folder}/{name}"
        for folder in plan.folders(chain)
        for name in ("adapter_model.safetensors", "adapter_config.json")
    ]
