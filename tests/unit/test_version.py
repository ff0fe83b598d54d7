"""The commit that manifests and the report name."""

import subprocess

import pytest
from persona_collapse.runtime import version


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A git checkout with one file of code, committed."""
    monkeypatch.setattr(version, "CODE", tmp_path / "code")
    (tmp_path / "code").mkdir()
    (tmp_path / "code/one.py").write_text("")
    (tmp_path / ".gitignore").write_text("__pycache__/\n")
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "one"]):
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *who, *command], cwd=tmp_path, check=True)
    return tmp_path


def test_code_that_is_not_in_the_commit_is_told(checkout):
    clean = version.commit()
    assert len(clean) == 40
    (checkout / "code/__pycache__").mkdir()
    (checkout / "code/__pycache__/one.pyc").write_text("")
    (checkout / "notes.txt").write_text("Not code.")
    assert version.commit() == clean
    (checkout / "code/mine.py").write_text("")
    assert version.commit() == f"{clean}-dirty"
    (checkout / "code/one.py").write_text("a = 1")
    assert version.commit() == f"{clean}-dirty"


def test_outside_a_checkout_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(version, "CODE", tmp_path)
    assert version.commit() == ""
