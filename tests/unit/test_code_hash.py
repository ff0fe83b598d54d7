"""Reruns: a code change changes the hashes of exactly the rules that import it, directly or indirectly."""

import ast
import re
import shutil
from modulefinder import ModuleFinder
from pathlib import Path

import pytest
from persona_collapse.runtime import code_hash

SCRIPTS = code_hash.SCRIPTS
PACKAGE = SCRIPTS / code_hash.PACKAGE
APART = [f"{code_hash.PACKAGE}.{name}" for name in code_hash.APART]
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
#: The scripts that rules run.
RULED = sorted(
    {
        name
        for rules in (SCRIPTS.parent / "rules").glob("*.smk")
        for name in re.findall(r'"\.\./scripts/(\w+\.py)"', rules.read_text())
    }
)
MODULES = sorted(
    str(path.relative_to(PACKAGE))
    for path in PACKAGE.rglob("*.py")
    if path.relative_to(PACKAGE).parts[0] not in code_hash.APART and path.name != "__init__.py"
)


class Copy:
    """A copy of the scripts and the package, used for hashing during a test."""

    def __init__(self, folder, monkeypatch):
        self.scripts = folder / "scripts"
        shutil.copytree(SCRIPTS, self.scripts, ignore=shutil.ignore_patterns("__pycache__"))
        monkeypatch.setattr(code_hash, "SCRIPTS", self.scripts)
        # Unlike functools.cache, this can forget a single file, which saves a second per test.
        self.known = {}
        for name in ("_tree", "_code", "imports"):
            monkeypatch.setattr(code_hash, name, self.kept(getattr(code_hash, name).__wrapped__))

    def kept(self, function):
        def known(path):
            values = self.known.setdefault(path, {})
            if function not in values:
                values[function] = function(path)
            return values[function]

        return known

    def path(self, module):
        return self.scripts / code_hash.PACKAGE / module

    def write(self, module, text):
        self.path(module).write_text(text)
        self.known.pop(self.path(module), None)

    def hashes(self):
        """The hash of every rule's script."""
        code_hash.closure.cache_clear()
        return {name: code_hash.of_script(name) for name in RULED}

    def of(self, *modules):
        """Hashes of modules."""
        code_hash.closure.cache_clear()
        code_hash.of.cache_clear()
        return {name: code_hash.of(name) for name in modules}

    def changed(self, module, text):
        """Scripts whose hash changes with another text of a module."""
        before, old = self.hashes(), self.path(module).read_text()
        assert text != old
        self.write(module, text)
        after = self.hashes()
        self.write(module, old)
        return {name for name in RULED if after[name] != before[name]}


@pytest.fixture
def copy(tmp_path, monkeypatch):
    yield Copy(tmp_path, monkeypatch)
    code_hash.closure.cache_clear()
    code_hash.of.cache_clear()


@pytest.fixture(scope="module")
def reached(tmp_path_factory):
    """{module: scripts that import it, directly or indirectly}, from Python's modulefinder.

    Without `study`, `runtime`, and imports for type checkers only.
    """
    scripts = tmp_path_factory.mktemp("reached") / "scripts"
    shutil.copytree(SCRIPTS, scripts, ignore=shutil.ignore_patterns("__pycache__"))
    for path in scripts.rglob("*.py"):
        path.write_text(path.read_text().replace("if TYPE_CHECKING:", "if False:"))
    found = {module: set() for module in MODULES}
    for name in RULED:
        finder = ModuleFinder(path=[str(scripts)], excludes=APART)
        finder.run_script(str(scripts / name))
        for module in finder.modules.values():
            path = Path(module.__file__ or "")
            if path.is_relative_to(scripts / code_hash.PACKAGE):
                found.get(str(path.relative_to(scripts / code_hash.PACKAGE)), set()).add(name)
    return found


def test_the_rules_scripts_are_there():
    assert len(RULED) > 20 and all((SCRIPTS / name).is_file() for name in RULED)
    assert len(MODULES) > 50


def test_every_module_changes_the_rules_that_reach_it_and_no_others(copy, reached):
    for module in MODULES:
        text = copy.path(module).read_text()
        assert copy.changed(module, f"{text}\n_ANOTHER = 1\n") == reached[module], module


def test_every_function_counts(copy, reached):
    """One function of each module returns something else."""
    changed = 0
    for module in MODULES:
        tree = ast.parse(copy.path(module).read_text())
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        if functions:
            functions[-1].body.append(ast.parse("return 'another'").body[0])
            ast.fix_missing_locations(tree)
            assert copy.changed(module, ast.unparse(tree)) == reached[module], module
            changed += 1
    assert changed > 40


def test_comments_docstrings_and_layout_change_nothing(copy):
    before = copy.hashes()
    for module in MODULES:
        tree = ast.parse(copy.path(module).read_text())
        for node in ast.walk(tree):
            if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
                node.body[0].value.value = "Other words."
            if isinstance(node, ast.keyword) and node.arg == "description":
                node.value = ast.Constant("Other words.")
        # Unparsed from the tree: without comments, and with another layout.
        copy.write(module, f"# Another comment.\n{ast.unparse(tree)}\n")
    assert copy.hashes() == before


def replaced(copy, module, old, new):
    """A module's text with a piece replaced."""
    text = copy.path(module).read_text()
    assert old in text
    return text.replace(old, new, 1)


def test_an_interval_changes_what_reports_it(copy):
    text = replaced(copy, "statistics.py", "tail = (1 - confidence) / 2", "tail = 0.025")
    changed = copy.changed("statistics.py", text)
    assert {"measure_answers.py", "marker_tables.py", "scorecard.py", "errata.py"} <= changed
    assert not {"train.py", "sample.py", "figure.py"} & changed


def test_a_new_column_of_a_table_trains_and_samples_nothing(copy):
    text = replaced(copy, "tables_io.py", '"chain", ', '"chain", "another", ')
    changed = copy.changed("tables_io.py", text)
    assert {"marker_tables.py", "report.py"} <= changed
    assert not {"train.py", "make_stage.py", "data.py", "couple_data.py", "sample.py"} & changed


def test_a_measure_changes_its_own_hash_and_no_other_measure_s(copy):
    measures = [path.stem for path in (PACKAGE / "measures").glob("[!_]*.py")]
    names = [f"measures.{name}" for name in measures]
    before = copy.of(*names)
    for name in measures:
        module = f"measures/{name}.py"
        copy.write(module, f"{copy.path(module).read_text()}\n_ANOTHER = 1\n")
        after = copy.of(*names)
        assert {one for one in names if after[one] != before[one]} == {f"measures.{name}"}
        before = after
