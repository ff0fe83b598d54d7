import json

import pytest
from persona_collapse import files
from persona_collapse.errors import UserError


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "table.csv"
    files.write_text(target, "old")
    with pytest.raises(RuntimeError), files.atomic(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]


def test_jsonl_round_trip_is_canonical(tmp_path):
    rows = [{"b": 1, "a": "é"}, {"a": "x", "b": 2}]
    files.write_jsonl(tmp_path / "rows.jsonl", rows)
    text = (tmp_path / "rows.jsonl").read_text(encoding="utf-8")
    assert text.splitlines()[0] == '{"a": "é", "b": 1}'
    assert files.read_jsonl(tmp_path / "rows.jsonl") == rows


@pytest.mark.parametrize("line", ["{not json", "[1, 2]"])
def test_a_bad_line_is_named(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\n' + line + "\n")
    with pytest.raises(UserError, match="line 3"):
        files.read_jsonl(path)


def test_json_refuses_nan(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "x.json", {"x": float("nan")})
    assert not list(tmp_path.iterdir())


def test_damaged_json_is_named(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({"a": 1})[:-1])
    with pytest.raises(UserError, match=r"x\.json"):
        files.read_json(tmp_path / "x.json")
