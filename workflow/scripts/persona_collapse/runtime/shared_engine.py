"""One process for many chains, while each chain keeps its files and a job of its own.

Starting an engine, or importing PyTorch, takes as long as the work for several chains. So the job
that has done so also does the work of other planned chains that are ready, and leaves the
results in a store; their own jobs then find them there and end at once. A result is keyed by the
content of everything it was made from (adapters, base, questions, settings, code), so what the
store holds for a chain that has changed since is never used: only that chain is done again. What an
engine finished before it died is kept.

Jobs that run side by side share the chains out among themselves by file locks. Where the file
system has none, every job does its own chain alone.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from .. import adapter_files
from ..errors import UserError
from ..files import atomic, locked, sha256, write_json

Task = Mapping[str, Any]


@functools.cache
def _digest(path: str, size: int, changed: int) -> str:
    """SHA-256 of a file of this size that was changed at this time, in nanoseconds."""
    return sha256(path)


def _hash(path: str | Path) -> str:
    """SHA-256 of a file; many tasks read the same one, which is hashed once."""
    at = os.stat(path)
    return _digest(str(path), at.st_size, at.st_mtime_ns)


def key_of(
    task: Task,
    base: str | Path,
    more: Sequence[str | Path] = (),
    stages: Sequence[str | Path] | None = None,
) -> str:
    """Hash of what a task's result depends on: the task, its files' contents, and `more` files.

    `base` is the base model's record (model.json, which holds the hashes of its files); `stages`: where
    the adapters of the task's chain are, if not in its own folders. Raises OSError if a file is missing.
    """
    stages = task["stages"] if stages is None else stages
    parts: dict[str, Any] = {
        "task": task,
        "base": _hash(base),
        "questions": _hash(task["questions"]["file"]) if "questions" in task else "",
        "adapters": adapter_files.content_hash(stages) if stages else "",
        "more": [_hash(path) for path in more],
    }
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def ready_key(
    task: Task,
    code: str,
    base: str | Path,
    more: Sequence[str | Path] = (),
    stages: Sequence[str | Path] | None = None,
) -> str | None:
    """`key_of` a task done by code of this hash; None if an adapter of its chain or of `more` is missing."""
    folders = task["stages"] if stages is None else stages
    manifests = [Path(folder) / "manifest.json" for folder in folders]
    if not all(Path(path).is_file() for path in [*manifests, *more]):
        return None
    return key_of({**task, "code": code}, base, more, folders)


class Store:
    """Results by kind and name, each with its key and checksums beside it; one per name is kept.

    A result is a file, or, for a task whose `suffix` is empty, a folder of files.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root)

    def _paths(self, task: Task) -> tuple[Path, Path]:
        folder = self.root / task["kind"]
        return folder / f"{task['name']}{task['suffix']}", folder / f"{task['name']}.json"

    def path(self, task: Task) -> Path:
        """Where the chain's result lies, if there is one."""
        return self._paths(task)[0]

    def holds(self, task: Task, key: str, *, checked: bool = True) -> bool:
        """Is there a result for this key; `checked`: with the bytes that were put?"""
        path, record = self._paths(task)
        try:
            known = json.loads(record.read_text(encoding="utf-8"))
            if known["key"] != key or not path.exists():
                return False
            return not checked or bool(known["sha256"] == _hashes(path))
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def put(self, task: Task, key: str, write: Callable[[Path], None]) -> None:
        """Keep a result: `write` gets the path to write to. It replaces the chain's former one."""
        path, record = self._paths(task)
        # The record goes first and comes back last, so it never speaks of other bytes.
        record.unlink(missing_ok=True)
        if task["suffix"]:
            with atomic(path) as temporary:
                write(temporary)
        else:
            path.mkdir(parents=True, exist_ok=True)
            write(path)
        write_json(record, {"key": key, "sha256": _hashes(path)})

    def take(self, task: Task, output: str | Path) -> None:
        """Put the chain's result at `output`: hard links where possible, else copies."""
        path, output = self.path(task), Path(output)
        for source in _files(path):
            target = output if source == path else output / source.name
            with atomic(target) as temporary:
                try:
                    os.link(source, temporary)
                except OSError:
                    shutil.copyfile(source, temporary)
            os.utime(target)

    def claimed(self, task: Task, *, wait: bool) -> AbstractContextManager[bool]:
        """Hold the lock on a chain's result; see `files.locked`."""
        return locked(self.root / task["kind"] / f".{task['name']}.lock", wait=wait)


def _files(path: Path) -> list[Path]:
    """The files of a result."""
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.iterdir() if not file.name.startswith("."))


def _hashes(path: Path) -> dict[str, str]:
    """SHA-256 of a result's files, by name."""
    return {file.name: sha256(file) for file in _files(path)}


def run(
    store: Store,
    own: Task,
    planned: Sequence[Task],
    *,
    key: Callable[[Task], str | None],
    open_engine: Callable[[], Any],
    work: Callable[[Any, Task, Path], None],
    limit: int,
    output: str | Path,
    say: Callable[[str], None],
) -> int:
    """Do `own`, and up to `limit` - 1 of the `planned` tasks that are ready; returns how many.

    `key` gives a task's key, or None if its inputs are not there yet. `open_engine` is called once,
    and only if something is left to do; `work(engine, task, path)` writes a task's result. A
    planned task that fails is left to its own job, which will say why; `own` failing ends the job.
    """
    own_key = key(own)
    if own_key is None:
        raise UserError(f"{own['kind']} {own['name']}: an adapter of the chain is missing; rerun")
    done = 0
    with store.claimed(own, wait=False) as free:
        if not free:
            say(f"{own['name']}: another job is at work on it; waits for its end")
    with store.claimed(own, wait=True):
        if store.holds(own, own_key):
            say(f"{own['name']}: {own['kind']} made by an earlier job")
            store.take(own, output)
            return 0
        engine = open_engine()
        store.put(own, own_key, lambda path: work(engine, own, path))
        store.take(own, output)
        done += 1
    left = [t for t in planned if (t["kind"], t["name"]) != (own["kind"], own["name"])]
    progress = True
    # Once more after each round that did something: meanwhile others may have become ready.
    while progress:
        progress, waiting = False, []
        for task in left:
            if done >= limit:
                return done
            with store.claimed(task, wait=False) as mine:
                ready = key(task) if mine else None
                if ready is None:
                    waiting.append(task)
                    continue
                # Its own job looks at the bytes: hundreds of results take minutes to read.
                if store.holds(task, ready, checked=False):
                    continue
                say(f"{task['name']}: {task['kind']} by the same engine")
                try:
                    store.put(task, ready, lambda path, task=task: work(engine, task, path))  # type: ignore[misc]
                except Exception as error:
                    say(f"{task['name']}: {type(error).__name__}: {error}; left to its own job")
                    return done
                done, progress = done + 1, True
        left = waiting
    return done
