"""Real runs of the workflow on a tiny model, in copies of the project outside the checkout.

The tiny run is made once (`finished`). Every test that changes something works in its own copy.
"""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from environments import GUARD, ROOT, guard

TINY = "tests/workflow/tiny.yaml"
#: Seconds after which something counts as hanging, even on a slow or busy machine.
HANG = 3600
#: Runs of Snakemake are forked from a process that has imported Snakemake and the Snakefile's
#: third-party imports. Each run imports the project's own package from its own folder.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["snakemake.cli", "pandas", "pytest"])


def _run(arguments, folder, env, output):
    """`python -m snakemake` in a forked process; all output goes to a file."""
    with open(output, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    # Nothing from the checkout, except packages installed in it.
    sys.path[:] = [p for p in sys.path if "site-packages" in p or not Path(p).is_relative_to(ROOT)]
    sys.argv = ["snakemake", *arguments]
    from snakemake.cli import main

    main()


class Results:
    """The folder of a run and its content."""

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, name):
        """Path of a result."""
        return self.folder / "results/demo" / name

    def copy(self, folder: Path):
        """A copy to run Snakemake in. It keeps times and internal hard links, but none to the original."""
        subprocess.run(["cp", "-a", self.folder, folder], check=True)
        return Project(folder)


class Project(Results):
    """A working copy of the project and ways to run Snakemake in it."""

    def snakemake(self, *arguments, check=True, overlay=None, under=(), env=None):
        """Run Snakemake, `under` a command in a fresh process; returns the finished process.

        `overlay`: a config file over the run's own, or several.
        """
        over = [overlay] if isinstance(overlay, str | Path) else overlay or []
        given = ["--cores", "2", *(["--configfile", *map(str, over)] if over else []), *arguments]
        env = {**os.environ, "PYTHONUNBUFFERED": "1"} | (env or {})
        output = self.folder / ".snakemake/said.log"
        output.parent.mkdir(exist_ok=True)
        if under:
            command = [*under, sys.executable, "-m", "snakemake", *given]
            with open(output, "w") as file:
                code = subprocess.run(
                    command, cwd=self.folder, env=env, stdout=file, stderr=file, timeout=HANG
                ).returncode
        else:
            process = FORKS.Process(target=_run, args=(given, str(self.folder), env, str(output)))
            process.start()
            process.join(HANG)
            if process.is_alive():
                process.kill()
                raise AssertionError(f"hangs: {output.read_text()[-6000:]}")
            code = process.exitcode
        done = subprocess.CompletedProcess(given, code, output.read_text())
        if check and code:
            raise AssertionError(done.stdout[-6000:])
        return done

    def start(self, *arguments, env=None):
        """Start Snakemake in a process group of its own; its output is dropped."""
        return subprocess.Popen(
            [sys.executable, "-m", "snakemake", "--cores", "2", *arguments],
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


def merged(*layers):
    """YAML texts merged as Snakemake merges config files."""
    from snakemake.utils import update_config

    config: dict = {}
    for layer in layers:
        update_config(config, yaml.safe_load(layer))
    return config


def tiny_project(folder: Path) -> Project:
    """A copy in which nothing has run, with the tiny run as its demo."""
    copy_project(folder)
    config = folder / "config/config.yaml"
    tiny = merged(config.read_text(), (ROOT / TINY).read_text()) | {"run": "demo"}
    # Without null values, which Snakemake would not merge with a test's own overlay.
    tiny["measures"] = {name: own for name, own in tiny["measures"].items() if own is not None}
    config.write_text(yaml.safe_dump(tiny, sort_keys=False))
    return Project(folder)


def without_network() -> list[str]:
    """A command that runs without network, not even loopback; empty if that is not permitted."""
    for command in (["unshare", "-n"], ["unshare", "-rn"]):
        if shutil.which("unshare") and not subprocess.run([*command, "true"]).returncode:
            return command
    return []


#: Records every address that a Python process looks up, connects to or listens on.
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


def make_tiny_run(folder: Path) -> dict:
    """Make the tiny run: fetch first, then run without network; returns observations.

    Each job can import only what its environment has. `fetched`: the results after the fetch.
    `isolated`: the command that removes the network. `watched`: socket operations of the Python
    processes after the fetch, one per line. `guarded`: scripts whose imports were restricted to their
    environment. `env`: the environment variables of the run.
    """
    made, hook = tiny_project(folder / "project"), folder / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(GUARD)
    held = {"PYTHONPATH": str(hook)} | guard(hook)
    made.snakemake("--", "fetch", under=["env"], env=held)
    fetched = [str(p.relative_to(made.path(""))) for p in made.path("").rglob("*.json*")]
    (hook / "sitecustomize.py").write_text(GUARD + WATCHER)
    # As for a user who has set the libraries online; the workflow must override this.
    online = dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"), "0")
    env = {**online, **held, "WATCHED": str(hook / "log")}
    isolated = without_network()
    made.snakemake(under=isolated or ["env"], env=env)
    return {
        "fetched": fetched,
        "isolated": isolated,
        "watched": (hook / "log").read_text().splitlines(),
        "guarded": sorted(set(Path(held["GUARD"] + ".log").read_text().split())),
        "env": env,
    }


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Results:
    """The finished tiny run for all tests: they read it, and change only copies (`project`).

    Tests may run in several processes (pytest-xdist): the first one makes it, the others wait.
    """
    from persona_collapse.files import locked

    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder, seen = shared / "tiny-run", shared / "tiny-run.json"
    with locked(shared / "tiny-run.lock", wait=True):
        if not folder.exists():
            folder.mkdir()
            seen.write_text(json.dumps(make_tiny_run(folder)))
    if not seen.exists():
        pytest.fail("the tiny run failed in the process that made it", pytrace=False)
    made = Results(folder / "project")
    vars(made).update(json.loads(seen.read_text()))
    return made


@pytest.fixture
def project(finished, tmp_path) -> Project:
    """A copy of the finished tiny run for one test alone."""
    return finished.copy(tmp_path / "project")


def of_one_model(config: dict) -> dict:
    """The config with `model:` as the only base model, without shifts, and without conditions of either."""
    shifts = {name for name, stage in config["stages"].items() if stage["kind"] == "shift"}
    others = (*config["models"], *shifts)
    conditions = {
        name: entry
        for name, entry in config["conditions"].items()
        if not any(f"+{other}" in f"+{entry['chain']}" for other in others)
    }
    contrasts = [pair for pair in config["statistics"]["contrasts"] if {*pair} <= {*conditions}]
    return config | {
        "models": {},
        "stages": {n: stage for n, stage in config["stages"].items() if n not in shifts},
        "conditions": conditions,
        "statistics": config["statistics"] | {"contrasts": contrasts},
    }
