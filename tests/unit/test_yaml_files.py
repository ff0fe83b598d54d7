import json
from pathlib import Path

import pytest
import yaml
from persona_collapse import files, yaml_files
from persona_collapse.analysis import claims, errata
from persona_collapse.errors import UserError
from persona_collapse.models import demo
from persona_collapse.study import configuration
from persona_collapse.study.plan import Plan

ROOT = Path(__file__).resolve().parents[2]
OURS = [
    path
    for folder in ("config", "workflow", "envs", "tests/workflow")
    for path in sorted((ROOT / folder).rglob("*.yaml"))
]


@pytest.fixture
def refused(tmp_path):
    """The one-line error for a text as a YAML file, without the file's folder."""

    def refuse(text, read=yaml_files.check, name="my.yaml"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        with pytest.raises(UserError) as error:
            read(tmp_path / name)
        assert "\n" not in str(error.value)
        return str(error.value).removeprefix(f"{tmp_path}/")

    return refuse


@pytest.mark.parametrize("path", OURS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_ships_is_read_as_pyyaml_reads_it(path):
    assert yaml_files.load(path) == yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3\n", "my.yaml, line 3: duplicate key 'a' (first in line 1)"),
        ("a: {b: {c: 1, d: 2, c: 3}}\n", "my.yaml, line 1: duplicate key 'c'"),
        ("- a: 1\n  'a': 2\n", "my.yaml, line 2: duplicate key 'a'"),
        ('{"a": 1,\n\t"a": 2}\n', "my.yaml, line 2: duplicate key 'a' (first in line 1)"),
        ("x: &x {a: 1}\ny:\n  <<: *x\n  <<: *x\n", "my.yaml, line 4: duplicate key '<<'"),
        ("a: 1\nno: 2\n", 'line 2: the key no is not text but true or false in YAML; write "no"'),
        (
            "007: {prompt: x}\n",
            'the key 007 is not text but a number in YAML; write "007" in quotes',
        ),
        ("null: 1\n", "the key null is not text but nothing"),
        ("2026-11-26: 1\n", "the key 2026-11-26 is not text but a date"),
        ("{source}: 1\n", "line 1: a list or mapping as a key"),
        ("a:\n\t- b\n", "my.yaml, line 2: a tab; YAML is indented with spaces"),
        ("a:\n  b: 1\n\tc: 2\n", "my.yaml, line 3: a tab"),
        ("seeds: [042]\n", '042 is the number 34 in YAML (base 8); write 42, or "042" for text'),
        ("a: 1:30\n", '1:30 is a number in base 60 in YAML; write "1:30" for text'),
        ('a: 1\nb: "\\ud83d"\n', "my.yaml, line 2: cannot be read as YAML (found invalid Unicode"),
        ('{"a": "\\ud83d"}\n', "my.yaml, line 1: cannot be read as YAML (found invalid Unicode"),
        ("a: [1\n", "my.yaml, line 2: cannot be read as YAML"),
        ("a: b: c\n", "my.yaml, line 1: cannot be read as YAML (mapping values are not allowed"),
        ("a: !!python/tuple [1]\n", "my.yaml, line 1: cannot be read as YAML (could not determine"),
        ("a: 1\n---\na: 2\n", "my.yaml, line 2: cannot be read as YAML (but found another"),
        ("[" * 100_000, "my.yaml"),
        ("a: 2026-13-01\n", "my.yaml: cannot be read (month must be in 1..12)"),
    ],
)
def test_what_yaml_reads_as_something_else_is_one_line(refused, text, said):
    assert said in refused(text)


@pytest.mark.parametrize("parser", ["SafeLoader", "CSafeLoader"])
def test_both_parsers_of_pyyaml_find_the_same(refused, parser, monkeypatch):
    monkeypatch.setattr(yaml_files, "Loader", getattr(yaml, parser))
    assert "line 2: duplicate key 'a'" in refused("a: 1\na: 2\n")
    assert "line 2: a tab" in refused("a:\n\t- b\n")
    assert "line 1: " in refused('a: "\\ud83d"\n')


def test_a_key_over_a_merged_one_and_escapes_in_json_are_no_duplicates(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text("x: &x {a: 1}\ny: {<<: *x, a: 2}\nz: [*x, *x]\n")
    assert yaml_files.load(path)["y"] == {"a": 2}
    given = {"é": "\U0001f419", "è": 1}
    path.write_text(json.dumps(given, indent="\t"))
    assert yaml_files.load(path) == given


@pytest.mark.parametrize(
    ("read", "text", "said"),
    [
        (claims.load, "- {id: a, id: b}\n", "my.yaml, line 1: duplicate key 'id'"),
        (claims.load, "id: a\n", "expected a list of mappings"),
        (errata.load, "- id: a\n  text: b\n  text: c\n", "my.yaml, line 3: duplicate key 'text'"),
        (errata.load, "", "expected a list of mappings"),
        (lambda p: demo.load_world(p, {}, "[ZLT]"), "kinds: {}\nkinds: {}\n", "duplicate key 'kinds'"),
        (lambda p: demo.load_world(p, {}, "[ZLT]"), "kinds: {}\n", "the key 'voices' is missing"),
    ],
)  # fmt: skip
def test_every_file_of_the_project_is_read_so(refused, read, text, said):
    assert said in refused(text, read)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("p.yaml", "villain: {prompt: a}\nvillain: {prompt: b}\n", "line 2: duplicate key 'villain'"),
        ("p.yaml", "villain: {prompt: a, prompt: b}\n", "line 1: duplicate key 'prompt'"),
        ("p.jsonl", '{"persona": "a", "system": "x"}\n' * 2, "row 2: duplicate persona 'a'"),
        ("p.jsonl", '{"persona": "a", "system": "x", "system": "y"}\n', "as JSON (duplicate key 'system')"),
        ("p.jsonl", '{"system": "x"}\n', "row 1: persona: expected text, got None"),
        ("p.yaml", "- villain\n", "expected a mapping"),
    ],
)  # fmt: skip
def test_personas_with_a_duplicate_are_refused(refused, name, text, said, monkeypatch):
    monkeypatch.chdir(ROOT)
    given = yaml.safe_load((ROOT / "config/config.yaml").read_text())

    def check(path):
        given["personas"]["file"] = str(path)
        configuration.check(given)

    line = refused(text, check, name)
    assert line.startswith("config: personas: ") and said in line


def test_half_a_surrogate_pair_in_a_persona_is_refused(refused):
    line = refused(
        '{"persona": "a", "system": "x \\ud83d"}\n',
        lambda path: Plan({"personas": {"file": str(path)}}).all_prompts,
        "p.jsonl",
    )
    assert "a: prompt: half a surrogate pair" in line


@pytest.mark.parametrize(
    ("read", "name"),
    [(files.read_jsonl, "rows.jsonl"), (files.read_json, "rows.json")],
)
def test_a_duplicate_key_in_json_is_refused(refused, read, name):
    assert "duplicate key 'b'" in refused('{"a": {"b": 1, "b": 2}}\n', read, name)


@pytest.mark.parametrize("key", ["claims", "errata"])
def test_files_of_the_last_jobs_are_looked_at_first(refused, key, monkeypatch):
    monkeypatch.chdir(ROOT)
    given = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    assert "line 2: duplicate key 'id'" in refused(
        "- id: a\n  id: b\n", lambda path: configuration.check(given | {key: str(path)})
    )


@pytest.mark.parametrize(
    ("path", "text", "said"),
    [
        ("training: sft: lr", "1e-4", "expected a number, got '1e-4' (text in YAML: write 1.0e-04)"),
        ("training: sft: epochs", "2.5e3", "(text in YAML: write 2.5e+03)"),
        ("lora: dropout", "'0.5'", "(text in YAML: write 0.5)"),
        ("lora: r", "'8'", "(text in YAML: write 8)"),
        ("training: sft: steps", "1e3", "(text in YAML: write 1000)"),
        ("run", "001", "expected text, got 1 (write it in quotes"),
        ("run", "2026-11-26", "expected text, got 2026-11-26 (write it in quotes"),
        ("run", "no", "expected text, got False (yes, no, on and off are"),
        ("marker", "yes", "(yes, no, on and off are true and false in YAML"),
        ("conditions: C1: title", "off", "(yes, no, on and off are"),
        ("source_personas", "[no]", "source_personas: item 1: expected text, got False (yes, no"),
        ("training: sft: use_rslora", "'no'", "(write true or false, without quotes)"),
        ("data: benign: system", "no", "(yes, no, on and off are"),
    ],
)  # fmt: skip
def test_a_value_that_yaml_took_for_another_kind_is_said_how_to_write(
    path, text, said, monkeypatch
):
    monkeypatch.chdir(ROOT)
    given = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    node = given
    *parents, last = path.split(": ")
    for key in parents:
        node = node[key]
    node[last] = yaml.safe_load(text)
    with pytest.raises(UserError) as error:
        configuration.check(given)
    assert said in str(error.value) and str(error.value).startswith(f"config: {path}")


@pytest.mark.parametrize("advised", ["1.0e-04", "2.5e+03"])
def test_the_advice_is_a_number_in_yaml(advised):
    assert isinstance(yaml.safe_load(advised), float)
