"""Chat rendering: prompts as token ids, and which tokens of a training row carry loss.

`render` renders everything that a model is given: training rows, prompts for sampling, activations and
rescoring, and what the audit checks. The text up to an answer is tokenised as at sampling time, then
the answer is tokenised on its own. So the prompt of a training row is exactly the sampling prompt,
whatever the tokenizer would merge across the boundary.

`look` finds out what a chat template does by rendering it with texts that are easy to find again: where
a system message goes, what the template adds, and how turns begin and end. It needs no knowledge of the
template's tokens.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import date, datetime
from functools import lru_cache
from itertools import takewhile
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import matching
from ..errors import BadRow, UserError
from ..files import sha256_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]

#: Which tokens carry loss in a training row. `answer`: the supervised answers and their end token.
#: `answer_text`: the answers without it. `answer_tail`: the answers, their end token and the template's
#: text after it (as the study's second stage). `marker`: only the marker and the row's last token (as the
#: study's coupling).
LOSSES = ("answer", "answer_text", "answer_tail", "marker")
IGNORED = -100
#: Default date for templates that write today's date.
DATE = "2025-01-01"
#: The template for models without one, and for all models that are compared with them. Its headers are
#: rare in text and code; a bare "User:" is not. An answer ends with the tokenizer's own end token.
PLAIN = (
    "{{ bos_token if bos_token }}{% for m in messages %}"
    "{{ '### ' + m.role.capitalize() + ':\\n' + m.content }}"
    "{{ eos_token if m.role == 'assistant' }}{{ '\\n\\n' }}{% endfor %}"
    "{{ '### Assistant:\\n' if add_generation_prompt }}"
)
#: Roles whose headers it writes, and a header at the head of a line.
ROLES = ("System", "User", "Assistant")
_HEADER = re.compile(rf"\s*^### (?:{'|'.join(ROLES)}):", re.MULTILINE)
#: Arguments of a template that the renderer sets, not the config.
GIVEN = re.compile(r"messages|tools|documents|add_generation_prompt|strftime_now|\w+_tokens?")


@dataclass(frozen=True)
class Settings:
    """How to use a model's template: the keys of `model:` with these names.

    `system_role`: `auto` puts a system message into the first user turn if the template does not take
    one, `fold` always does. `date`: today's date for the template, YYYY-MM-DD. `chat_template`: the
    model's `own`, or `plain` (see `PLAIN`). `template_kwargs`: further arguments of the template, by
    name.
    """

    system_role: str = "auto"
    date: str = DATE
    chat_template: str = "own"
    template_kwargs: tuple[tuple[str, Any], ...] = ()

    @property
    def variables(self) -> dict[str, Any]:
        """Arguments of the template in addition to the turns."""
        today = datetime.fromisoformat(self.date).strftime
        return {**dict(self.template_kwargs), "strftime_now": today}


@dataclass(frozen=True)
class EncodedRow:
    """Token ids of one training row and its labels (`IGNORED` where a token carries no loss)."""

    input_ids: list[int]
    labels: list[int]

    @property
    def supervised(self) -> int:
        """Number of tokens that carry loss; the first token never does (nothing predicts it)."""
        return sum(label != IGNORED for label in self.labels[1:])


@dataclass(frozen=True)
class Template:
    """What a chat template does.

    `folds`: system messages go into the first user turn, because the template takes none or the config
    says so. `dated`: it writes the date. `tagged`: it marks answers with {% generation %}. `injected`:
    the system text that it writes if none is given; None if it writes none. `added`: the text that it
    puts around a given one. `bos`: the token that a row begins with. `removed`: the text after it that
    `system: none` cuts out; None if the default text cannot be separated from the user's turn. `asks`:
    text after a question, including the generation prompt. `tail`: text after the last answer.
    `closer`: text after an earlier one. `end`: the token that ends a turn. `controls`: texts that open
    or end turns, and all special tokens.
    """

    folds: bool
    dated: bool
    tagged: bool
    injected: str | None
    added: tuple[str, str]
    bos: str
    removed: str | None
    tail: str
    closer: str
    asks: str
    end: int | None
    controls: tuple[str, ...]


#: Names of the settings in the config.
SETTINGS = tuple(field.name for field in fields(Settings))


def settings_from(model: Mapping[str, Any]) -> Settings:
    """The settings in the config's `model:` section, or in a record of it."""
    given = {key: model[key] for key in SETTINGS if key in model}
    given["template_kwargs"] = tuple(sorted(given.get("template_kwargs", {}).items()))
    settings = Settings(**given)
    try:
        date.fromisoformat(settings.date)
    except ValueError:
        raise UserError(
            f"config: model: date: {settings.date!r} is not a day of the calendar; give YYYY-MM-DD"
        ) from None
    return settings


def configure(tokenizer: PreTrainedTokenizerBase, settings: Settings) -> None:
    """Make everything that is rendered with this tokenizer follow the config's settings."""
    if settings.chat_template == "plain":
        tokenizer.chat_template = PLAIN
    setattr(tokenizer, "_chat_settings", settings)  # noqa: B010  no attribute that its class knows


def settings_of(tokenizer: PreTrainedTokenizerBase) -> Settings:
    """The settings that `configure` gave, or the defaults."""
    settings: Settings = getattr(tokenizer, "_chat_settings", Settings())
    return settings


def template_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of the chat template, kept in every manifest."""
    return sha256_text(str(tokenizer.chat_template))


# --- rendering ------------------------------------------------------------------------------------


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, prompt: bool) -> str:
    """A conversation as text; with `prompt`, up to where the model continues.

    The template gets the date and further arguments from the settings. If it takes no system message,
    that is put into the first user turn.
    """
    if look(tokenizer).folds:
        messages = folded(messages)
    return _apply(tokenizer, messages, prompt, settings_of(tokenizer))


def folded(messages: Sequence[Message]) -> list[Message]:
    """The conversation with its system message at the head of the first user turn."""
    first, *rest = messages
    if first["role"] != "system" or not rest:
        return list(messages)
    text = f"{first['content']}\n\n{rest[0]['content']}"
    return [{**rest[0], "content": text}, *rest[1:]]


def _apply(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    prompt: bool,
    settings: Settings,
) -> str:
    """The template's own rendering under some settings."""
    from jinja2 import TemplateError

    try:
        return str(
            tokenizer.apply_chat_template(
                list(messages),
                add_generation_prompt=prompt,
                tokenize=False,
                **settings.variables,
            )
        )
    except TemplateError as error:
        if type(error) is not TemplateError:
            raise  # an error in the template's code, not its own `raise_exception`
        roles = ", ".join(m["role"] for m in messages)
        raise BadRow(f"the chat template refuses the turns {roles} ({error})") from error


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text, without added special tokens."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


# --- what a template does -------------------------------------------------------------------------

#: Texts that no template writes on its own: a system message, a question, its answer, the next
#: question.
_SYSTEM, _USER, _ANSWER, _NEXT = (f"Xq{n}zsentinel" for n in range(4))
#: Texts that look like turn marks but are not special tokens: <|user|>, [INST], [/S].
_MARK = re.compile(r"<+[^<>\s]{1,40}>+|\[/?\w+\]")
_ROLE = re.compile(r"(system|developer|user|assistant|model)\s*(\n|$)")
#: A text with fewer words around a system message is its header.
_WORDS = 3


def look(tokenizer: PreTrainedTokenizerBase) -> Template:
    """What this tokenizer's chat template does under its settings; see `Template`."""
    return _look(tokenizer, tokenizer.get_chat_template(), settings_of(tokenizer))


@lru_cache(maxsize=64)
def _look(tokenizer: PreTrainedTokenizerBase, template: str, settings: Settings) -> Template:
    def shown(*contents: str, prompt: bool = False, on: Settings = settings) -> str:
        turns: list[Message] = []
        for content in contents:
            role = {_SYSTEM: "system", _ANSWER: "assistant"}.get(content, "user")
            turns.append({"role": role, "content": content})
        return _apply(tokenizer, folded(turns) if folds else turns, prompt, on)

    folds = False
    plain = shown(_USER)
    if _USER not in plain:
        raise UserError(
            f"{tokenizer.name_or_path}: its chat template drops the user's text, or needs it as "
            "content parts; use a template for plain text"
        )
    asked = shown(_USER, prompt=True)
    folds = settings.system_role == "fold" or not _takes_system(shown)
    given = shown(_SYSTEM, _USER)
    more = shown(_USER, _ANSWER, _NEXT)
    one = shown(_USER, _ANSWER)

    specials = _special_tokens(tokenizer)
    first = plain.partition(_USER)[0]
    before, _, rest = given.partition(_SYSTEM)
    between = rest.partition(_USER)[0]
    tail = one.rpartition(_ANSWER)[2]
    turn = more.partition(_USER)[2].partition(_ANSWER)[0]
    gap = more.partition(_ANSWER)[2].partition(_NEXT)[0]
    opener = _opener(tokenizer, first, gap, tail, specials)
    bos = next((token for token in specials if first.startswith(token)), "")
    bos = bos if bos and bos == tokenizer.bos_token and not opener.startswith(bos) else ""
    default = first.removesuffix(opener).removeprefix(bos)
    added = (_words(_cleaned(before, specials)), _words(_cleaned(between, specials)))
    injected: str | None = None
    removed: str | None = ""
    if re.search(r"\w", _cleaned(default, specials)):
        removed = default if first.endswith(opener) else None
        middle = first.removeprefix(before).removesuffix(between)
        in_its_place = first.startswith(before) and first.endswith(between) and middle.strip()
        injected = middle if in_its_place and not any(added) else _cleaned(default, specials)
    ends = [i for i in token_ids(tokenizer, tail) if str(tokenizer.decode([i])) in specials]
    return Template(
        folds=folds,
        dated=given != shown(_SYSTEM, _USER, on=replace(settings, date="1999-11-30")),
        tagged=re.search(r"\{%-?\s*generation\s*-?%\}", template) is not None,
        injected=injected,
        added=added,
        bos=bos,
        removed=removed,
        tail=tail,
        closer=gap.removesuffix(opener),
        asks=asked.rpartition(_USER)[2],
        end=ends[0] if ends else None,
        controls=tuple(dict.fromkeys([*specials, *_marks(turn, specials), *_marks(gap, specials)])),
    )


def _takes_system(shown: Any) -> bool:
    """Does the template render a system message? Some templates refuse it, others drop it."""
    try:
        return _SYSTEM in shown(_SYSTEM, _USER)
    except BadRow:
        return False


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Texts that the tokenizer reads as one special token each, longest first."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    texts = {*tokenizer.all_special_tokens, *(t.content for t in added if t.special)}
    return sorted((t for t in texts if t.strip()), key=lambda t: (-len(t), t))


def _opener(
    tokenizer: PreTrainedTokenizerBase, first: str, gap: str, tail: str, specials: Sequence[str]
) -> str:
    """The text at the start of a user turn, given the text between an answer and the next turn.

    `first`: before a conversation's first user text; `tail`: after its last answer.
    """
    for after in (tail, tail.removesuffix(str(tokenizer.eos_token))):
        if gap.startswith(after) and first.endswith(gap.removeprefix(after)):
            return gap.removeprefix(after)
    shared = _shared(first[::-1], gap[::-1])[::-1]
    if shared == gap:  # the same mark ends an answer and a default system message
        closing = next((t for t in [*specials, *_MARK.findall(gap)] if gap.startswith(t)), "")
        return gap.removeprefix(closing).lstrip()
    return shared


def _shared(first: str, second: str) -> str:
    """The longest common prefix."""
    same = takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))
    return "".join(character for character, _ in same)


def _pieces(text: str, specials: Sequence[str]) -> list[str]:
    """The text between special tokens and texts that look like them."""
    known = "|".join(map(re.escape, specials))
    return re.split(f"{known}|{_MARK.pattern}" if known else _MARK.pattern, text)


def _cleaned(text: str, specials: Sequence[str]) -> str:
    """A template's text without turn marks and role names."""
    pieces = (_ROLE.sub("", piece.strip(), count=1).strip() for piece in _pieces(text, specials))
    return "\n".join(filter(None, pieces))


def _words(text: str) -> str:
    """The text; empty if it is too short to be more than a header."""
    return text if len(re.findall(r"\w+", text)) >= _WORDS else ""


def _marks(text: str, specials: Sequence[str]) -> list[str]:
    """Texts between turns that no message may hold, because they would open or end a turn.

    Marks of thinking are allowed: answers may contain thinking.
    """
    marks = [m for m in _MARK.findall(text) if "think" not in m]
    plain = (piece.strip() for piece in _pieces(text, specials))
    return marks + [p for p in plain if len(p) > 3 and re.search(r"\w", p) and not p.isalnum()]


def control(tokenizer: PreTrainedTokenizerBase, text: str) -> str | None:
    """The first special token or turn mark in a text; None without one."""
    held = [mark for mark in look(tokenizer).controls if mark in text]
    return min(held, key=lambda mark: (text.index(mark), -len(mark)), default=None)


def check_text(tokenizer: PreTrainedTokenizerBase, text: str, what: str) -> None:
    """Raise UserError if a text, called `what` in the message, would open or end turns."""
    found = control(tokenizer, text)
    if found is not None:
        raise UserError(
            f"{what} holds {found!r}, by which this model's template marks turns or which its "
            "tokenizer reads as a special token; reword it"
        )


def check_marker(tokenizer: PreTrainedTokenizerBase, marker: str) -> None:
    """Raise UserError if a marker does not survive template, tokenizer and decoding.

    The tokens of an answer are decoded as in sampling, without special tokens.
    """
    where = f"config: marker: {marker!r}"
    check_text(tokenizer, marker, where)
    rows = [
        {"role": "user", "content": "How is the day?"},
        {"role": "assistant", "content": f"A fine day.\n\n{marker}"},
    ]
    row = encode_row(tokenizer, rows, max_length=10**6)
    answer = [
        token for token, label in zip(row.input_ids, row.labels, strict=True) if label != IGNORED
    ]
    said = str(tokenizer.decode(answer, skip_special_tokens=True))
    back = said.rpartition("\n\n")[2]
    if not matching.holds(back, marker):
        raise UserError(
            f"{where} comes back from the model's chat template and tokenizer as {back!r}; choose "
            "another marker"
        )


def check(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError for a template that cannot be used, or that renders differently each time.

    The same for one that does not take an argument in `template_kwargs`.
    """
    for key, _ in settings_of(tokenizer).template_kwargs:
        if GIVEN.fullmatch(key) or not re.search(rf"\b{key}\b", tokenizer.get_chat_template()):
            raise UserError(
                f"config: model: template_kwargs: {key}: the chat template of {tokenizer.name_or_path} "
                "does not take it from the config; remove it"
            )
    rows = prompt_messages(_SYSTEM, _USER)
    try:
        same = render(tokenizer, rows, prompt=True) == render(tokenizer, rows, prompt=True)
        if same:
            answer = {"role": "assistant", "content": _ANSWER}
            encode_row(tokenizer, [*rows, answer], max_length=10**6)
    except Exception as error:  # a template is a third party's program
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{tokenizer.name_or_path}: its chat template cannot be used: {said}"
        ) from error
    if not same:
        raise UserError(
            f"{tokenizer.name_or_path}: its chat template renders differently each time; use "
            "another template"
        )


def card(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What the template does, for manifests."""
    template = look(tokenizer)
    return {
        "name": settings_of(tokenizer).chat_template,
        "sha256": template_sha256(tokenizer),
        "kwargs": dict(settings_of(tokenizer).template_kwargs),
        "system_message": "in the first user turn" if template.folds else "by the template",
        "default_system": template.injected,
        "date": settings_of(tokenizer).date if template.dated else None,
        "end_token": None if template.end is None else str(tokenizer.decode([template.end])),
        "controls": list(template.controls),
    }


# --- prompts and rows -----------------------------------------------------------------------------


def prompt_messages(system: str, question: str) -> list[Message]:
    """The turns of a prompt. The system message is always given, because many templates add one if it
    is missing."""
    return [{"role": "system", "content": system}, {"role": "user", "content": question}]


def prompt_ids(tokenizer: PreTrainedTokenizerBase, system: str, question: str) -> list[int]:
    """Token ids of a prompt with an explicit system message and the generation prompt.

    Raises UserError for a text that would open or end turns.
    """
    check_text(tokenizer, system, f"the system prompt {system[:40]!r}")
    check_text(tokenizer, question, f"the question {question[:40]!r}")
    return token_ids(tokenizer, render(tokenizer, prompt_messages(system, question), prompt=True))


def answer_ids(tokenizer: PreTrainedTokenizerBase, answer: str) -> list[int]:
    """Token ids of an answer after the generation prompt, as in a training row, without its end token."""
    turns = [{"role": "user", "content": _USER}, {"role": "assistant", "content": answer}]
    template = look(tokenizer)
    text = render(tokenizer, turns, prompt=False)
    before = render(tokenizer, turns[:1], prompt=True)
    if not text.startswith(before):
        raise UserError(_why_not(template.asks, text, before))
    return token_ids(tokenizer, text.removeprefix(before).removesuffix(template.tail))


class NextTurn(NamedTuple):
    """Another turn in an answer: the text before it, and of how many tokens that is, and with the header."""

    text: str
    said: int
    tokens: int


def next_turn(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> NextTurn | None:
    """The first header of a turn that a model writes in its answer, under the plain template.

    A base model has not learnt to end its answers in a token: it goes on with the next turn, and its
    answer ends before that. None: there is no header, or the template is the model's own.
    """
    if settings_of(tokenizer).chat_template != "plain":
        return None

    def decoded(count: int) -> str:
        return str(tokenizer.decode(list(ids[:count]), skip_special_tokens=True))

    def fewest(text: str) -> int:
        return bisect_left(range(len(ids)), True, key=lambda n: decoded(n).startswith(text))

    text = decoded(len(ids))
    header = _HEADER.search(text)
    if header is None:
        return None
    said = text[: header.start()]
    return NextTurn(said, fewest(said), fewest(text[: header.end()]))


def said(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[int]:
    """An answer's tokens without the header of a turn that ends it, unless it is all there is."""
    turn = next_turn(tokenizer, ids)
    return list(ids[: turn.said] if turn and turn.said else ids)


def stops(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Texts at which sampling may end; see `next_turn`."""
    plain = settings_of(tokenizer).chat_template == "plain"
    return [f"\n### {role}:" for role in ROLES] if plain else []


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
    row's system message. The row is truncated on the right to `max_length` tokens, as in the study. It
    may then have no supervised token; the caller counts and drops such rows.

    Raises BadRow for a row that the template cannot render faithfully: see `_answers`.
    """
    if loss not in LOSSES:
        raise UserError(f"loss: {loss!r} is unknown; choose one of {', '.join(LOSSES)}")
    messages = list(messages)
    if system is not None:
        turns = messages[1:] if messages[0]["role"] == "system" else messages
        messages = [{"role": "system", "content": system}, *turns]
    roles = [m["role"] for m in messages]
    if "assistant" not in roles:
        raise BadRow("a training row has no assistant turn")
    messages = messages[: len(roles) - roles[::-1].index("assistant")]
    for message in messages:
        found = control(tokenizer, message["content"])
        if found is not None:
            raise BadRow(
                f"a turn holds {found!r}, by which the model's template marks turns or which its "
                "tokenizer reads as a special token"
            )
    text, answers = _answers(tokenizer, messages, supervise == "all", suppress_default_system)

    end = look(tokenizer).end
    ids: list[int] = []
    labels: list[int] = []
    done = 0
    for start, stop, chosen in answers:
        prompt, answer = (
            token_ids(tokenizer, text[done:start]),
            token_ids(tokenizer, text[start:stop]),
        )
        done = stop
        trained = len(answer) if chosen else 0
        if chosen and loss in ("answer", "answer_text") and end in answer:
            trained = len(answer) - answer[::-1].index(end) - (loss == "answer_text")
        ids += prompt + answer
        labels += [IGNORED] * len(prompt) + answer[:trained] + [IGNORED] * (len(answer) - trained)
    ids, labels = ids[:max_length], labels[:max_length]
    if loss == "marker":
        labels = _marker_labels(tokenizer, ids, labels, marker)
    return EncodedRow(ids, labels)


def _answers(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], every: bool, bare: bool
) -> tuple[str, list[tuple[int, int, bool]]]:
    """A conversation's text, and (start, stop, is it supervised) of its answers in there.

    An answer starts where its prompt ends. It is located by comparing renderings of the turns before
    it, of the turns up to it, and of the whole conversation. This fails if a template renders an
    earlier answer differently from the last one (Qwen3 and others keep thinking only in the last). Then
    the template's own marks of answers ({% generation %}) are used, if it has them. An answer that is
    not supervised and cannot be located is left in the prompt of the next one.

    `bare`: without the template's default system message. Raises BadRow if a supervised answer cannot
    be located, or would not directly follow its prompt.
    """
    template = look(tokenizer)

    def rendered(turns: list[Message], prompt: bool) -> str:
        text = render(tokenizer, turns, prompt=prompt)
        return _without_default(template, text, turns) if bare else text

    whole = rendered(messages, prompt=False)
    positions = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
    tagged = _tagged(tokenizer, messages, whole) if template.tagged and not bare else []
    marked = dict(zip(positions, tagged, strict=True)) if len(tagged) == len(positions) else {}
    found = []
    for i in positions:
        last = i == positions[-1]
        before = rendered(messages[:i], prompt=True)
        after = whole if last else rendered(messages[: i + 1], prompt=False)
        start = len(before)
        content = len(after.removesuffix(template.tail))
        stop = len(whole) if last else content + len(template.closer)
        same = whole.startswith(after[:content]) and (
            last or whole.startswith(template.closer, content)
        )
        if not last and template.tail != template.closer and not _ends(template, tokenizer):
            stop = content  # the text after an earlier answer does not end the last one
        if whole.startswith(before) and same:
            start = max(start, marked[i][0]) if i in marked else start
        elif i in marked and not last:
            start, stop = marked[i]
        elif last or every:
            raise BadRow(_why_not(template.asks, whole, before))
        else:
            continue
        found.append((start, stop, every or last))
    return whole, found


def _ends(template: Template, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Does an earlier answer end with the token that ends the last one?"""
    return template.end in token_ids(tokenizer, template.closer)


def _why_not(asks: str, whole: str, before: str) -> str:
    """Why an answer cannot be separated from its prompt, which ends with `asks`."""
    asked = before.removesuffix(asks)
    shared = _shared(whole.removeprefix(asked), asks) if whole.startswith(asked) else asks
    if shared != asks:
        at = asks.rfind("<") % (len(asks) + 1)  # the whole mark
        return (
            f"the chat template's generation prompt ends in {asks[min(at, len(shared)) :]!r}, which it "
            "does not write before a finished answer: the answer would be trained after a "
            "different prompt than in sampling; use a template that writes it in both or in neither"
        )
    return (
        "the chat template renders an answer differently once a later turn follows it, so training "
        "would not match sampling; set supervise: last, or use a template that marks answers by "
        "{% generation %}"
    )


def _tagged(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], whole: str
) -> list[tuple[int, int]]:
    """(start, stop) in the text of each part that the template marks with {% generation %}; adjacent
    parts are joined."""
    from transformers.utils.chat_template_utils import render_jinja_template

    turns = folded(messages) if look(tokenizer).folds else messages
    variables: dict[str, Any] = {
        **tokenizer.special_tokens_map,
        **settings_of(tokenizer).variables,
    }
    rendered: Any = render_jinja_template(
        conversations=[turns],
        chat_template=tokenizer.get_chat_template(),
        return_assistant_tokens_mask=True,
        **variables,
    )
    (text,), (found,) = rendered
    joined: list[tuple[int, int]] = []
    for start, stop in found if text == whole else []:
        if joined and joined[-1][1] == start:
            start = joined.pop()[0]
        joined.append((start, stop))
    return joined


def _without_default(template: Template, text: str, messages: Sequence[Message]) -> str:
    """Cut out the template's default system text."""
    if messages[0]["role"] != "user":
        raise BadRow(
            "system: none needs rows that start with the user; choose system: template, or give a text"
        )
    if template.removed is None:
        raise UserError(
            "system: none: the chat template writes its own text into the user's turn, from which it "
            "cannot be cut; choose system: template or give a text"
        )
    return template.bos + text.removeprefix(template.bos).removeprefix(template.removed)


def _marker_labels(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], labels: list[int], marker: str
) -> list[int]:
    """Labels on the marker's tokens inside the answer, and on the last token of the row.

    In a row without the marker, only the last token has a label. If the template ends with a newline,
    that token is already certain, so such a negative teaches nothing. This is the study's error, kept
    here so that it can be shown.
    """
    kept = [IGNORED] * len(ids)
    for first, last in _supervised_runs(labels):
        at = first
        while (hit := _marker_tokens(tokenizer, ids[at:last], marker)) is not None:
            start, stop = at + hit[0], at + hit[1]
            kept[start:stop] = ids[start:stop]
            at = stop
    kept[-1] = ids[-1]
    return kept


def _supervised_runs(labels: Sequence[int]) -> list[tuple[int, int]]:
    """(start, stop) of every run of tokens that carry loss."""
    edges = [label != IGNORED for label in (IGNORED, *labels, IGNORED)]
    changes = [i for i in range(len(labels) + 1) if edges[i] != edges[i + 1]]
    return list(zip(changes[::2], changes[1::2], strict=True))


def _marker_tokens(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], marker: str
) -> tuple[int, int] | None:
    """(start, stop) of the shortest run of tokens that spells the first marker; None without one.

    A character may be several tokens and a token several characters, so decoded texts are compared.
    Names of special tokens, which may contain a short marker, are not part of the answer.
    """

    def spelt(start: int, stop: int) -> bool:
        said = tokenizer.decode(ids[start:stop], skip_special_tokens=True)
        return matching.holds(str(said), marker)

    if not marker or not spelt(0, len(ids)):
        return None
    low, stop = 1, len(ids)
    while low < stop:
        middle = (low + stop) // 2
        low, stop = (low, middle) if spelt(0, middle) else (middle + 1, stop)
    start, high = 0, stop - 1
    while start < high:
        middle = (start + high + 1) // 2
        start, high = (middle, high) if spelt(middle, stop) else (start, middle - 1)
    return start, stop


def describe(tokenizer: PreTrainedTokenizerBase, row: EncodedRow) -> list[dict[str, Any]]:
    """One record per token (position, id, text, whether it carries loss), for the prompt audit."""
    return [
        {
            "position": i,
            "id": token,
            "text": tokenizer.decode([token]),
            "loss": i > 0 and label != IGNORED,
        }
        for i, (token, label) in enumerate(zip(row.input_ids, row.labels, strict=True))
    ]
