"""A config error names the file and the line of its key."""

import pytest
from persona_collapse.errors import UserError
from persona_collapse.study.places import placed

FIRST = """\
seeds: [42]
stages:
  em: {kind: sft, data: em}
  benign:
    kind: sft
    data: benign
"""
SECOND = """\
# Mine.
stages:
  mine:
    kind: sft
    batchsize: 3
seeds:
  - 42
  - one
"""


@pytest.mark.parametrize(
    ("said", "where"),
    [
        ("config: stages: mine: batchsize: unknown key", " (two.yaml, line 5)"),
        ("config: stages: mine: data: is missing", " (two.yaml, line 3)"),
        (
            "config: stages: em: data: 'em' is not under data:; available: none",
            " (one.yaml, line 3)",
        ),
        ("config: stages: benign: data: 'x' is not under data:", " (one.yaml, line 6)"),
        ("config: seeds: item 2: expected a whole number, got 'one'", " (two.yaml, line 8)"),
        ("config: seeds: item 1: expected a whole number", " (two.yaml, line 7)"),
        ("config: seeds: item 9: expected a whole number", " (two.yaml, line 6)"),
        # Both files have the key: the last one's value counts.
        ("config: stages: expected a mapping, got a list", " (two.yaml, line 2)"),
        ("config: nowhere: unknown key", ""),
        ("one.yaml, line 3: duplicate key 'em'", ""),
    ],
)
def test_the_deepest_key_of_the_last_file_is_told(tmp_path, monkeypatch, said, where):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.yaml").write_text(FIRST)
    (tmp_path / "two.yaml").write_text(SECOND)
    (tmp_path / "empty.yaml").write_text("")
    (tmp_path / "broken.yaml").write_text("seeds: [")
    files = ["one.yaml", "empty.yaml", "two.yaml", "broken.yaml", "none.yaml"]
    assert placed(UserError(said), files) == said + where
