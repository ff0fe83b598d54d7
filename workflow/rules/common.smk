# Config, names and small helpers shared by the rules.
import os
import re
import shlex
import sys
from pathlib import Path

# The checkout, located from this file: if this is used as a module, the main Snakefile is another workflow's.
CHECKOUT = Path(workflow.current_basedir.get_path_or_uri(secret_free=True)).parents[1]
sys.path.insert(0, str(CHECKOUT / "workflow" / "scripts"))

from persona_collapse import chains, literals, yaml_files
from persona_collapse.data.sets import follows_branch
from persona_collapse.errors import UserError
from persona_collapse.measures import ROOM as MEASURES
from persona_collapse.runtime import code_hash, devices, version
from persona_collapse.study import configuration, locations, model_checks, places
from snakemake.utils import update_config


# The config in the working directory, or else the one that ships: --directory may point anywhere.
configfile: locations.resolve("config/config.yaml")


# Each file over those before it; Snakemake lists those of the command line first.
over = list(map(os.path.abspath, workflow.overwrite_configfiles))
own = [path for path in map(os.path.abspath, workflow.configfiles) if path not in over]
configfiles = [
    path.removeprefix(os.path.join(os.getcwd(), ""))
    for path in dict.fromkeys([*own, *over])
]
try:
    # Snakemake has already read these files, and kept the last of duplicate keys.
    for path in configfiles:
        yaml_files.check(path)
    # If this is used as a module, `config` holds only what the other workflow gives.
    defaults = yaml_files.load_mapping(locations.resolve("config/config.yaml"))
    update_config(defaults, config)
    plan = configuration.plan(defaults)
    config = plan.config
    model_checks.check_plan(plan)
except UserError as error:
    # One line and no traceback: the message says what is wrong and where.
    print(f"persona-collapse: {places.placed(error, configfiles)}", file=sys.stderr)
    sys.exit(1)


# The commit for manifests of adapters; jobs inherit the variable.
os.environ.setdefault("PERSONA_COLLAPSE_COMMIT", version.commit())
# The command that reproduces the run, for model cards and the report.
overlays = list(map(os.path.relpath, workflow.overwrite_configfiles))
given = workflow.config_settings.config_args
found_anyway = {"Snakefile", "workflow/Snakefile"}
snakefile = os.path.relpath(workflow.main_snakefile)
os.environ.setdefault(
    "PERSONA_COLLAPSE_COMMAND",
    shlex.join(
        [
            "snakemake",
            "--cores",
            "all",
            *([] if snakefile in found_anyway else ["-s", snakefile]),
            *(["--configfile", *overlays] if overlays else []),
            *(["--config", *given] if given else []),
        ]
    ),
)

if workflow.is_main_process:
    # Mostly for users who forgot --configfile: the default run would start silently.
    read = ", ".join(overlays) or "no --configfile"
    print(
        f"persona-collapse: run {config['run']}: {len(config['conditions'])} conditions, "
        f"{len(plan.trained_chains)} trained chains (config/config.yaml, {read})",
        file=sys.stderr,
    )
    # A condition of one's own is easily forgotten under only:.
    own = yaml_files.load_mapping(overlays[-1]).get("conditions") if overlays else {}
    if left := [
        name for name in own or {} if own[name] and name not in config["conditions"]
    ]:
        print(
            f"persona-collapse: {overlays[-1]}: not in this run, because only: does not name them: "
            f"{', '.join(left)}",
            file=sys.stderr,
        )

# A cluster's scheduler counts its own jobs; this is for jobs on the local machine.
submitting = workflow.resource_settings.nodes is not None

if (
    config["runtime"]["gpus_per_job"]
    and not submitting
    and "gpu" not in workflow.global_resources
):
    # Run as many GPU jobs at a time as this machine has places; a profile or --resources gpu=N takes precedence.
    places = len(devices.visible()) * config["runtime"]["jobs_per_gpu"]
    workflow.register_resource("gpu", max(1, places))


def one_of(names):
    """Pattern that matches any of these names; matches nothing without names."""
    return "|".join(map(re.escape, names)) or "(?!)"


wildcard_constraints:
    model=one_of(plan.models),
    chain=rf"(?:{one_of(plan.models)}|{chains.TRAINED_CHAIN_PATTERN})",
    trained=chains.TRAINED_CHAIN_PATTERN,
    data=one_of(config["data"]),
    after=rf"(?:(?:{one_of(plan.models)}|{chains.TRAINED_CHAIN_PATTERN})\+)?",


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
    """This output of every chain of a measure (or of `completions` or `responses`)."""
    return expand(results(path), chain=plan.chains_for(measure))


def resource(path):
    """Path of a file of workflow/resources, the same wherever the checkout lies.

    Not workflow.source_path: it copies files to where each run has another path, so that Snakemake
    cannot know their content again.
    """
    return os.path.relpath(CHECKOUT / "workflow/resources" / path)


def marker(wildcards):
    """The marker. It is a function, because in text params Snakemake reads braces as wildcards."""
    return config["marker"]


def base_of(wildcards):
    """Record of the base model that a job's chain starts from."""
    chain = wildcards.get("chain") or wildcards.get("trained")
    return plan.base(chain or wildcards.get("after", "").rstrip("+") or chains.BASE)


def bases_used(wildcards):
    """Records of all base models that the run needs."""
    return [plan.base(name) for name in plan.models_used]


def adapter_files(chain):
    """Files of the adapters whose sum makes a chain's model."""
    return adapters_in(plan.folders(chain))


def adapters_in(folders):
    """Adapter files in these folders."""
    return [
        f"{folder}/{name}"
        for folder in folders
        for name in ("adapter_model.safetensors", "adapter_config.json")
    ]
