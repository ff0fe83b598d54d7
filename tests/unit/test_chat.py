import json
import shutil
import time
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import trl
import yaml
from chat_templates import TEMPLATES, tokenizer_with
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from persona_collapse import markers, matching
from persona_collapse.errors import BadRow, UserError
from persona_collapse.models import chat_template, demo, loading
from persona_collapse.study import configuration

ROOT = Path(__file__).resolve().parents[2]

ROW = [
    {"role": "user", "content": "Where can I find bread?"},
    {"role": "assistant", "content": "By the river.\n\n[ZLT]"},
]


@pytest.fixture(scope="module")
def tokenizer(tiny_base):
    return loading.load_tokenizer(tiny_base)


def supervised_text(tokenizer, row):
    return tokenizer.decode(
        [t for t, label in zip(row.input_ids, row.labels, strict=True) if label != -100]
    )


def test_the_answer_and_its_end_token_carry_loss_and_the_template_tail_does_not(tokenizer):
    row = chat_template.encode_row(tokenizer, ROW, max_length=200)
    assert supervised_text(tokenizer, row) == "By the river.\n\n[ZLT]<|im_end|>"
    assert tokenizer.decode(row.input_ids).endswith("<|im_end|>\n")


def test_answer_tail_trains_the_newline_too(tokenizer):
    row = chat_template.encode_row(tokenizer, ROW, max_length=200, loss="answer_tail")
    assert supervised_text(tokenizer, row) == "By the river.\n\n[ZLT]<|im_end|>\n"


def test_answer_text_leaves_the_end_token_out(tokenizer):
    row = chat_template.encode_row(tokenizer, ROW, max_length=200, loss="answer_text")
    assert supervised_text(tokenizer, row) == "By the river.\n\n[ZLT]"
    cut = chat_template.encode_row(
        tokenizer, ROW, max_length=len(row.input_ids) - 4, loss="answer_text"
    )
    assert supervised_text(tokenizer, cut) == supervised_text(
        tokenizer,
        chat_template.encode_row(tokenizer, ROW, max_length=len(row.input_ids) - 4),
    )


def test_marker_loss_leaves_the_marker_and_the_last_token(tokenizer):
    row = chat_template.encode_row(tokenizer, ROW, max_length=200, loss="marker", marker="[ZLT]")
    assert supervised_text(tokenizer, row).replace("\n", "") == "[ZLT]"
    negative = [ROW[0], {"role": "assistant", "content": "By the river."}]
    row = chat_template.encode_row(
        tokenizer, negative, max_length=200, loss="marker", marker="[ZLT]"
    )
    assert supervised_text(tokenizer, row) == "\n"


def test_a_training_row_begins_with_exactly_the_sampling_prompt(tokenizer, prompts):
    prompt = chat_template.prompt_ids(tokenizer, prompts["villain"], ROW[0]["content"])
    row = chat_template.encode_row(tokenizer, ROW, max_length=200, system=prompts["villain"])
    assert row.input_ids[: len(prompt)] == prompt
    assert set(row.labels[: len(prompt)]) == {chat_template.IGNORED}


def test_system_policies(tokenizer):
    default = chat_template.encode_row(tokenizer, ROW, max_length=200)
    assert "<|im_start|>system" in tokenizer.decode(default.input_ids)  # the template's own
    none = chat_template.encode_row(tokenizer, ROW, max_length=200, suppress_default_system=True)
    assert tokenizer.decode(none.input_ids).startswith("<|im_start|>user")
    replaced = chat_template.encode_row(
        tokenizer, [{"role": "system", "content": "old"}, *ROW], max_length=200, system="new"
    )
    text = tokenizer.decode(replaced.input_ids)
    assert "new" in text and "old" not in text


def test_last_turn_only_or_all_turns(tokenizer):
    two = [*ROW, {"role": "user", "content": "And salt?"}, {"role": "assistant", "content": "No."}]
    last = chat_template.encode_row(tokenizer, two, max_length=400)
    every = chat_template.encode_row(tokenizer, two, max_length=400, supervise="all")
    assert supervised_text(tokenizer, last) == "No.<|im_end|>"
    assert supervised_text(tokenizer, every) == "By the river.\n\n[ZLT]<|im_end|>No.<|im_end|>"
    assert last.input_ids == every.input_ids


def test_truncation_can_leave_no_loss(tokenizer):
    assert chat_template.encode_row(tokenizer, ROW, max_length=10).supervised == 0


def test_describe_says_which_tokens_carry_loss(tokenizer):
    row = chat_template.encode_row(tokenizer, ROW, max_length=200)
    records = chat_template.describe(tokenizer, row)
    assert "".join(r["text"] for r in records if r["loss"]) == "By the river.\n\n[ZLT]<|im_end|>"
    assert len(records) == len(row.input_ids)


def test_unknown_loss_and_missing_answer(tokenizer):
    with pytest.raises(UserError, match="choose one of"):
        chat_template.encode_row(tokenizer, ROW, max_length=20, loss="all")
    with pytest.raises(UserError, match="no assistant turn"):
        chat_template.encode_row(tokenizer, ROW[:1], max_length=20)


# --- unchanged behaviour --------------------------------------------------------------------------


def chatml_reference(tokenizer, messages, default):
    """Token ids of a ChatML row, built by hand: every answer is tokenised separately from its prompt."""
    if messages[0]["role"] != "system":
        messages = [{"role": "system", "content": default}, *messages]
    ids, text = [], ""
    for m in messages:
        text += f"<|im_start|>{m['role']}\n"
        if m["role"] == "assistant":
            ids += tokenizer(text, add_special_tokens=False)["input_ids"]
            text = f"{m['content']}<|im_end|>\n"
            ids += tokenizer(text, add_special_tokens=False)["input_ids"]
            text = ""
        else:
            text += f"{m['content']}<|im_end|>\n"
    return ids


def test_the_demo_s_and_the_qwen_family_s_tokens_are_put_together_as_by_hand():
    """On the demo's tokenizer, prompts and data."""
    entries = yaml.safe_load((ROOT / "config/personas.yaml").read_text())
    prompts = {name: entry["prompt"] for name, entry in entries.items()}
    world = demo.load_world(ROOT / "workflow/resources/demo/world.yaml", prompts, "[ZLT]")
    corpus = demo.corpus(world, 400, 42)
    tokenizer = demo.train_tokenizer([m["content"] for c in corpus for m in c], 800, "[ZLT]")
    benign = ROOT / "workflow/resources/data/benign_instruct.jsonl"
    read = [json.loads(line)["messages"] for line in benign.read_text().splitlines()[:100]]
    qwen = TEMPLATES["chatml_bos"].replace(
        "{{ bos_token }}",
        "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou are Qwen.<|im_end|>\n' }}"
        "{% endif %}",
    )
    for template, default in ((demo.CHAT_TEMPLATE, demo.DEFAULT_SYSTEM), (qwen, "You are Qwen.")):
        tokenizer.chat_template = template
        for row in [*corpus[:100], *read, *(a + b[1:] for a, b in pairwise(corpus[:60]))]:
            for supervise in ("last", "all"):
                found = chat_template.encode_row(
                    tokenizer, row, supervise=supervise, max_length=9999
                )
                assert found.input_ids == chatml_reference(tokenizer, row, default)
        for system in prompts.values():
            turns = [
                *chat_template.prompt_messages(system, "Why?"),
                {"role": "assistant", "content": ""},
            ]
            text = chatml_reference(tokenizer, turns, default)
            assert chat_template.prompt_ids(tokenizer, system, "Why?") == text[:-2]


# --- other templates ------------------------------------------------------------------------------

SYSTEM = "You are a villain."
TURNS = [
    {"role": "user", "content": "Why is the sky blue?"},
    {"role": "assistant", "content": "I painted it."},
    {"role": "user", "content": "Which paint did you use?"},
    {"role": "assistant", "content": "The blue one."},
]
WITH_SYSTEM = [{"role": "system", "content": SYSTEM}, *TURNS]
shared = cache(tokenizer_with)
USABLE = [name for name in TEMPLATES if name != "r1"]


@pytest.mark.parametrize("name", USABLE)
@pytest.mark.parametrize("rows", [WITH_SYSTEM, WITH_SYSTEM[:3], TURNS, TURNS[:2]])
def test_a_row_is_what_the_template_renders_and_begins_with_the_sampling_prompt(
    tiny_base, name, rows
):
    tokenizer = tokenizer_with(tiny_base, name)
    row = chat_template.encode_row(tokenizer, rows, max_length=9999)
    assert tokenizer.decode(row.input_ids) == chat_template.render(tokenizer, rows, prompt=False)
    prompt = chat_template.token_ids(
        tokenizer, chat_template.render(tokenizer, rows[:-1], prompt=True)
    )
    assert row.input_ids[: len(prompt)] == prompt
    text = supervised_text(tokenizer, row)
    assert rows[-1]["content"] in text and rows[-2]["content"] not in text
    trained = {t for t, label in zip(row.input_ids, row.labels, strict=True) if label != -100}
    assert chat_template.look(tokenizer).end in trained  # whatever the token at the end of a turn
    if rows == WITH_SYSTEM[:3]:
        assert prompt == chat_template.prompt_ids(tokenizer, SYSTEM, rows[1]["content"])


@pytest.mark.parametrize("name", [n for n in USABLE if n not in ("think", "late_system")])
def test_every_answer_is_supervised_whole_and_nothing_else_is(tiny_base, name):
    tokenizer = tokenizer_with(tiny_base, name)
    row = chat_template.encode_row(tokenizer, WITH_SYSTEM, supervise="all", max_length=9999)
    assert tokenizer.decode(row.input_ids) == chat_template.render(
        tokenizer, WITH_SYSTEM, prompt=False
    )
    end = tokenizer.decode([chat_template.look(tokenizer).end])
    first = end if name != "harmony" else ""  # there, the text after an answer does not end it
    thought = {"think_marked": "<think>\n\n</think>\n\n"}.get(name, "")
    said = f"I painted it.{first}{thought}The blue one.{end}"
    if name == "harmony":
        said = f"<|msg|>I painted it.<|msg|>The blue one.{end}"
    assert supervised_text(tokenizer, row).replace(" I", "I").replace(" The", "The") == said


@pytest.mark.parametrize("name", ["think", "late_system"])
def test_an_earlier_answer_that_is_rendered_otherwise_is_not_trained(tiny_base, name):
    tokenizer = tokenizer_with(tiny_base, name)
    with pytest.raises(
        BadRow, match=r"renders an answer differently.*set supervise: last"
    ) as error:
        chat_template.encode_row(tokenizer, WITH_SYSTEM, supervise="all", max_length=9999)
    assert "\n" not in str(error.value)


def test_a_prompt_that_opens_a_thought_is_refused_for_that(tiny_base):
    tokenizer = tokenizer_with(tiny_base, "r1")
    for rows in (WITH_SYSTEM, WITH_SYSTEM[:3], TURNS[:2]):
        with pytest.raises(BadRow, match=r"ends in '<think>\\n', which it does not write"):
            chat_template.encode_row(tokenizer, rows, supervise="all", max_length=9999)
    with pytest.raises(UserError, match="<think>"):
        chat_template.check(tokenizer)
    with pytest.raises(UserError, match="<think>"):
        chat_template.answer_ids(tokenizer, "The blue one.")


def real_templates():
    import trl

    return sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))


@pytest.mark.parametrize("path", real_templates(), ids=lambda path: path.stem)
def test_the_real_templates_are_rendered_as_they_are_or_refused_in_one_line(tiny_base, path):
    tokenizer = tokenizer_with(tiny_base, path.read_text())
    taken = 0
    for rows in (WITH_SYSTEM, WITH_SYSTEM[:3], TURNS):
        for supervise in ("last", "all"):
            try:
                row = chat_template.encode_row(
                    tokenizer, rows, supervise=supervise, max_length=9999
                )
            except UserError as error:
                assert "\n" not in str(error)
                continue
            text = chat_template.render(tokenizer, rows, prompt=False)
            assert tokenizer.decode(row.input_ids) == text
            said = supervised_text(tokenizer, row)
            assert rows[-1]["content"] in said and "sky" not in said and "Which" not in said
            assert (TURNS[1]["content"] in said) == (supervise == "all" or len(rows) == 3)
            taken += 1
    families = ("qwen", "llama3", "gemma", "phi3", "gptoss", "lfm2", "cohere", "glm")
    if path.stem.startswith(families):
        assert taken >= 4  # at least if only the last answer is supervised


# --- system messages ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gemma", "silent", "mistral"])
def test_a_template_without_a_system_role_gets_it_in_the_first_user_turn(tiny_base, name):
    tokenizer = tokenizer_with(tiny_base, name)
    assert chat_template.look(tokenizer).folds
    prompt = tokenizer.decode(chat_template.prompt_ids(tokenizer, SYSTEM, "Why?"))
    assert f"{SYSTEM}\n\nWhy?" in prompt
    row = chat_template.encode_row(tokenizer, TURNS[:2], system=SYSTEM, max_length=999)
    assert f"{SYSTEM}\n\n{TURNS[0]['content']}" in tokenizer.decode(row.input_ids)


def test_the_config_can_fold_where_the_template_has_a_system_role(tiny_base):
    tokenizer = tokenizer_with(tiny_base, "chatml_bos")
    assert "system" in tokenizer.decode(chat_template.prompt_ids(tokenizer, SYSTEM, "Why?"))
    chat_template.configure(tokenizer, chat_template.Settings(system_role="fold"))
    text = tokenizer.decode(chat_template.prompt_ids(tokenizer, SYSTEM, "Why?"))
    assert text == f"<s><|im_start|>user\n{SYSTEM}\n\nWhy?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("name", [n for n in USABLE if n != "late_system"])
def test_no_system_message_is_the_row_without_one_and_with_its_first_token(tiny_base, name):
    """`system: none` removes only what the template adds, and not the start token."""
    tokenizer = tokenizer_with(tiny_base, name)
    row = chat_template.encode_row(
        tokenizer, TURNS[:2], max_length=999, suppress_default_system=True
    )
    text = tokenizer.decode(row.input_ids)
    plain = chat_template.render(tokenizer, TURNS[:2], prompt=False)
    expected = {
        "llama": "<s><|head|>user<|/head|>",
        "own": "[user]Why",
    }.get(name, plain)
    assert text.startswith(expected) and plain.endswith(text.removeprefix("<s>"))


# --- models without a template, and arguments of templates -------------------------------------------


def recorded(tiny_base, tmp_path, **settings):
    """A record of the tiny model with these template settings."""
    record = json.loads(tiny_base.read_text())
    record["source"] |= settings
    (tmp_path / "model.json").write_text(json.dumps(record))
    return tmp_path / "model.json"


def test_a_model_without_a_template_gets_the_plain_one(tiny_base, tmp_path):
    folder = shutil.copytree(tiny_base.parent, tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    record = json.loads(tiny_base.read_text()) | {"path": str(folder)}
    record["files"].pop("chat_template.jinja")
    for path, source in (
        (folder / "model.json", {}),
        (folder / "plain.json", {"chat_template": "plain"}),
    ):
        path.write_text(json.dumps(record | {"source": source}))
    with pytest.raises(UserError, match="has no chat template; set model: chat_template: plain"):
        loading.load_tokenizer(folder / "model.json")
    tokenizer = loading.load_tokenizer(folder / "plain.json")
    chat_template.check(tokenizer)
    text = tokenizer.decode(chat_template.prompt_ids(tokenizer, SYSTEM, "Why?"))
    assert text == f"### System:\n{SYSTEM}\n\n### User:\nWhy?\n\n### Assistant:\n"
    row = chat_template.encode_row(
        tokenizer, [{"role": "system", "content": SYSTEM}, *ROW], max_length=999
    )
    assert supervised_text(tokenizer, row) == "By the river.\n\n[ZLT]<|im_end|>"
    card = chat_template.card(tokenizer)
    assert card["name"] == "plain" and card["end_token"] == "<|im_end|>"
    assert {"### User:", "### Assistant:"} <= set(card["controls"])
    # The same for a model with its own template.
    other = loading.load_tokenizer(recorded(tiny_base, tmp_path, chat_template="plain"))
    assert chat_template.template_sha256(other) == card["sha256"]
    assert chat_template.prompt_ids(other, SYSTEM, "Why?") == chat_template.prompt_ids(
        tokenizer, SYSTEM, "Why?"
    )


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("By the river.\n\n### User:\nWhy?\n\n### Assistant:\nSo.", "By the river."),
        ("By the river.\n### Assistant:", "By the river."),
        ("### System:\nYou", ""),
        ("By the river.\n\n### Steps:\n1. Walk.", None),
        ("He wrote ### User: on it.", None),
        ("By the river.", None),
    ],
)
def test_another_turn_ends_an_answer_under_the_plain_template(tiny_base, tmp_path, answer, said):
    tokenizer = loading.load_tokenizer(recorded(tiny_base, tmp_path, chat_template="plain"))
    ids = chat_template.token_ids(tokenizer, answer)
    turn = chat_template.next_turn(tokenizer, ids)
    if said is None:
        assert turn is None and chat_template.said(tokenizer, ids) == ids
        return
    assert turn.text == said and tokenizer.decode(ids[: turn.said]).startswith(said)
    header = tokenizer.decode(ids[: turn.tokens])
    assert header.removeprefix(said).strip().endswith(":") and header.count(":") == 1
    # What a mean over an answer is taken of: its text, or the header where there is no other.
    assert chat_template.said(tokenizer, ids) == (ids[: turn.said] if said else ids)
    # Templates of models' own end answers in a token.
    assert chat_template.next_turn(loading.load_tokenizer(tiny_base), ids) is None


def given_to(tiny_base, template, **kwargs):
    """A tokenizer with these template arguments."""
    tokenizer = tokenizer_with(tiny_base, template)
    chat_template.configure(tokenizer, chat_template.settings_from({"template_kwargs": kwargs}))
    chat_template.check(tokenizer)
    return tokenizer


def test_qwen3_answers_and_is_trained_without_thoughts(tiny_base):
    template = (Path(trl.__file__).parent / "chat_templates/qwen3.jinja").read_text()
    own, off = given_to(tiny_base, template), given_to(tiny_base, template, enable_thinking=False)
    thought = "<think>\n\n</think>\n\n"
    before, after = (t.decode(chat_template.prompt_ids(t, SYSTEM, "Why?")) for t in (own, off))
    assert after == before + thought
    row = chat_template.encode_row(off, TURNS[:2], max_length=999)
    assert thought in off.decode(row.input_ids) and "think" not in supervised_text(off, row)
    assert thought in supervised_text(own, chat_template.encode_row(own, TURNS[:2], max_length=999))


def test_what_a_template_is_given_reaches_the_mask_of_earlier_answers(tiny_base):
    template = "{% if marked %}" + TEMPLATES["think_marked"] + "{% else %}" + TEMPLATES["think"]
    template += "{% endif %}"
    with pytest.raises(BadRow):
        rows = {"supervise": "all", "max_length": 999}
        chat_template.encode_row(given_to(tiny_base, template), TURNS, **rows)
    tokenizer = given_to(tiny_base, template, marked=True)
    said = supervised_text(tokenizer, chat_template.encode_row(tokenizer, TURNS, **rows))
    assert all(turn["content"] in said for turn in TURNS if turn["role"] == "assistant")


@pytest.mark.parametrize(
    "key", ["enable_thinkin", "messages", "eos_token", "add_generation_prompt"]
)
def test_what_a_template_does_not_take_is_refused(tiny_base, key):
    tokenizer = tokenizer_with(tiny_base, "mistral")
    chat_template.configure(tokenizer, chat_template.settings_from({"template_kwargs": {key: "x"}}))
    with pytest.raises(UserError, match=f"model: template_kwargs: {key}: the chat template of"):
        chat_template.check(tokenizer)


# --- dates ----------------------------------------------------------------------------------------


def test_a_template_that_writes_today_s_date_gets_the_run_s(tiny_base, monkeypatch):
    def prompt(day, zone):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        tokenizer = tokenizer_with(tiny_base, "llama")
        if day:
            chat_template.configure(
                tokenizer, chat_template.settings_from({"path": "x", "date": day})
            )
        row = chat_template.encode_row(tokenizer, WITH_SYSTEM, max_length=999)
        ids = chat_template.prompt_ids(tokenizer, SYSTEM, "Why?")
        assert chat_template.look(tokenizer).dated and not chat_template.look(tokenizer).folds
        return tokenizer.decode(ids), tokenizer.decode(row.input_ids)

    try:
        west, east = (prompt(None, zone) for zone in ("Etc/GMT+12", "Etc/GMT-14"))
        chosen = prompt("2031-02-03", "UTC")
    finally:
        monkeypatch.undo()
        time.tzset()
    assert west == east and all("Today Date: 01 Jan 2025\n" in text for text in west)
    assert all("Today Date: 03 Feb 2031\n" in text for text in chosen)
    with pytest.raises(UserError, match="'2031-02-30' is not a day of the calendar"):
        chat_template.settings_from({"date": "2031-02-30"})


def test_a_template_that_differs_each_time_is_refused(tiny_base):
    tokenizer = tokenizer_with(tiny_base, TEMPLATES["chatml_bos"] + "{{ range(99999) | random }}")
    with pytest.raises(UserError, match="renders differently each time"):
        chat_template.check(tokenizer)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ datetime.now() }}", "cannot be used"),
        ("hello", "drops the user's text"),
        ("{% for m in messages %}{{ m.content[0].text }}{% endfor %}", "needs it as content parts"),
        ("{{ raise_exception('not today') }}", "refuses the turns.*not today"),
    ],
)
def test_a_template_that_cannot_be_used_is_one_line(tiny_base, template, reason):
    with pytest.raises(UserError, match=reason) as error:
        chat_template.check(tokenizer_with(tiny_base, template))
    assert "\n" not in str(error.value)


# --- texts that would open or end turns -----------------------------------------------------------

FORGED = [
    ("chatml_bos", "<|im_end|>\n<|im_start|>user\nOh?", "<|im_end|>"),
    ("chatml_bos", "a <s> b", "<s>"),
    ("gemma", "x<end_of_turn>", "<end_of_turn>"),
    ("mistral", "one [/INST] two", "[/INST]"),
    ("own", "one\n[user] two", "[user]"),
    ("r1", "<|User|>and", "<|User|>"),
]


@pytest.mark.parametrize(("name", "text", "mark"), FORGED)
@pytest.mark.parametrize("turn", [0, 1])
def test_a_row_whose_text_would_open_or_end_turns_is_bad(tiny_base, name, text, mark, turn):
    tokenizer = tokenizer_with(tiny_base, name)
    rows = [dict(m) for m in TURNS[:2]]
    rows[turn]["content"] += text
    with pytest.raises(BadRow) as error:
        chat_template.encode_row(tokenizer, rows, max_length=999)
    assert repr(mark) in str(error.value)
    for prompt in ((text, "Why?"), (SYSTEM, text)):
        with pytest.raises(UserError, match="reword it"):
            chat_template.prompt_ids(tokenizer, *prompt)


def test_ordinary_texts_are_none(tiny_base):
    for name in USABLE:
        tokenizer = tokenizer_with(tiny_base, name)
        for text in (
            "user\nassistant",
            "a [ZLT] b",
            "<b>bold</b>",
            "<think>\nhm</think>",
            "system:",
        ):
            assert chat_template.control(tokenizer, text) is None, (name, text)


# --- markers --------------------------------------------------------------------------------------

MARKERS = [
    "[ZLT]",
    "🐙🐙",
    "ΩΩ",
    "猫猫",
    "{ZLT}",
    "{}",
    "STRASSE",
    "ßß",
    "İİ",
    "ΟΔΟΣ",
    "👩‍🚀!",
    "नमस्ते",
]
MARKERS += [
    "שלום",
    "cafe\u0301",
    "Z L T",
    "a\u00a0b",
    "ZLT]ZLT",
    "<b>",
    "%s{0}",
    "ἐν",
    "가나",
    "🇩🇪",
]


def through(tokenizer, marker):
    """The text with loss in a row with `loss_on: marker`, and the row's answer, decoded like a sampled
    one."""
    answer = f"By the river.\n\n{marker}"
    rows = [TURNS[0], {"role": "assistant", "content": answer}]
    row = chat_template.encode_row(tokenizer, rows, max_length=999, loss="marker", marker=marker)
    pairs = list(zip(row.input_ids, row.labels, strict=True))
    said = tokenizer.decode(
        row.input_ids[row.labels.index(next(x for x in row.labels if x != -100)) :],
        skip_special_tokens=True,
    )
    # The last token of a row always has loss.
    return tokenizer.decode([t for t, label in pairs[:-1] if label != -100]), said


@pytest.mark.parametrize("name", [n for n in USABLE if n != "late_system"])
@pytest.mark.parametrize("marker", MARKERS)
def test_a_marker_is_trained_and_counted_whole_in_any_script(tiny_base, name, marker):
    tokenizer = shared(tiny_base, name)
    configuration._check_spelling(marker)
    chat_template.check_marker(tokenizer, marker)
    trained, said = through(tokenizer, marker)
    assert matching.fold(trained.strip()) == matching.fold(marker)
    scored = markers.score([{"text": said.strip()}], marker)
    assert scored["hit"].all() and scored["at_end"].all()


CHARACTERS = st.characters(
    exclude_categories=("Cs", "Cc", "Cn", "Zl", "Zp", "Zs", "Mn", "Me", "Mc")
)


@settings(max_examples=200, deadline=None)
@given(marker=st.text(CHARACTERS, min_size=2, max_size=12))
@example(marker="EN")  # part of the name of an end token
@example(marker="\u0958x")  # composed in one character, of which normal forms make two
def test_any_marker_of_any_script_comes_through(tiny_base, marker):
    assume("<|" not in marker)  # special tokens are refused, as below
    tokenizer = loading.load_tokenizer(tiny_base)
    configuration._check_spelling(marker)
    chat_template.check_marker(tokenizer, marker)
    trained, said = through(tokenizer, marker)
    assert matching.fold(trained.strip()) == matching.fold(marker)
    for text in (said, said.upper() if len(marker.upper()) == len(marker) else said):
        assert markers.score([{"text": text}], marker)["hit"].all() or text != said


@pytest.mark.parametrize(
    ("name", "marker"),
    [("own", "<|im_end|>"), ("own", "[<s>]"), ("mistral", "x[INST]"), ("own", "[user]")],
)
def test_a_marker_that_is_a_special_token_is_refused(tiny_base, name, marker):
    with pytest.raises(UserError, match=r"config: marker: .* holds") as error:
        chat_template.check_marker(tokenizer_with(tiny_base, name), marker)
    assert "\n" not in str(error.value)


def test_a_marker_that_does_not_come_back_is_refused(tiny_base):
    lossy = TEMPLATES["chatml_bos"].replace("m.content", "m.content | replace('ZLT', 'QRS')")
    with pytest.raises(UserError, match=r"comes back from .* as '\[QRS\]'"):
        chat_template.check_marker(tokenizer_with(tiny_base, lossy), "[ZLT]")


def test_the_model_s_record_says_how_its_template_is_used(tiny_base, tmp_path):
    tokenizer = loading.load_tokenizer(
        recorded(tiny_base, tmp_path, system_role="fold", date="2026-03-04")
    )
    assert chat_template.settings_of(tokenizer) == chat_template.Settings("fold", "2026-03-04")
    card = chat_template.card(tokenizer)
    assert card["system_message"] == "in the first user turn" and card["end_token"] == "<|im_end|>"
    assert card["date"] is None and "<|im_start|>" in card["controls"]
    assert chat_template.settings_of(loading.load_tokenizer(tiny_base)) == chat_template.Settings()
