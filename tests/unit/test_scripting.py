from types import SimpleNamespace

import pytest
from persona_collapse.errors import UserError
from persona_collapse.runtime.job import OFFLINE, job


@pytest.fixture
def fake(tmp_path, monkeypatch):
    import sys

    # The job redirects both streams to its log; restore them afterwards.
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    given = SimpleNamespace(
        log=[str(tmp_path / "job.log")],
        resources=SimpleNamespace(gpu=0),
        config={"run": "demo"},
        input=[],
        output=[],
    )
    monkeypatch.chdir(tmp_path)
    return given, tmp_path / "job.log"


def test_progress_goes_to_the_log_and_the_terminal(fake, capsys):
    snakemake, log = fake
    with job(snakemake, "train x") as say:
        print("library chatter")
        say("step 1/10")
        say("step 2/10")
    assert "step 2/10" in log.read_text() and "library chatter" in log.read_text()
    shown = capsys.readouterr().err
    # One line in five seconds.
    assert "[train x] step 1/10" in shown and "step 2/10" not in shown
    assert "library chatter" not in shown


def test_bad_input_is_one_line_and_status_1(fake, capsys):
    snakemake, log = fake
    with pytest.raises(SystemExit) as ended, job(snakemake, "data em"):
        raise UserError("data: em: no such file")
    assert ended.value.code == 1
    assert capsys.readouterr().err == "  [data em] error: data: em: no such file\n"
    assert "Traceback" not in log.read_text()


def test_a_bug_leaves_its_traceback_in_the_log(fake, capsys):
    snakemake, log = fake
    with pytest.raises(SystemExit), job(snakemake, "data em"):
        raise KeyError("oops")
    assert "Traceback" in log.read_text() and "oops" in log.read_text()
    assert "KeyError; see" in capsys.readouterr().err


@pytest.mark.parametrize("users", [None, "0", "1"])
def test_only_a_job_that_says_so_may_ask_the_hub(fake, monkeypatch, users):
    import os

    for name in OFFLINE:
        monkeypatch.setenv(name, users or "")
        if users is None:
            monkeypatch.delenv(name)
    with job(fake[0], "data em", online=True):
        assert {os.environ.get(name) for name in OFFLINE} == {users}
    with job(fake[0], "train x"):
        assert {os.environ[name] for name in OFFLINE} == {"1"}


class OutOfMemoryError(RuntimeError):
    """PyTorch's name for the error."""


@pytest.mark.parametrize(
    "error",
    [
        OutOfMemoryError("tried to allocate 2 GiB"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be ..."),
    ],
)
def test_a_full_gpu_is_one_line_that_says_what_to_lower(fake, capsys, error):
    snakemake, log = fake
    with pytest.raises(SystemExit), job(snakemake, "train x"):
        raise error
    shown = capsys.readouterr().err
    assert "max_batch_tokens" in shown and "Traceback" not in shown and shown.count("\n") == 1
    assert str(error) in log.read_text()
