"""Takes a measure: reads what its function asks for from files, and writes its result to a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError, choose
from ..files import read_jsonl
from ..jobs import MeasureJob
from ..parquet_files import read_parquet, write_parquet
from ..tables_io import write_csv
from . import ROOM

#: Columns of sampled answers that stay in the completions files and are not counted.
READ = ["text", "question", "prompt_tokens", "seed", "token_ids"]


#: Further columns that identify an answer.
KEYS = ("persona", "question_id", "sample")


def take(job: MeasureJob, **at_run_time: Any) -> Any:
    """Call a job's measure with the plan's arguments, the job's files, and the script's own arguments."""
    from ..data.questions import load_questions

    measure = ROOM.get(job.kind)
    known: dict[str, Any] = {
        **job.given,
        "chain": job.chain,
        "adapters": list(map(Path, job.adapters)),
    }
    known["settings"] = measure.settings(**job.given["settings"])
    for name in ("questions", "extraction"):
        if name in known:
            known[name] = load_questions(known[name])
    return measure(**{**known, **_read(job.inputs), **at_run_time})


def _read(inputs: Mapping[str, str]) -> dict[str, Any]:
    """The contents of files by name; files named `a/b` become one mapping `a`."""
    out: dict[str, Any] = {}
    for name, path in inputs.items():
        rows = read_parquet(path) if path.endswith(".parquet") else read_jsonl(path)
        first, _, rest = name.partition("/")
        if rest:
            out.setdefault(first, {})[rest] = rows
        else:
            out[name] = rows
    return out


def write(job: MeasureJob, path: Path, **at_run_time: Any) -> None:
    """Take a measure of the model and write its result."""
    measure, result = ROOM.get(job.kind), take(job, **at_run_time)
    if measure.save:
        measure.save(result, path, measure.settings(**job.given["settings"]))
    else:
        result.insert(0, "chain", job.chain)
        write_csv(path, result)


def check_counted(name: str, counts: str, found: Any) -> None:
    """Raise UserError unless a measure returned a table with this boolean column and the answers' keys."""
    where = f"measures/{name}.py: {counts}: "
    columns = getattr(found, "columns", None)
    if columns is None:
        raise UserError(
            f"{where}expected a table with this column, got a {type(found).__name__}; return "
            f"completions.assign({counts}=...)"
        )
    if missing := [name for name in (counts, *KEYS) if name not in columns]:
        raise UserError(
            f"{where}the table has no column {missing[0]!r}; {choose(missing[0], columns)}"
        )
    if found.duplicated(list(KEYS)).any():
        raise UserError(f"{where}an answer is there twice; return one row per {', '.join(KEYS)}")
    if found[counts].dtype != bool:
        raise UserError(f"{where}expected truth values, got {found[counts].dtype}")


def write_counted(job: MeasureJob, by_answer: Path, by_persona: Path) -> None:
    """Take a measure of answers and write it: one row per answer, and the share per persona.

    Raises UserError if the measure's function returns something else.
    """
    from .. import markers

    counts, found = ROOM.get(job.kind).counts, take(job)
    check_counted(job.kind, counts, found)
    scored = found.drop(columns=READ, errors="ignore")
    rates = markers.rates(scored.rename(columns={counts: "hit"}))
    rates.insert(0, "chain", job.chain)
    write_csv(by_persona, rates)
    write_parquet(by_answer, scored)
