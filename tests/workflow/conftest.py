"""A copy of the project in a folder of its own, to run the real workflow in."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from environments import GUARD, ROOT, guard


class Project:
    """A working copy and ways to run Snakemake in it."""

    def __init__(self, folder: Path, overlay: Path):
        self.folder, self.overlay = folder, overlay

    def snakemake(self, *arguments, check=True, overlay=None, under=(), env=None):
        """Run Snakemake with the tiny overlay, `under` a command; returns the finished process."""
        command = [*under, sys.executable, "-m", "snakemake", "--cores", "2", "--configfile"]
        done = subprocess.run(
            [*command, str(overlay or self.overlay), *arguments],
            cwd=self.folder,
            env={**os.environ, "PYTHONUNBUFFERED": "1"} | (env or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=1500,
        )
        if check and done.returncode:
            raise AssertionError(done.stdout[-6000:])
        return done

    def start(self, *arguments, env=None):
        """Start Snakemake in a process group of its own; its output is dropped."""
        command = [sys.executable, "-m", "snakemake", "--cores", "2", "--configfile"]
        return subprocess.Popen(
            [*command, str(self.overlay), *arguments],
            cwd=self.folder,
            env=os.environ | (env or {}),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def planned(self, *arguments, overlay=None):
        """{rule: number of jobs} of a dry run, and its whole text."""
        text = self.snakemake("-n", *arguments, overlay=overlay).stdout
        return parse_jobs(text), text

    def path(self, name):
        """Path of a result of the tiny run."""
        return self.folder / "results" / "tiny" / name


def parse_jobs(text):
    """{rule: count} from the job table that Snakemake prints."""
    counts, inside = {}, False
    for line in text.splitlines():
        words = line.split()
        if words[:2] == ["job", "count"]:
            inside = True
        elif inside and len(words) == 2 and words[1].isdigit():
            if words[0] == "total":
                break
            counts[words[0]] = int(words[1])
    return counts


def copy_project(folder: Path) -> Path:
    """Copy the tracked and new files of the checkout, nothing ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    for name in filter(None, listed):
        source, target = ROOT / name, folder / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    return folder


def without_network() -> list[str]:
    """A command under which there is no network, not even loopback; empty where none is allowed."""
    for command in (["unshare", "-n"], ["unshare", "-rn"]):
        if shutil.which("unshare") and not subprocess.run([*command, "true"]).returncode:
            return command
    return []


#: Notes every address that a Python process asks for, connects to or listens on.
WATCHER = """
import os, sys
EVENTS = {"socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"}
def watch(event, arguments):
    if event in EVENTS:
        with open(os.environ["WATCHED"], "a") as log:
            print(event, *[a for a in arguments if isinstance(a, str | tuple | int)], file=log)
sys.addaudithook(watch)
with open(os.environ["WATCHED"], "a") as log:
    print("started", file=log)
"""


@pytest.fixture(scope="session")
def project(tmp_path_factory) -> Project:
    """The tiny run, finished once for all tests of the session: fetched first, then without network.

    Each job can import what its environment holds, and no more.
    `watched`: what the Python processes after the fetch did with sockets, a line each.
    `guarded`: the scripts that ran so.
    """
    folder = copy_project(tmp_path_factory.mktemp("project"))
    made = Project(folder, ROOT / "tests/workflow/tiny.yaml")
    hook = tmp_path_factory.mktemp("watcher")
    (hook / "sitecustomize.py").write_text(GUARD)
    held = {"PYTHONPATH": str(hook)} | guard(hook)
    made.snakemake("--", "fetch", env=held)
    made.fetched = {str(p.relative_to(made.path(""))) for p in made.path("").rglob("*.json*")}
    (hook / "sitecustomize.py").write_text(GUARD + WATCHER)
    # As a user who has told the libraries to go online; the workflow shall know better.
    online = dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"), "0")
    env = {**online, **held, "WATCHED": str(hook / "log")}
    made.isolated, made.env = without_network(), env
    made.snakemake(under=made.isolated, env=env)
    made.watched = (hook / "log").read_text().splitlines()
    made.guarded = set(Path(held["GUARD"] + ".log").read_text().split())
    return made


def pytest_collection_modifyitems(items):
    """Mark the tests that share the tiny run: `make test` runs the others beside them."""
    for item in items:
        if "project" in getattr(item, "fixturenames", ()):
            item.add_marker("tiny_run")


def pytest_terminal_summary(terminalreporter):
    """How many injected faults were made good, byte for byte."""
    cases = {
        state: [
            report
            for report in terminalreporter.stats.get(state, [])
            if "/test_faults.py" in report.nodeid
            and "after_all_of_it" not in report.nodeid
            and getattr(report, "when", "call") == "call"
        ]
        for state in ("passed", "failed")
    }
    tried = sum(map(len, cases.values()))
    if tried:
        terminalreporter.write_line(
            f"faults: {tried} tried, {len(cases['passed'])} made good byte for byte"
        )
