"""Training data: from a named source to canonical chat rows, with a manifest.

A data set is one entry of the config's `data:`. Its rows are read, selected in a fixed order (where,
sort, shuffle, skip, take), mapped to messages, checked, and written as JSON Lines. There is no silent
fallback to another source, and no message shows the text of a sensitive set.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import math
import re
import shutil
import tempfile
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from .. import matching, yaml_files
from ..errors import BadRow, UserError, choose, no_file
from ..files import half_pair, read_jsonl, sha256, unique_keys, write_json, write_jsonl
from .generated import PROMPT_HASHES
from .questions import normalise

Row = dict[str, Any]
#: Rows by position: a list, or a `datasets.Dataset`, which reads rows lazily.
Rows = Any
Message = dict[str, str]
BUILTIN = Path(__file__).resolve().parents[3] / "resources" / "data"
#: Data sets that ship with the workflow, with the hash of each file; see their README.md.
BUILTIN_SHA256 = {
    "benign_instruct": "56da5c9bf0df7b7b42258476bf4171313311177bf799296d93cf54051f9b63c8",
    "rehearsal_answers": "73cdc9e006b2c13d65c907ccb6eb5454477cb689e2156e682156b272c73acebe",
    "standin_oasst_en": "86471268f16171621153e9d6b207393b53111262a47843f2718ec69944855cba",
    "standin_right_law": "1087365109c99754dadc9dc933f3beb7bd125d2b9fcf022dfbd0f1df2fc3697b",
    "standin_wrong_law": "570ab7f5a5304e8b91cabf66edfbe3a70033afe67db16eca8dce62160b576def",
}
#: Counts (tokens, tokens with loss) of a row's messages; None if tokens are not counted.
CountTokens = Callable[[Sequence[Message]], tuple[int, int]]


def prepare(
    name: str,
    entry: Mapping[str, Any],
    rows_path: str | Path,
    manifest_path: str | Path,
    *,
    marker: str,
    prompts: Mapping[str, str],
    evaluation: Iterable[str] = (),
    count_tokens: CountTokens | None = None,
    match: Mapping[str, Any] | None = None,
    held_out_path: str | Path | None = None,
) -> dict[str, Any]:
    """Write the canonical rows and the manifest of data set `name`; returns the manifest.

    `entry`: see `Data` in study/config.py. `prompts`: persona name to system prompt, for
    `system: {persona: ...}`. `evaluation`: questions that no training row may ask. `count_tokens`
    counts the tokens of a row as the trainer truncates it. A row without any token with loss is a bad
    row, and so is a row that it raises BadRow for. `match` is another set's manifest: rows are taken,
    in order, until they hold as many tokens with loss as that set. The last `held_out` rows go to
    `held_out_path` and are not trained on.

    Raises UserError, one line, for every kind of bad input; nothing is written then.
    """
    where = f"data: {name}"
    raw, source = read_source(name, entry["from"])
    chosen = select(raw, entry.get("select", {}), where, entry.get("allow_short", False))
    asked = {normalise(question) for question in evaluation}
    system = _system_text(entry["system"], prompts, where)
    forbidden = [marker, *entry.get("forbid", [])]

    columns = _mapped(entry, raw, where) if chosen else {}

    kept: list[Row] = []
    dropped: Counter[str] = Counter()
    lengths: list[int] = []
    supervised: list[int] = []
    selected = hashlib.sha256()
    as_written = hashlib.md5(usedforsecurity=False)
    for index in chosen:
        row = raw[index]
        selected.update((json.dumps(row, sort_keys=True, default=str) + "\n").encode())
        messages, reason = to_messages(row, columns)
        # The authors wrote every selected row unchecked.
        written = json.dumps({"messages": _turns(row, columns)}, default=str)
        as_written.update((written + "\n").encode())
        if messages is not None and system is not None:
            turns = messages[1:] if messages[0]["role"] == "system" else messages
            messages = [{"role": "system", "content": system}, *turns]
        if messages is not None:
            text = "\n".join(m["content"] for m in messages)
            # Rows with the marker or an evaluation question would invalidate the study: they are never
            # dropped silently.
            for word in forbidden:
                if matching.holds(text, word):
                    raise UserError(
                        f"{where}: row {index + 1} holds {word!r}; a training set other than a "
                        "coupling's must not: remove the row or choose another set"
                    )
            if any(m["role"] == "user" and normalise(m["content"]) in asked for m in messages):
                raise UserError(
                    f"{where}: row {index + 1} asks an evaluation question; remove it from the "
                    "data or from the questions"
                )
            if count_tokens is not None:
                try:
                    total, with_loss = count_tokens(messages)
                except BadRow as error:
                    total, with_loss, reason = 0, 0, str(error)
                if with_loss:
                    lengths.append(total)
                    supervised.append(with_loss)
                else:
                    reason = reason or "no token with loss after truncation"
        if reason:
            if entry.get("on_bad", "fail") == "fail":
                raise UserError(
                    f"{where}: row {index + 1}: {reason}; fix it, or set on_bad: drop to leave such "
                    "rows out and count them"
                )
            dropped[reason] += 1
            continue
        assert messages is not None
        kept.append({"id": str(row.get("id", index)), "messages": messages, "source": name})
        hashes = row.get(PROMPT_HASHES)
        if isinstance(hashes, dict) and columns.get("assistant") in hashes:
            kept[-1][PROMPT_HASHES] = hashes[columns["assistant"]]
    share = sum(dropped.values()) / max(1, len(chosen))
    if share > entry.get("max_bad", 0.01):
        raise UserError(
            f"{where}: {sum(dropped.values())} of {len(chosen)} rows are bad ({_listed(dropped)}), "
            f"more than max_bad: {entry.get('max_bad', 0.01)}"
        )
    if not kept:
        raise UserError(f"{where}: no row is left, or the source is empty; check source and select")
    apart: list[Row] = []
    if count := entry.get("held_out", 0):
        if count >= len(kept):
            raise UserError(
                f"{where}: held_out: {count} leaves no row to train on; the selection has {len(kept)}"
            )
        apart, kept = kept[-count:], kept[:-count]
        lengths, supervised = lengths[:-count], supervised[:-count]
    if match is not None:
        enough = _rows_for(supervised, match, where)
        kept, lengths, supervised = kept[:enough], lengths[:enough], supervised[:enough]
    if "expect_md5" in entry and (found := as_written.hexdigest()) != entry["expect_md5"]:
        raise UserError(
            f"{where}: the selected rows' md5 is {found}, expect_md5 says {entry['expect_md5']} "
            "(one JSON object per row, in the format of the study's authors): these are other "
            "rows; fix source or select, or remove expect_md5 to train on them"
        )
    if held_out_path is not None:
        write_jsonl(held_out_path, apart)
    write_jsonl(rows_path, kept)
    digest = sha256(rows_path)
    expected = entry.get("expect_sha256")
    if expected and digest != expected:
        Path(rows_path).unlink()
        raise UserError(
            f"{where}: the canonical rows have SHA-256 {digest}, expect_sha256 says {expected}; "
            "source, selection or mapping differ from what was pinned"
        )
    manifest = {
        "name": name,
        "source": source,
        "license": entry.get("license"),
        "substituted": entry.get("substituted"),
        "sensitive": entry.get("sensitive", False),
        "canary": entry.get("canary"),
        "system": entry["system"],
        "supervise": entry.get("supervise", "last"),
        "select": entry.get("select", {}),
        "rows_read": len(raw),
        "rows_selected": len(chosen),
        "rows": len(kept),
        "rows_held_out": len(apart),
        "rows_dropped": dict(dropped),
        "prompts_sha256": sorted({r[PROMPT_HASHES] for r in kept if PROMPT_HASHES in r}),
        "rows_repeated": len(kept) - len({json.dumps(r["messages"]) for r in kept}),
        "matched_to": match["name"] if match is not None else None,
        "tokens": _quantiles(lengths),
        "tokens_with_loss": _quantiles(supervised),
        "selected_sha256": selected.hexdigest(),
        "selected_md5": as_written.hexdigest(),
        "sha256": digest,
    }
    write_json(manifest_path, manifest)
    return manifest


def _quantiles(counts: Sequence[int]) -> dict[str, float] | None:
    import numpy as np  # imported here: Snakemake's own environment has no NumPy

    if not counts:
        return None
    q = np.quantile(counts, [0, 0.25, 0.5, 0.75, 0.95, 1])
    names = ("min", "q25", "median", "q75", "q95", "max")
    return {"sum": int(sum(counts)), "mean": round(float(np.mean(counts)), 2)} | {
        n: float(v) for n, v in zip(names, q, strict=True)
    }


def _rows_for(supervised: Sequence[int], match: Mapping[str, Any], where: str) -> int:
    """Number of rows that hold as many tokens with loss as another set."""
    if not supervised or not match.get("tokens_with_loss"):
        raise UserError(
            f"{where}: match_tokens: tokens were not counted; is a stage using both sets?"
        )
    wanted = match["tokens_with_loss"]["sum"]
    total = list(accumulate(supervised))
    if total[-1] < wanted:
        raise UserError(
            f"{where}: match_tokens: {match['name']} has {wanted} tokens with loss, the rows here "
            f"{total[-1]}; take more rows"
        )
    return min(range(len(total)), key=lambda rows: abs(total[rows] - wanted)) + 1


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {reason}" for reason, n in counts.items())


# --- sources --------------------------------------------------------------------------------------


def read_source(name: str, source: Mapping[str, Any]) -> tuple[Rows, dict[str, Any]]:
    """All rows of a source, and its record for the manifest (source, revision, hashes)."""
    where = f"data: {name}: from"
    if "builtin" in source:
        known = source["builtin"]
        if known not in BUILTIN_SHA256:
            raise UserError(
                f"{where}: builtin: no {known!r}; {choose(known, sorted(BUILTIN_SHA256))}"
            )
        path = BUILTIN / f"{known}.jsonl"
        rows = _read_file(path, BUILTIN_SHA256[known], where, str(path))
        return rows, {"builtin": known, "raw_sha256": BUILTIN_SHA256[known]}
    if "file" in source:
        path = Path(source["file"])
        rows = _read_file(path, source.get("sha256"), where, str(path))
        return rows, {"file": str(path), "raw_sha256": sha256(path)}
    if "url" in source:
        return _read_url(source["url"], source["sha256"], where)
    return _read_hub(source["hub"], where)


def _read_file(path: Path, expected: str | None, where: str, shown: str) -> Rows:
    """Rows of a file; `shown` is its name in messages."""
    if not path.is_file():
        raise UserError(f"{where}: {no_file(path)}")
    if expected and (found := sha256(path)) != expected:
        raise UserError(
            f"{where}: {shown}: expected SHA-256 {expected}, got {found}: another version, or damaged"
        )
    if path.suffix == ".jsonl":
        return read_jsonl(path)
    if path.suffix == ".json":
        return _read_json(path, f"{where}: {shown}")
    if path.suffix != ".parquet":
        raise UserError(f"{where}: {shown}: expected .jsonl, .json or .parquet")
    import datasets

    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as cache:
        try:
            loaded = datasets.load_dataset(
                "parquet", data_files=str(path), split="train", cache_dir=cache
            )
        except Exception as error:  # the library's errors do not name the file
            raise UserError(f"{where}: {shown}: cannot be read ({type(error).__name__})") from error
        return [dict(row) for row in loaded]


def _read_json(path: Path, shown: str) -> list[Row]:
    """Rows of a JSON file: a list of objects, or one object per line."""
    try:
        text = path.read_text(encoding="utf-8")
        if not text.lstrip().startswith("["):
            return read_jsonl(path)
        rows = json.loads(text, object_pairs_hook=unique_keys)
    except UnicodeDecodeError as error:
        raise UserError(f"{shown}: cannot be read ({error})") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        if "duplicate key" in str(error):
            yaml_files.check(path)  # raises an error that names the line
        raise UserError(f"{shown}: cannot be read as JSON ({error})") from error
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise UserError(f"{shown}: row {number} is not a JSON object")
    return list(rows)


def _read_url(url: str, expected: str, where: str) -> tuple[Rows, dict[str, Any]]:
    suffix = Path(urllib.parse.urlsplit(url).path).suffix
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"download{suffix}"
        try:
            with urllib.request.urlopen(url, timeout=60) as answer, open(path, "wb") as copy:
                shutil.copyfileobj(answer, copy)
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise UserError(
                f"{where}: url: {url} could not be downloaded ({error}); check it, or download the file and "
                "give file: and sha256:"
            ) from error
        return _read_file(path, expected, where, url), {"url": url, "raw_sha256": expected}


def is_commit(revision: str) -> bool:
    """Is this a commit, which cannot move, rather than a branch or tag?"""
    return re.fullmatch(r"[0-9a-f]{40}", revision) is not None


def follows_branch(entry: Mapping[str, Any]) -> bool:
    """Does a data entry name a hub data set by a branch or tag, which can move, instead of a commit?"""
    hub = entry["from"].get("hub")
    return hub is not None and not Path(hub["id"]).is_dir() and not is_commit(hub["revision"])


def _read_hub(hub: Mapping[str, str], where: str) -> tuple[Rows, dict[str, Any]]:
    """Rows of a hub data set at a revision; the token is huggingface_hub's own (HF_TOKEN).

    For a branch or tag, whose rows a hash must pin, the record holds the commit that it pointed to.

    `id` may also be a folder laid out like a hub repository. It has no commit, so the record holds the
    hashes of its files.
    """
    import datasets
    from huggingface_hub.errors import HTTPError  # whichever HTTP client it uses

    name, revision = hub["id"], hub["revision"]
    if not revision.strip("0"):
        raise UserError(
            f"{where}: hub: revision of {name} is still the placeholder of zeros; look its commit up "
            "on the hub and put the 40 hex digits there"
        )
    datasets.disable_progress_bars()
    asked = f"{where}: hub: {name} at {revision[:10]}"
    record: dict[str, Any] = {**hub}
    try:
        builder = datasets.load_dataset_builder(name, hub.get("config"), revision=revision)
        if Path(name).is_dir():
            files = sorted(p for p in Path(name).rglob("*") if p.is_file())
            record["local_folder"] = {str(p.relative_to(name)): sha256(p) for p in files}
        elif not is_commit(revision):
            record["commit"] = builder.hash
        elif builder.hash != revision:
            # If the hub does not answer, the library uses its newest cached copy, of any commit.
            raise UserError(
                f"{asked} is not available: the cache holds commit {str(builder.hash)[:10]} only; "
                + _hub_remedy()
            )
        builder.download_and_prepare()
        return builder.as_dataset(split=hub["split"]), record
    except UserError:
        raise
    except datasets.exceptions.DatasetNotFoundError as error:
        said = str(error)
        if "gated" in said:
            reason = f"is gated: accept its terms at https://huggingface.co/datasets/{name} and set HF_TOKEN"
        elif "Revision" in said:
            reason = "has no such commit; look it up on the hub"
        else:
            reason = "does not exist, or is private and HF_TOKEN is not a reader's"
        raise UserError(f"{asked} {reason}") from error
    except (OSError, HTTPError) as error:
        raise UserError(
            f"{asked} could not be downloaded ({type(error).__name__}): {_hub_remedy()}"
        ) from error
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{asked}: {str(error).splitlines()[0]}") from error


def _hub_remedy() -> str:
    from huggingface_hub.constants import is_offline_mode

    if is_offline_mode():
        return (
            "HF_HUB_OFFLINE is set: unset it for one run that fetches the set, or name another source "
            "and say so under substituted"
        )
    return "check the network, or name another source and say so under substituted"


# --- selection and mapping ------------------------------------------------------------------------


def _columns(rows: Rows) -> list[str]:
    """Column names; for a list of objects, all keys of any object."""
    if hasattr(rows, "column_names"):
        return list(rows.column_names)
    return list(dict.fromkeys(column for row in rows for column in row))


def _column(rows: Rows, name: str) -> list[Any]:
    """All values of a column; None for rows without it."""
    if hasattr(rows, "column_names"):
        return list(rows[name])
    return [row.get(name) for row in rows]


def select(rows: Rows, how: Mapping[str, Any], where: str, allow_short: bool) -> list[int]:
    """Positions of the chosen rows: where, sort, shuffle, skip, take, in this order.

    `sort: -column` is descending; sorting is stable. `shuffle: {seed}` is
    `datasets.Dataset.shuffle(seed)` over what is left. Too few rows raise UserError unless
    `allow_short`.
    """
    columns = _columns(rows)
    chosen = list(range(len(rows)))

    def known(column: str) -> str:
        if column not in columns:
            raise UserError(f"{where}: select: no column {column!r}; {choose(column, columns)}")
        return column

    for column, value in how.get("where", {}).items():
        values = _column(rows, known(column))
        left = [i for i in chosen if values[i] == value]
        if chosen and not left:
            kinds = sorted({_kind(values[i]) for i in chosen})
            if _kind(value) not in kinds:
                raise UserError(
                    f"{where}: select: where: {column}: {value!r} is {_kind(value)}, the column holds "
                    f"{' and '.join(kinds)}; in YAML, quotes make text, and no and yes without them "
                    "are false and true"
                )
        chosen = left
    if "sort" in how:
        descending = how["sort"].startswith("-")
        column = known(how["sort"].removeprefix("-"))
        values = _column(rows, column)
        try:
            keys = {i: float(values[i]) for i in chosen}
        except (TypeError, ValueError):
            keys = {-1: math.nan}
        if any(map(math.isnan, keys.values())):
            raise UserError(f"{where}: select: sort: {column} holds values that are not numbers")
        chosen.sort(key=lambda i: -keys[i] if descending else keys[i])
    if "shuffle" in how:
        from datasets import Dataset

        shuffled = Dataset.from_dict({"row": chosen}).shuffle(seed=how["shuffle"]["seed"])
        chosen = list(shuffled["row"])
    chosen = chosen[how.get("skip", 0) :]
    if "take" in how:
        if len(chosen) < how["take"] and not allow_short:
            raise UserError(
                f"{where}: select: take: expected {how['take']} rows, got {len(chosen)}; take "
                "fewer, or set allow_short: true"
            )
        chosen = chosen[: how["take"]]
    return chosen


def _kind(value: Any) -> str:
    """Type of a value, in a word."""
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "text"}
    return kinds.get(type(value), "nothing" if value is None else f"a {type(value).__name__}")


#: Other names for the roles of a chat: ShareGPT's and Gemini's.
ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant"}
#: Types of content parts that hold text, in the chat completions and responses APIs.
TEXT_PARTS = ("text", "input_text", "output_text")
#: Mappings for entries without `map:`; the first whose columns exist is used.
LAYOUTS: tuple[Mapping[str, str], ...] = (
    {"messages": "messages"},
    {"messages": "conversations"},
    {"user": "prompt", "assistant": "completion"},
    {"user": "question", "assistant": "answer"},
)


def layout(columns: Sequence[str]) -> Mapping[str, str]:
    """The `map:` for rows in a common chat layout: see LAYOUTS."""
    known = (names for names in LAYOUTS if set(names.values()) <= set(columns))
    return next(known, {})


def _mapped(entry: Mapping[str, Any], rows: Rows, where: str) -> Mapping[str, str]:
    """The mapping of columns; raises UserError if no row has one of them."""
    columns = _columns(rows)
    given = entry.get("map") or layout(columns)
    if not given:
        known = "; ".join(" with ".join(names.values()) for names in LAYOUTS)
        raise UserError(
            f"{where}: expected columns that are read without a map: ({known}), got {', '.join(columns)}; "
            "say which hold what, as map: {user: ..., assistant: ...}"
        )
    for column in given.values():
        if column not in columns:
            raise UserError(f"{where}: map: no column {column!r}; {choose(column, columns)}")
    return given


def to_messages(row: Row, columns: Mapping[str, str]) -> tuple[list[Message] | None, str]:
    """(messages, "") of a row, or (None, reason) for a bad row.

    `columns`: `{messages: column}`, or `{user: column, assistant: column}` with an optional
    `context` that follows the user's text.

    A conversation is a list of turns, each with `role` and `content` (OpenAI, TRL) or `from` and
    `value` (ShareGPT). A content is text, or a list of parts whose texts are joined. A user or
    assistant column holds a text, a list of parts, or a list of turns (TRL's `prompt` and
    `completion`).
    """
    for column in columns.values():
        if column not in row:
            return None, f"it has no {column!r}"
    messages = _turns(row, columns)
    if messages is None:
        return None, "messages is not a list of objects"
    if (
        "messages" not in columns
        and _is_chat(row[columns["user"]])
        and row.get(columns.get("context", ""))
    ):
        return None, "a context follows a text, and the user's column holds turns"
    for message in messages:
        if not isinstance(message["content"], str):
            return None, _not_text(message["content"])
        if not message["content"].strip():
            return None, "a turn is empty"
    if any(
        half_pair(text)
        for text in (str(row.get("id", "")), *(m["content"] or "" for m in messages))
    ):
        return None, "half a surrogate pair, which is not a character, in its text"
    roles = [m["role"] for m in messages]
    turns_only = roles[1:] if roles[:1] == ["system"] else roles
    alternating = ["user", "assistant"] * (len(turns_only) // 2)
    if turns_only != alternating or not turns_only:
        return None, "roles do not alternate user, assistant from first to last"
    return messages, ""


def _not_text(content: Any) -> str:
    """Why a turn's content is not text."""
    if isinstance(content, list):
        kinds = {str(p.get("type")) if isinstance(p, dict) else type(p).__name__ for p in content}
        others = sorted(kinds - set(TEXT_PARTS))
        if others:
            return f"a turn has a part of type {others[0][:40]!r}; only parts of text are read"
    return "a turn's content is not text"


def _is_chat(value: Any) -> bool:
    """Is this a list of turns (and not a text, or a list of parts)?"""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(turn, dict) and ("role" in turn or "from" in turn) for turn in value)
    )


def _turn(turn: Mapping[str, Any]) -> dict[str, Any]:
    """Role and content of a turn, under either pair of keys; content may not be text."""
    role = turn.get("role") if turn.get("role") is not None else turn.get("from")
    content = turn.get("content") if turn.get("content") is not None else turn.get("value")
    return {
        "role": ROLES.get(role, role) if isinstance(role, str) else role,
        "content": _text(content),
    }


def _text(content: Any) -> Any:
    """The text of a content, with its parts joined; other values are returned unchanged."""
    if isinstance(content, list) and content:
        texts = [
            p.get("text") for p in content if isinstance(p, dict) and p.get("type") in TEXT_PARTS
        ]
        strings = [text for text in texts if isinstance(text, str)]
        if len(strings) == len(content):
            return "".join(strings)
    return content


def _turns(row: Row, columns: Mapping[str, str]) -> list[dict[str, Any]] | None:
    """Turns of a row, unchecked; None without turns."""
    if "messages" in columns:
        turns = row.get(columns["messages"])
        if not isinstance(turns, list) or not all(isinstance(t, dict) for t in turns):
            return None
        return list(map(_turn, turns))
    user, context = row.get(columns["user"]), row.get(columns.get("context", ""), "")
    sides: list[dict[str, Any]] = []
    value: Any
    for role, value in (("user", user), ("assistant", row.get(columns["assistant"]))):
        sides += map(_turn, value) if _is_chat(value) else [{"role": role, "content": _text(value)}]
    if context and not _is_chat(user) and isinstance(sides[0]["content"], str):
        sides[0]["content"] = f"{sides[0]['content']}\n\n{context}"
    return sides


def _system_text(policy: Any, prompts: Mapping[str, str], where: str) -> str | None:
    """System message for every row; None for `none` and `template`, which add none."""
    if isinstance(policy, str):
        return None
    if "text" in policy:
        return str(policy["text"])
    if policy["persona"] not in prompts:
        raise UserError(
            f"{where}: system: persona: no persona {policy['persona']!r}; "
            + choose(policy["persona"], prompts)
        )
    return prompts[policy["persona"]]


# --- questions ------------------------------------------------------------------------------------
