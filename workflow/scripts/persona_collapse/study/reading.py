"""Reads a config by its blocks: reports what is wrong in one line and fills in defaults."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_origin

from pydantic import ValidationError

from .. import yaml_files
from ..chains import STAGE_NAME
from ..errors import UserError
from ..measures import ROOM as MEASURES
from ..settings import HIDDEN, Settings, UnknownKey, printable
from ..stages import ROOM as STAGES
from ..stages import Lora
from ..training import defences
from ..training.runtime import Runtime as TrainingRuntime
from .config import Config, SamplingRuntime

#: What a pattern accepts, in words.
PATTERNS = {
    f"^{STAGE_NAME}$": "a name of letters, digits, '_' and '-' that begins with a letter",
    "^[A-Za-z][A-Za-z0-9_-]*$": "a name of letters, digits, '_' and '-' that begins with a letter",
    "^[A-Za-z0-9][A-Za-z0-9_.-]*$": "a name of letters, digits, '_', '.' and '-'",
    r"^\w[\w.-]*$": "a name of letters, digits, '_', '.' and '-'",
    "^[A-Za-z_][A-Za-z0-9_]*$": "the name of a Python package",
    "^[0-9a-f]{64}$": "64 hex digits",
    "^[0-9a-f]{40}$": "a commit of 40 hex digits, for a branch or tag can move",
    "^[0-9a-f]{32}$": "32 hex digits",
    "^[0-9]{4}-[0-9]{2}-[0-9]{2}$": "a day as YYYY-MM-DD",
    r"\.(jsonl|json|parquet)$": "a file whose name ends in .jsonl, .json or .parquet",
    r"\.jsonl$": "a file whose name ends in .jsonl",
    "^(https|http|file)://": "an address that begins with https://, http:// or file://",
    "/": "owner/name, or a folder",
    "^[A-Za-z0-9][A-Za-z0-9._/-]*$": "a commit, branch or tag",
}
#: Keys that were renamed or moved; `*` is any name.
MOVED = {
    "experiments": "conditions",
    "scale": "judge",
    "sources": "source_personas",
    "conditions: *: sources": "source_personas",
    "data: *: source": "from",
    "training: *: objective": "loss",
    "stages: *: objective": "loss",
    "gpus": "runtime: gpus_per_job",
    "jobs_per_gpu": "runtime: jobs_per_gpu",
    "checkpoint_steps": "runtime: checkpoint_steps",
    "generation: chains_per_engine": "runtime: chains_per_engine",
    **{f"generation: {key}": f"runtime: sampling: {key}" for key in SamplingRuntime.model_fields},
    **{
        f"generation: {key}": f"sampling: {key}"
        for key in ("backend", "max_model_len", "batch_invariant")
    },
    "activations: batch_size": "runtime: activations: batch_size",
    "activations: store": "measures: activations: dtype",
    "activations": "measures: activations",
    "sampling: rescored": "measures: logprob_check: count",
    "conditions: *: measure": "measures",
    **{
        f"{where}: *: {key}": f"runtime: training: {key}"
        for where in ("training", "stages")
        for key in TrainingRuntime.model_fields
    },
}


def read(given: Mapping[str, Any]) -> dict[str, Any]:
    """A config checked by its blocks, in plain types, with defaults filled in.

    Stages hold only their own keys; defaults from `training:` and `lora:` are filled in under those
    keys. Raises UserError, one line that names the key, for the first mistake.
    """
    config = _plain(given)
    for old, new in MOVED.items():
        for where in _found(config, old.split(": ")):
            raise UserError(f"config: {where}: is now called {new}:")
    if isinstance(config.get("measures"), dict):
        for name in ALWAYS:
            if name not in config["measures"]:
                raise UserError(f"config: measures: {name}: is missing; the run's tables need it")
    made = _checked(Config, config, ()).model_dump(exclude_none=True, by_alias=True)
    training = {}
    for name in [*made["training"], *STAGES.names()]:
        own = made["training"].get(name, {})
        training[name] = own | _defaults(_kind(name, ("training",)), own, ("training", name))
    made["training"] = {name: given for name, given in training.items() if given}
    made["measures"] = {
        name: _measure(name, settings) for name, settings in made["measures"].items()
    }
    made["stages"] = {
        name: _stage(name, entry, made["lora"], made["training"])
        for name, entry in made["stages"].items()
    }
    return made


def _plain(value: Any) -> Any:
    """The config in plain types, keys whose value is null left out.

    Overlays can only add or replace keys of a mapping; with null they can remove one. Mappings without
    nested mappings are sorted, because Snakemake would take another order for a change.
    """
    if isinstance(value, Mapping):
        out = {str(k): _plain(v) for k, v in value.items() if v is not None}
        named = any(isinstance(v, Mapping) for v in out.values())
        return out if named else dict(sorted(out.items()))
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def _found(node: Any, keys: list[str]) -> Iterator[str]:
    """Paths in a config that match these keys."""
    if not isinstance(node, dict):
        return
    for key in node if keys[0] == "*" else {keys[0]} & node.keys():
        if len(keys) == 1:
            yield key
        else:
            yield from (f"{key}: {rest}" for rest in _found(node[key], keys[1:]))


#: Measures that every table of the run needs.
ALWAYS = ("markers", "activations", "logprob_check")


def _measure(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """A measure's settings."""
    try:
        measure = MEASURES.get(name)
        made = _checked(measure.settings, given, ("measures", name))
        settings = made.model_dump(exclude_none=True, by_alias=True)
        measure.check(settings)
    except UserError as error:
        said = str(error).removeprefix("config: measures: ")
        raise UserError(f"config: measures: {said}") from None
    return settings


def _kind(name: str, where: tuple[Any, ...]) -> type[Settings]:
    """Settings of a kind of stage."""
    try:
        return STAGES.get(name).Settings
    except UserError as error:
        raise UserError(f"config: {_path(where)}{error}") from None


def _defaults(
    cls: type[Settings], own: Mapping[str, Any], where: tuple[Any, ...]
) -> dict[str, Any]:
    """Defaults of a kind of stage, with `training:` (`own`) and `lora:` applied."""
    _checked(cls, own, where, whole=False)
    return {
        name: field.default
        for name, field in cls.model_fields.items()
        if name not in {*own, *Lora.model_fields}
        and not field.is_required()
        and field.default is not None
    }


def _stage(
    name: str, entry: Mapping[str, Any], lora: Mapping[str, Any], training: Mapping[str, Any]
) -> dict[str, Any]:
    """A stage's own keys, checked together with its defaults."""
    where = ("stages", name)
    if "kind" not in entry:
        raise UserError(
            f"config: {_path(where)}kind: is missing; expected one of {', '.join(STAGES.names())}"
        )
    cls = _kind(entry["kind"], (*where, "kind"))
    own = {key: value for key, value in entry.items() if key != "kind"}
    given = {**lora, **training.get(entry["kind"], {})}
    given = {key: value for key, value in given.items() if key in cls.model_fields}
    hint = f"; set it there or under training: {entry['kind']}"
    _checked(cls, {**given, **own}, where, hint=hint)
    blocks = {**given, **own}.get("defence", {})
    if blocks:
        own["defence"] = {key: _defence(key, block, where) for key, block in blocks.items()}
    return {"kind": entry["kind"], **own}


def _defence(name: str, given: Mapping[str, Any], where: tuple[Any, ...]) -> dict[str, Any]:
    """A defence's settings."""
    try:
        cls = defences.settings(name)
    except UserError as error:
        raise UserError(f"config: {_path((*where, 'defence'))}{error}") from None
    made = _checked(cls, given, (*where, "defence", name))
    return made.model_dump(exclude_none=True, by_alias=True)


def _checked(
    cls: type[Settings],
    given: Mapping[str, Any],
    where: tuple[Any, ...],
    whole: bool = True,
    hint: str = "",
) -> Settings:
    """A block at a place in the config. `whole`: no key may be missing; `hint`: what to do if one is."""
    try:
        return cls.model_validate(given)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        unknown = [each for each in errors if _unknown(each)]
        if not whole:
            errors = [each for each in errors if each["loc"] and each["type"] != "missing"]
        if not unknown + errors:
            return cls.model_construct(**given)
        first = (unknown + errors)[0]
        told = _told(first, hint)
        if first["type"] == "missing" and (said := _described(cls, first["loc"])):
            told = f"{told}. {said}"
        raise UserError(f"config: {_path((*where, *first['loc']))}{told}") from None


def _described(kind: Any, where: tuple[Any, ...]) -> str:
    """Description of a key in its block; empty if there is none."""
    where = where[1:] if where and str(where[0]).startswith(HIDDEN) else where
    if isinstance(kind, type) and issubclass(kind, Settings):
        named = {field.alias or name: field for name, field in kind.model_fields.items()}
        field = named.get(where[0]) if where else None
        if field is None:
            return ""
        return _described(field.annotation, where[1:]) if where[1:] else field.description or ""
    inside = where[1:] if get_origin(kind) in (dict, list) else where
    return next(filter(None, (_described(each, inside) for each in get_args(kind))), "")


def _unknown(error: Mapping[str, Any]) -> bool:
    return isinstance(error.get("ctx", {}).get("error"), UnknownKey)


def _path(where: tuple[Any, ...]) -> str:
    if where[-1:] == ("[key]",):  # key of a mapping: reported like a value
        where = where[:-2]
    parts = [f"item {part + 1}" if isinstance(part, int) else str(part) for part in where]
    return "".join(f"{printable(part)}: " for part in parts if not part.startswith(HIDDEN))


#: What is expected, by the type of pydantic's error.
EXPECTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping (key: value)",
    "model_type": "a mapping (key: value)",
    "literal_error": "one of {expected}",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "at least {ge:.10g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:.10g}",
    "too_short": "a list of {min_length} or more",
    "too_long": "a list of {max_length} at most",
    "string_too_short": "at least {min_length} characters",
    "string_too_long": "at most {max_length} characters",
}
#: The same in the words of JSON schemas, for `yaml_files.advice`.
TYPES = {
    "string_type": "string",
    "int_type": "integer",
    "float_type": "number",
    "bool_type": "boolean",
    "list_type": "array",
    "dict_type": "object",
    "model_type": "object",
}


def _told(error: Mapping[str, Any], hint: str) -> str:
    """What is wrong with a value, in words."""
    kind, value, details = error["type"], error["input"], error.get("ctx", {})
    if kind == "missing":
        return f"is missing{hint}"
    if kind == "value_error":
        return str(details["error"])
    if kind == "string_unicode":
        return f"{value!r} holds half of a character; write the whole one"
    if kind == "string_pattern_mismatch":
        expected = PATTERNS[details["pattern"]]
    elif kind in EXPECTED:
        expected = EXPECTED[kind].format(**details)
    else:
        return str(error["msg"])
    advice = yaml_files.advice(value, TYPES.get(kind))
    if kind == "list_type" and type(value) in (str, int, float):
        advice = f" (write [{value}])"
    shown = str(value) if isinstance(value, datetime.date) else repr(value)
    if "://" in shown and "@" in shown:
        shown = "an address with a user name or password"
    return f"expected {expected}, got {shown if len(shown) < 80 else shown[:76] + '...'}{advice}"
