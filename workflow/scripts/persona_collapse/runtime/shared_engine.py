"""One process serves many chains; each chain keeps its own files and job.

Starting an engine, or importing PyTorch, takes as long as the work for several chains. So a job that
has started one also does the work of other planned chains that are ready, and puts the results into a
store. The jobs of those chains find them there and end at once. A result is keyed by the content of
everything that it was made from (adapters, base, questions, settings, code). If a chain has changed
since, its stored result is not used and only that chain is done again. Results that an engine finished
before it died are kept.

Simultaneous jobs divide the chains among themselves with file locks. If the file system has no locks,
every job does only its own chain.
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
from ..jobs import Job

Folders = Sequence[str | Path]


@functools.cache
def _digest(path: str, size: int, changed: int) -> str:
    """SHA-256 of a file with this size and modification time (in nanoseconds)."""
    return sha256(path)


def _hash(path: str | Path) -> str:
    """SHA-256 of a file; a file that many jobs read is hashed once."""
    at = os.stat(path)
    return _digest(str(path), at.st_size, at.st_mtime_ns)


def key_of(job: Job, code: str, base: str | Path, adapters: Folders | None = None) -> str:
    """Hash of everything that a job's result depends on: the job, the code, and the contents of its
    input files.

    `base` is the base model's record (model.json, which holds the hashes of its files). `adapters`:
    folders of the chain's adapters, if not the job's own. Raises OSError if a file is missing.
    """
    values = job.values()
    folders = job.adapters if adapters is None else adapters
    parts: dict[str, Any] = {
        "job": values,
        "code": code,
        "base": _hash(base),
        "adapters": adapter_files.content_hash(folders) if folders else "",
        "files": [_hash(path) for path in [*job.files, *_question_files(values)]],
    }
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _question_files(values: Mapping[str, Any]) -> list[str]:
    """Question files among a job's values."""
    nested = {**values, **values.get("given", {})}
    return [nested[name]["file"] for name in ("questions", "extraction") if name in nested]


def ready_key(job: Job, code: str, base: str | Path, adapters: Folders | None = None) -> str | None:
    """`key_of` a job; None if an adapter of its chain, or a file that it reads, is missing."""
    folders = job.adapters if adapters is None else adapters
    files = [*(Path(folder) / "manifest.json" for folder in folders), *map(Path, job.files)]
    if not all(path.is_file() for path in files):
        return None
    return key_of(job, code, base, folders)


class Store:
    """Results by kind and name, each stored with its key and checksums; one result per name is kept.

    `runtime`: the runtime settings of the job, recorded with its result but not part of the key.
    A result is a file, or, for a job whose `suffix` is empty, a folder of files.
    """

    def __init__(self, root: str | Path, runtime: Mapping[str, Any] | None = None):
        self.root, self.runtime = Path(root), dict(runtime or {})

    def _paths(self, job: Job) -> tuple[Path, Path]:
        folder = self.root / job.kind
        return folder / f"{job.name}{job.suffix}", folder / f"{job.name}.json"

    def path(self, job: Job) -> Path:
        """Path of the chain's result, if there is one."""
        return self._paths(job)[0]

    def holds(self, job: Job, key: str, *, checked: bool = True) -> bool:
        """Is there a result for this key? `checked`: also compare its checksums."""
        path, record = self._paths(job)
        try:
            known = json.loads(record.read_text(encoding="utf-8"))
            if known["key"] != key or not path.exists():
                return False
            return not checked or bool(known["sha256"] == _hashes(path))
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def put(self, job: Job, key: str, write: Callable[[Path], None]) -> None:
        """Store a result in place of the chain's previous one: `write` gets the path to write to."""
        path, record = self._paths(job)
        # The record is removed first and written last, so it never describes other bytes.
        record.unlink(missing_ok=True)
        if job.suffix:
            with atomic(path) as temporary:
                write(temporary)
        else:
            path.mkdir(parents=True, exist_ok=True)
            write(path)
        write_json(record, {"key": key, "sha256": _hashes(path), "runtime": self.runtime})

    def take(self, job: Job, output: str | Path) -> None:
        """Place the chain's result at `output`: hard links if possible, else copies."""
        path, output = self.path(job), Path(output)
        for source in _files(path):
            target = output if source == path else output / source.name
            with atomic(target) as temporary:
                try:
                    os.link(source, temporary)
                except OSError:
                    shutil.copyfile(source, temporary)
            os.utime(target)

    def claimed(self, job: Job, *, wait: bool) -> AbstractContextManager[bool]:
        """Hold the lock on a chain's result; see `files.locked`."""
        return locked(self.root / job.kind / f".{job.name}.lock", wait=wait)


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
    own: Job,
    planned: Sequence[Job],
    *,
    key: Callable[[Job], str | None],
    open_engine: Callable[[], Any],
    work: Callable[[Any, Job, Path], None],
    limit: int,
    output: str | Path,
    log: Callable[[str], None],
) -> int:
    """Do `own`, and up to `limit` - 1 of the `planned` jobs that are ready; returns the number done.

    `key` gives a job's key, or None if its inputs are not there yet. `open_engine` is called once, and
    only if something is left to do. `work(engine, job, path)` writes a job's result. If a planned job
    fails, its own job tries again and reports the error. If `own` fails, the job ends.
    """
    own_key = key(own)
    if own_key is None:
        raise UserError(f"{own.kind} {own.name}: an adapter of the chain is missing; rerun")
    done = 0
    with store.claimed(own, wait=False) as free:
        if not free:
            log(f"{own.name}: another job is working on it; waiting for its end")
    with store.claimed(own, wait=True):
        if store.holds(own, own_key):
            log(f"{own.name}: {own.kind} made by an earlier job")
            store.take(own, output)
            return 0
        engine = open_engine()
        store.put(own, own_key, lambda path: work(engine, own, path))
        store.take(own, output)
        done += 1
    left = [t for t in planned if (t.kind, t.name) != (own.kind, own.name)]
    progress = True
    # Repeat after each round that did something: meanwhile other jobs may have become ready.
    while progress:
        progress, waiting = False, []
        for job in left:
            if done >= limit:
                return done
            with store.claimed(job, wait=False) as mine:
                ready = key(job) if mine else None
                if ready is None:
                    waiting.append(job)
                    continue
                # Its own job compares the checksums: reading hundreds of results would take minutes.
                if store.holds(job, ready, checked=False):
                    continue
                log(f"{job.name}: {job.kind} by the same engine")
                try:
                    store.put(job, ready, lambda path, job=job: work(engine, job, path))  # type: ignore[misc]
                except Exception as error:
                    log(f"{job.name}: {type(error).__name__}: {error}; left to its own job")
                    return done
                done, progress = done + 1, True
        left = waiting
    return done
