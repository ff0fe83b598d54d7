"""A config error names the file and the line of its key."""

import subprocess
import sys
from pathlib import Path

import pytest
from persona_collapse.errors import UserError
from persona_collapse.study.places import placed

ROOT = Path(__file__).resolve().parents[2]
FIRST = """\
seeds: [42]
stages:
  em: {kind: sft, data: em}
  benign:
    kind: sft
    data: benign
families:
  - {name: a, table: t}
contrasts: [[C1, C5]]
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
families:
  - {name: b}
"""


@pytest.mark.parametrize(
    ("said", "where"),
    [
        ("config: stages: mine: batchsize: unknown key", " (two.yaml, line 5)"),
        ("config: stages: mine: data: is missing", " (two.yaml, line 3)"),
        ("config: families: item 1: table: is missing", " (two.yaml, line 10)"),
        ("config: contrasts: pair 1: no condition 'C9'", " (one.yaml, line 9)"),
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


def test_a_setting_of_an_overlay_is_placed_there(tmp_path):
    """Snakemake lists the files of the command line before the workflow's own."""
    overlay = tmp_path / "mine.yaml"
    overlay.write_text("# Mine.\ntraining: {sft: {lr: 1e-4}}\n")
    command = [sys.executable, "-m", "snakemake", "-n", "--configfile", str(overlay)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("persona-collapse: config: training: sft: lr: expected a number")
    assert last.endswith(f"({overlay}, line 2)")
