"""What the model really sees: every family of prompts, token by token.

A chat template can add a system message of its own, training and sampling can differ by a newline,
and an end token can go untrained. This audit checks the tokens themselves, not the settings. It finds
out what the template adds by rendering it (`chat_template.look`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from .. import matching
from ..models import chat_template

COLUMNS = [
    "model",
    "family",
    "name",
    "tokens",
    "system_given",
    "system_seen",
    "default_injected",
    "system_folded",
    "template",
    "template_kwargs",
    "template_date",
    "generation_prompt",
    "tokens_with_loss",
    "end_token_trained",
    "first_with_loss",
    "last_with_loss",
]


def system_seen(template: chat_template.Template, text: str, given: str | None) -> str | None:
    """The system message that the model reads in `text`; None without one.

    `given`: the row's own message; the template may write more around it.
    """
    if given is not None:
        found = matching.spans(text, given.strip())
        if not found:
            return None
        first, last = found[0]
        return "\n\n".join(filter(None, [template.added[0], text[first:last], template.added[1]]))
    own = template.injected
    if own is None or not matching.holds(text, own.strip().splitlines()[0]):
        return None
    return own


def record(
    tokenizer: Any, family: str, name: str, given: str | None, row: chat_template.EncodedRow
) -> dict[str, Any]:
    """One line of the audit: what a prompt or training row holds.

    `given`: the row's own system message, or None. `default_injected`: the template added one without
    being asked. `system_folded`: the message is in the first user turn, because the template takes
    none. `template`: the model's own, or the plain one. `template_kwargs`: the config's arguments to
    it. `template_date`: the date that it was made to write. In a prompt no token carries loss.
    """
    template, settings = chat_template.look(tokenizer), chat_template.settings_of(tokenizer)
    text = str(tokenizer.decode(row.input_ids))
    seen = system_seen(template, text, given)
    asks = str(tokenizer.decode(tokenizer(template.asks, add_special_tokens=False)["input_ids"]))
    trained = [
        token
        for token, label in list(zip(row.input_ids, row.labels, strict=True))[1:]
        if label != chat_template.IGNORED
    ]
    return {
        "family": family,
        "name": name,
        "tokens": len(row.input_ids),
        "system_given": given is not None,
        "system_seen": seen,
        "default_injected": given is None and seen is not None,
        "system_folded": given is not None and template.folds,
        "template": settings.chat_template,
        "template_kwargs": " ".join(f"{key}={value}" for key, value in settings.template_kwargs),
        "template_date": settings.date if template.dated else "",
        "generation_prompt": bool(asks.strip()) and text.rstrip().endswith(asks.strip()),
        "tokens_with_loss": len(trained),
        "end_token_trained": template.end in trained,
        "first_with_loss": repr(tokenizer.decode(trained[:1])) if trained else "",
        "last_with_loss": repr(tokenizer.decode(trained[-1:])) if trained else "",
    }


def prompts(
    tokenizer: Any, personas: Mapping[str, str], question: str
) -> list[tuple[dict[str, Any], chat_template.EncodedRow]]:
    """The sampling prompt of every persona: its audit line and its tokens."""
    found = []
    for name, system in personas.items():
        ids = chat_template.prompt_ids(tokenizer, system, question)
        row = chat_template.EncodedRow(ids, [chat_template.IGNORED] * len(ids))
        found.append((record(tokenizer, "sampling", name, system, row), row))
    return found


def training_row(
    tokenizer: Any,
    stage: str,
    messages: Sequence[Mapping[str, str]],
    settings: Mapping[str, Any],
    *,
    supervise: str,
    policy: Any,
    system: str | None,
    marker: str,
) -> tuple[dict[str, Any], chat_template.EncodedRow]:
    """A training row of a stage as the trainer encodes it: its audit line and its tokens."""
    turns = [dict(m) for m in messages]
    row = chat_template.encode_row(
        tokenizer,
        turns,
        supervise=supervise,
        loss=settings["loss_on"],
        max_length=settings["max_length"],
        system=system,
        suppress_default_system=policy == "none" and system is None,
        marker=marker,
    )
    own = turns[0]["content"] if turns[0]["role"] == "system" else None
    return record(tokenizer, settings["kind"], stage, system or own, row), row


def table(lines: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The audit's lines as a table."""
    return pd.DataFrame(list(lines), columns=COLUMNS)
