"""The container recipe, checked without building: the lock's versions, existing files, the entry point."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
STEPS = [line.split(maxsplit=1) for line in TEXT.splitlines() if line and line[0] not in "# \t"]


def test_only_known_instructions_from_a_slim_python():
    assert STEPS[0] == ["FROM", "python:3.11-slim"]
    assert {s for s, _ in STEPS} <= {
        "FROM",
        "ARG",
        "RUN",
        "WORKDIR",
        "COPY",
        "ENV",
        "ENTRYPOINT",
        "CMD",
    }
    assert ["ENTRYPOINT", '["snakemake"]'] in STEPS


def test_it_copies_files_that_git_holds_and_all_that_a_run_reads():
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    ).stdout.splitlines()
    copied = [word for step, rest in STEPS if step == "COPY" for word in rest.split()[:-1]]
    for name in copied:
        assert any(f == name or f.startswith(f"{name}/") for f in listed), name
    locks = {"requirements.lock", "requirements-torch.lock"}
    assert {"Snakefile", "config", "envs", "workflow", *locks} <= set(copied)


def test_it_installs_as_make_does_and_vllm_at_the_environment_s_version_alone():
    *locks, vllm = re.findall(r"pip install --no-cache-dir ([^;&]+)", TEXT)
    makefile = (ROOT / "Makefile").read_text().partition("$(VENV)/.run:")[2].partition("touch")[0]
    assert [one.split() for one in locks] == [
        one.split() for one in re.findall(r"\$\(INSTALL\) (.+)", makefile)
    ]
    assert "-c locked.txt" in vllm and "pip freeze > locked.txt" in TEXT
    asked = re.search(r"\$\((grep .*?)\)", vllm).group(1)
    found = subprocess.run(["sh", "-c", asked], cwd=ROOT, capture_output=True, text=True).stdout
    pinned = re.findall(r"^ +- (vllm==\S+)$", (ROOT / "envs/generate.yaml").read_text(), re.M)
    assert found.split() == pinned
    # No version is repeated.
    assert not re.search(r"==\d", TEXT)
