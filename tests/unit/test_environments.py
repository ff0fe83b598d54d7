"""The conda environments: the lock's versions, and everything that a rule's script imports."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions, requires

import pytest
from environments import GUARD, ROOT, RULES, guard, pins
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from persona_collapse.measures import ROOM
from persona_collapse.report.figures import catalogue

SCRIPTS = ROOT / "workflow/scripts"
ENVIRONMENTS = sorted(p.stem for p in (ROOT / "envs").glob("*.yaml"))
#: Not in the lock, which is also for machines without a GPU.
GPU_ONLY = {"vllm"}
KNOWN = packages_distributions() | {"vllm": ["vllm"]}


def locked(name="requirements"):
    """{package: version} of a lock file, with normalised names; torch is included in the run's."""
    files = [name, "requirements-torch"] if name == "requirements" else [name]
    text = "".join((ROOT / f"{file}.lock").read_text() for file in files)
    found = re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.M)
    return {canonicalize_name(package): version for package, version in found}


PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
#: Requirements of PyTorch's CUDA build only.
OF_CUDA = PYPROJECT["tool"]["uv"]["exclude-dependencies"]


def declared():
    """{group: requirements} of pyproject.toml; those of the run are under `run`."""
    groups = {"run": PYPROJECT["project"]["dependencies"], **PYPROJECT["dependency-groups"]}
    return {group: [Requirement(line) for line in lines] for group, lines in groups.items()}


def needs(packages):
    """Installed packages and all their requirements on this machine: {package: specifiers}."""
    found, todo = {}, [Requirement(package) for package in packages]
    while todo:
        one = todo.pop()
        name = canonicalize_name(one.name)
        if name in OF_CUDA or (one.marker and not one.marker.evaluate({"extra": ""})):
            continue
        new = name not in found
        found.setdefault(name, []).append(one.specifier)
        if new:
            todo += map(Requirement, requires(name) or [])
    return found


LOCKS = {
    "run": "requirements", "dev": "requirements-dev", "docs": "requirements-docs",
    "slurm": "requirements-slurm", "smollm2": "requirements-smollm2", "vllm": "requirements-vllm-cpu",
}  # fmt: skip


@pytest.mark.parametrize("group", LOCKS)
def test_the_lock_has_what_pyproject_asks_for(group):
    assert set(declared()) == set(LOCKS)
    have = locked(LOCKS[group]) if group == "vllm" else locked() | locked(LOCKS[group])
    have |= {"vllm": have["vllm-cpu"]} if group == "vllm" else {}
    for one in declared()[group]:
        version = have[canonicalize_name(one.name)]
        assert one.specifier.contains(version), f"{one} is not {version}"


@pytest.mark.parametrize("group", ["run", "dev", "docs"])
def test_the_lock_has_all_that_those_need_and_nothing_else(group):
    asked = needs(str(one) for one in declared()[group])
    have = locked() | locked(LOCKS[group])
    for package, specifiers in asked.items():
        assert all(s.contains(have[package], prereleases=True) for s in specifiers), package
    assert set(locked(LOCKS[group])) <= set(asked)


def test_a_package_has_one_version_in_all_locks_of_an_environment():
    own = [locked(LOCKS[group]) for group in ("run", "dev", "docs", "slurm", "smollm2")]
    together = {package: version for lock in own for package, version in lock.items()}
    for lock in own:
        assert lock.items() <= together.items()


@pytest.mark.parametrize("path", sorted(ROOT.glob("requirements*.lock")), ids=lambda p: p.stem)
def test_locks_hold_versions_and_hashes_and_no_address(path):
    lines = re.sub(r"\\\n|#.*", "", path.read_text()).splitlines()
    ours = [line.split() for line in lines if line.strip()]
    hashes = r"(--hash=sha256:[0-9a-f]{64} ?)+"
    # PyTorch's build depends on the machine, and the one for vLLM's CPU build is not on PyPI.
    if path.stem in ("requirements-torch", "requirements-vllm-cpu"):
        hashes = ""
    assert ours
    for one, *rest in ours:
        assert re.fullmatch(r"[\w.-]+==[\w.+!]+", one), one
        assert re.fullmatch(hashes, " ".join(rest)), one


def test_pyproject_lists_what_is_imported():
    run, dev = ({one.name for one in declared()[group]} for group in ("run", "dev"))

    def packages(folder):
        files = list(folder.rglob("*.py"))
        others = set().union(*(imported([ast.parse(path.read_text())])[0] for path in files))
        own = {path.stem for path in [*files, *(ROOT / "tools").glob("*.py")]} | {
            "persona_collapse"
        }
        return {KNOWN[name][0] for name in others - own} - GPU_ONLY

    assert packages(SCRIPTS) | packages(ROOT / "tools") <= run
    assert packages(ROOT / "tests") <= run | dev


def test_the_environments_pins_are_within_pyproject_s_bounds():
    bounds = {
        canonicalize_name(one.name): one.specifier
        for group in ("run", "vllm")
        for one in declared()[group]
    }
    for name in ENVIRONMENTS:
        for package, version in pins(name).items():
            assert bounds[canonicalize_name(package)].contains(version), (name, package)


def file_of(module):
    """File of a module of the package, by dotted name; None if there is none."""
    path = SCRIPTS / "persona_collapse" / module.replace(".", "/")
    files = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in files if module and file.is_file()), None)


@cache
def source(module):
    """(statements that run on import, {name: definition}) of a module of the package."""
    tree = ast.parse(file_of(module).read_text())
    definitions = {
        node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    return [node for node in tree.body if node not in definitions.values()], definitions


def walk(nodes):
    """Every node below, except code for type checkers only."""
    todo = list(nodes)
    while todo:
        node = todo.pop()
        if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)):
            yield node
            todo += ast.iter_child_nodes(node)


def imported(nodes, here=""):
    """(top-level names of other packages, {name here: (module of ours, name there or None)}).

    `here`: the module of ours that the nodes are from.
    """
    others, ours = set(), {}
    for node in walk(nodes):
        if isinstance(node, ast.Import):
            others |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package, _, module = (node.module or "").partition(".")
            if node.level or package == "persona_collapse":
                if node.level:
                    inside = here.split(".") + [""] * bool(
                        here and file_of(here).name == "__init__.py"
                    )
                    above = inside[: -node.level]
                    module = ".".join([*above, *([node.module] if node.module else [])])
                for alias in node.names:
                    below = f"{module}.{alias.name}".lstrip(".")
                    there = (below, None) if file_of(below) else (module, alias.name)
                    ours[alias.asname or alias.name] = there
            else:
                others.add(package)
    return others - set(sys.stdlib_module_names), ours


def needed(*scripts, module=None):
    """Packages that scripts import, and the parts of our package that they use, by function instead of
    by file.

    A function is used if a used function, or a statement that runs on import, names it. All functions
    of a module are used if the module is named without one of them (`getattr(figures, name)`).
    """
    others, done = set(), set()
    todo = [(module, ast.parse(script.read_text())) for script in scripts]

    def use(module, name):
        statements, definitions = source(module)
        wanted = statements if name is None else [definitions[name]] if name in definitions else []
        todo.extend((module, node) for node in wanted)

    while todo:
        module, node = todo.pop()
        if (module, node) in done:
            continue
        done.add((module, node))
        statements, definitions = source(module) if module else ([], {})
        found, ours = imported([node], module or "")
        others |= found
        for there, _ in ours.values():
            use(there, None)
        ours = imported(statements, module or "")[1] | ours
        of_a_module = {}
        for part in walk([node]):
            if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name):
                of_a_module[part.value] = part.attr
            if isinstance(part, ast.Name):
                there, name = ours.get(part.id, (None, None))
                if there is None and part.id in definitions:
                    use(module, part.id)
                elif there and name:
                    use(there, name)
                elif there:
                    names = source(there)[1]
                    for name in [of_a_module[part]] if part in of_a_module else names:
                        use(there, name)
    return others


def test_the_environments_pin_what_the_lock_pins():
    assert ENVIRONMENTS == ["analysis", "generate", "train"]
    for name in ENVIRONMENTS:
        own = {canonicalize_name(package): version for package, version in pins(name).items()}
        differing = own.items() - locked().items()
        assert {package for package, _ in differing} == (GPU_ONLY if name == "generate" else set())


def test_vllm_s_version_is_that_of_the_tested_cpu_build():
    line = next(
        line
        for line in (ROOT / "requirements-vllm-cpu.lock").read_text().splitlines()
        if line.startswith("vllm")
    )
    assert line.partition("==")[2].partition("+")[0] == pins("generate")["vllm"]


def test_every_rule_with_a_script_has_an_environment():
    text = "".join(p.read_text() for p in (ROOT / "workflow/rules").glob("*.smk"))
    assert len(RULES) == text.count("    script:\n") > 15


@pytest.mark.parametrize(("rule", "environment", "script"), RULES)
def test_a_rule_s_environment_holds_what_its_script_imports(rule, environment, script):
    wanted = {KNOWN[name][0].lower() for name in needed(SCRIPTS / f"{script}.py")}
    assert wanted - set(pins(environment)) == set()


@pytest.mark.parametrize("name", ROOM.names())
def test_a_measure_s_environment_holds_what_it_imports(name):
    """Scripts refer to measures only by name, so no import leads to them."""
    environment = "train" if ROOM.get(name).of_model else "analysis"
    path = SCRIPTS / f"persona_collapse/measures/{name}.py"
    wanted = {KNOWN[package][0].lower() for package in needed(path, module=f"measures.{name}")}
    assert wanted - set(pins(environment)) == set()


@pytest.mark.parametrize("name", catalogue())
def test_figures_import_what_the_environment_of_their_rule_holds(name):
    path = SCRIPTS / f"persona_collapse/report/figures/{name}.py"
    wanted = {KNOWN[package][0] for package in needed(path, module=f"report.figures.{name}")}
    assert {"altair", "pandas"} <= wanted <= set(pins("analysis"))


def test_functions_that_others_call_count_and_those_that_nobody_calls_do_not(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from persona_collapse.analysis import logprob_tests\nlogprob_tests.logprob_tests\n"
    )
    assert {"pandas", "scipy"} <= needed(script) and "torch" not in needed(script)
    script.write_text("from persona_collapse.runtime import shared_engine\nshared_engine.key_of\n")
    assert "torch" not in needed(script)
    script.write_text("from persona_collapse.models.runner import ModelRunner\nModelRunner\n")
    # Through adapters and models, which import it inside functions.
    assert {"torch", "transformers", "peft", "safetensors"} <= needed(script)
    script.write_text("from persona_collapse.report.figures import leakage\nleakage.draw\n")
    assert {"altair", "pandas"} <= needed(script)


def run(folder, script, code):
    """Run code as a rule's script (or as Snakemake, which reads the Snakefile) behind the guard."""
    (folder / "sitecustomize.py").write_text(GUARD)
    path = folder / (f".snakemake/scripts/tmp0.{script}.py" if script else "Snakefile")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(code)
    environment = guard(folder) | {"PYTHONPATH": f"{folder}:{SCRIPTS}", "PATH": os.environ["PATH"]}
    return subprocess.run(
        [sys.executable, path], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def test_what_an_environment_lacks_is_absent_behind_the_guard(tmp_path):
    absent = (
        "import importlib.util\nassert importlib.util.find_spec('torch') is None\nimport numpy\n"
    )
    assert run(tmp_path, "geometry", absent).returncode == 0
    assert run(tmp_path, "train", absent).returncode == 1
    # Through another package: safetensors imports torch from Rust.
    code = f"from safetensors import safe_open\nsafe_open({str(tmp_path / 'x')!r}, framework='pt')"
    (tmp_path / "x").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    assert "No module named 'torch'" in run(tmp_path, "geometry", code).stderr
    assert (tmp_path / "absent.json.log").read_text().split() == ["geometry", "train", "geometry"]


def test_snakemake_s_own_environment_is_enough_for_the_snakefile(tmp_path):
    code = "import yaml\nfrom persona_collapse.runtime import devices, version\n"
    code += "from persona_collapse import literals\n"
    code += "from persona_collapse.report.figures import catalogue\n"
    code += "from persona_collapse.study import configuration\n"
    code += "catalogue()['m1'].tables, literals.constant('analysis.claims', 'TABLES')\n"
    code += "config = configuration.check(yaml.safe_load(open('config/config.yaml')))\n"
    code += "configuration.plan(config).cells, version.commit(), devices.visible()\n"
    assert run(tmp_path, None, code).stderr == ""
    assert "No module named 'pandas'" in run(tmp_path, None, "import pandas").stderr
