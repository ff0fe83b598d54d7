"""The content of the conda environments, and Python processes that can import nothing else."""

import json
import re
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]

#: (rule, environment, script) of every rule with a script.
RULES = [
    found
    for path in sorted((ROOT / "workflow/rules").glob("*.smk"))
    for found in re.findall(
        r"\nrule (\w+):(?:(?!\nrule ).)*?envs/(\w+)\.yaml(?:(?!\nrule ).)*?scripts/(\w+)\.py",
        path.read_text(),
        re.DOTALL,
    )
]


def pins(name: str) -> dict[str, str]:
    """{package: version} of an environment's pip section; all versions are pinned."""
    given = yaml.safe_load((ROOT / f"envs/{name}.yaml").read_text())
    *conda, section = given["dependencies"]
    assert given["channels"] == ["conda-forge"] and conda == ["python =3.11", "pip"]
    return dict(pin.lower().split("==") for pin in section["pip"])


def closure(packages) -> set[str]:
    """Packages with all their requirements, as far as they are installed here."""
    todo, found = [(canonicalize_name(name), "") for name in packages], set()
    while todo:
        name, extra = todo.pop()
        if (name, extra) in found:
            continue
        found.add((name, extra))
        try:
            listed = requires(name) or []
        except PackageNotFoundError:  # vLLM for GPUs
            continue
        for requirement in map(Requirement, listed):
            if not requirement.marker or requirement.marker.evaluate({"extra": extra}):
                wanted = canonicalize_name(requirement.name)
                todo += [(wanted, more) for more in {"", *requirement.extras}]
    return {name for name, _ in found}


@cache
def brought() -> dict[str, set[str]]:
    """{top-level name: packages that provide it} for everything that is installed here."""
    return {
        name: set(map(canonicalize_name, packages))
        for name, packages in packages_distributions().items()
    }


def importable(packages) -> set[str]:
    """Top-level names that packages and all their requirements provide."""
    held = closure(packages)
    return {name for name, packages in brought().items() if held & packages}


#: For a `sitecustomize.py`. It hides a package from import if our code imports it, directly or through
#: another package, and the process's environment does not have it. Snakemake's own imports are allowed,
#: because its packages are at the end of a job's path.
GUARD = """
import json, os, re, sys
from importlib.machinery import PathFinder
absent = json.load(open(os.environ["GUARD"]))
script = re.search(r"/scripts/tmp\\w+\\.(\\w+)\\.py(\\n|$)", "\\n".join(sys.orig_argv))
script = script[1] if script else "snakemake"
absent = set(absent[script])
OURS = re.compile(r"Snakefile$|\\.smk$|/workflow/scripts/|/scripts/tmp\\w+\\.\\w+\\.py$")

def for_snakemake():
    frame = sys._getframe(2)
    while frame and not OURS.search(frame.f_code.co_filename):
        if frame.f_globals.get("__name__", "").partition(".")[0] == "snakemake":
            return True
        frame = frame.f_back
    return False

class Guard(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if path is None and name in absent and not for_snakemake():
            return None
        return super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Guard
with open(os.environ["GUARD"] + ".log", "a") as log:
    print(script, file=log)
"""


def guard(folder: Path) -> dict[str, str]:
    """Environment variables for the guard, whose code belongs in a `sitecustomize.py`.

    The guarded scripts are logged in `<GUARD>.log`, one per line.
    """
    names = {name: importable(pins(name)) for name in {environment for _, environment, _ in RULES}}
    held = {script: names[environment] for _, environment, script in RULES}
    held["snakemake"] = importable(["snakemake"])
    absent = {
        script: sorted(brought().keys() - names - {"snakemake"}) for script, names in held.items()
    }
    (folder / "absent.json").write_text(json.dumps(absent))
    return {"GUARD": str(folder / "absent.json")}
