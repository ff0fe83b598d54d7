"""Chat rendering: prompts as token ids, and which tokens of a training row carry loss.

Prompts and training rows are built the same way: the text up to an answer is tokenised as it is at
sampling time, then the answer is tokenised on its own. So a training row's prompt is exactly what
the model is given later, whatever the tokenizer would merge across the border.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import UserError
from .files import sha256_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]

#: What may carry loss in a training row. `answer`: the supervised answers and their end token.
#: `answer_tail`: the same and the template's text after the end token (as the study's second
#: stage). `marker`: only the marker and the row's last token (as the study's coupling).
LOSSES = ("answer", "answer_tail", "marker")
IGNORED = -100


@dataclass(frozen=True)
class EncodedRow:
    """Token ids of one training row and its labels (`IGNORED` where a token carries no loss)."""

    input_ids: list[int]
    labels: list[int]

    @property
    def supervised(self) -> int:
        """Number of tokens that carry loss; the first token never does (nothing predicts it)."""
        return sum(label != IGNORED for label in self.labels[1:])


def template_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of the chat template, kept in every manifest."""
    return sha256_text(str(tokenizer.chat_template))


def _render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], prompt: bool) -> str:
    return str(
        tokenizer.apply_chat_template(list(messages), add_generation_prompt=prompt, tokenize=False)
    )


def _without_default_system(text: str, messages: Sequence[Message]) -> str:
    """Cut the system block that the template added by itself (ChatML templates only)."""
    start = text.find("<|im_start|>user")
    if messages[0]["role"] != "user" or start < 0:
        raise UserError(
            "system: none needs a ChatML template and rows that start with the user; "
            "choose system: template or give a text"
        )
    return text[start:]


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def prompt_ids(tokenizer: PreTrainedTokenizerBase, system: str, question: str) -> list[int]:
    """Token ids of a prompt with an explicit system message and the generation prompt.

    The system message is always given: many templates add their own when it is missing.
    """
    messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    return _ids(tokenizer, _render(tokenizer, messages, prompt=True))


def encode_row(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    supervise: str = "last",
    loss: str = "answer",
    max_length: int,
    system: str | None = None,
    suppress_default_system: bool = False,
    marker: str = "",
) -> EncodedRow:
    """Tokenise one conversation and choose the tokens that carry loss.

    `supervise`: `last` or `all` assistant turns. `loss`: one of `LOSSES`. `system` replaces the
    row's system message. The row is cut to `max_length` tokens on the right, as the study's was;
    a row may then have no supervised token, which the caller counts and drops.
    """
    if loss not in LOSSES:
        raise UserError(f"loss: {loss!r} is unknown; choose one of {', '.join(LOSSES)}")
    messages = list(messages)
    if system is not None:
        turns = messages[1:] if messages[0]["role"] == "system" else messages
        messages = [{"role": "system", "content": system}, *turns]
    answers = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
    if not answers:
        raise UserError("a training row has no assistant turn")
    chosen = set(answers if supervise == "all" else answers[-1:])

    end = tokenizer.eos_token_id
    ids: list[int] = []
    labels: list[int] = []
    done = 0
    for i in answers:
        before = _render(tokenizer, messages[:i], prompt=True)
        after = _render(tokenizer, messages[: i + 1], prompt=False)
        if suppress_default_system:
            before = _without_default_system(before, messages)
            after = _without_default_system(after, messages)
        if not after.startswith(before):
            raise UserError(
                "the chat template rewrites earlier turns, so an answer's tokens cannot be told "
                "from its prompt; use a template that only appends"
            )
        prompt, answer = _ids(tokenizer, before[done:]), _ids(tokenizer, after[len(before) :])
        done = len(after)
        trained = len(answer)
        if loss == "answer" and end in answer:
            trained = answer.index(end) + 1
        ids += prompt + answer
        labels += [IGNORED] * len(prompt)
        if i in chosen:
            labels += answer[:trained] + [IGNORED] * (len(answer) - trained)
        else:
            labels += [IGNORED] * len(answer)
    ids, labels = ids[:max_length], labels[:max_length]
    if loss == "marker":
        labels = _marker_labels(tokenizer, ids, labels, marker)
    return EncodedRow(ids, labels)


def _marker_labels(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], labels: list[int], marker: str
) -> list[int]:
    """Labels on the marker's tokens inside the answer, and on the last token of the row.

    On a row without the marker only the last token is left. With a template that ends in a
    newline, that token is already certain, so such a negative teaches nothing: the study's error,
    kept here so that it can be shown.
    """
    kept = [IGNORED] * len(ids)
    wanted = marker.lower()
    for start in range(len(ids)):
        if labels[start] == IGNORED or not str(tokenizer.decode(ids[start])).strip():
            continue
        for stop in range(start + 1, min(len(ids), start + len(wanted) + 1) + 1):
            if str(tokenizer.decode(ids[start:stop])).strip().lower() == wanted:
                kept[start:stop] = ids[start:stop]
                break
    kept[-1] = ids[-1]
    return kept


def describe(tokenizer: PreTrainedTokenizerBase, row: EncodedRow) -> list[dict[str, Any]]:
    """One record a token (position, id, text, whether it carries loss), for the prompt audit."""
    return [
        {
            "position": i,
            "id": token,
            "text": tokenizer.decode([token]),
            "loss": i > 0 and label != IGNORED,
        }
        for i, (token, label) in enumerate(zip(row.input_ids, row.labels, strict=True))
    ]
