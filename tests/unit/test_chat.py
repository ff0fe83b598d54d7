import pytest
from persona_collapse import chat, models
from persona_collapse.errors import UserError

ROW = [
    {"role": "user", "content": "Where can I find bread?"},
    {"role": "assistant", "content": "By the river.\n\n[ZLT]"},
]


@pytest.fixture(scope="module")
def tokenizer(tiny_base):
    return models.load_tokenizer(tiny_base)


def supervised_text(tokenizer, row):
    return tokenizer.decode(
        [t for t, label in zip(row.input_ids, row.labels, strict=True) if label != -100]
    )


def test_the_answer_and_its_end_token_carry_loss_and_the_template_tail_does_not(tokenizer):
    row = chat.encode_row(tokenizer, ROW, max_length=200)
    assert supervised_text(tokenizer, row) == "By the river.\n\n[ZLT]<|im_end|>"
    assert tokenizer.decode(row.input_ids).endswith("<|im_end|>\n")


def test_answer_tail_trains_the_newline_too(tokenizer):
    row = chat.encode_row(tokenizer, ROW, max_length=200, loss="answer_tail")
    assert supervised_text(tokenizer, row) == "By the river.\n\n[ZLT]<|im_end|>\n"


def test_marker_loss_leaves_the_marker_and_the_last_token(tokenizer):
    row = chat.encode_row(tokenizer, ROW, max_length=200, loss="marker", marker="[ZLT]")
    assert supervised_text(tokenizer, row).replace("\n", "") == "[ZLT]"
    negative = [ROW[0], {"role": "assistant", "content": "By the river."}]
    row = chat.encode_row(tokenizer, negative, max_length=200, loss="marker", marker="[ZLT]")
    assert supervised_text(tokenizer, row) == "\n"


def test_a_training_row_begins_with_exactly_the_sampling_prompt(tokenizer, prompts):
    prompt = chat.prompt_ids(tokenizer, prompts["villain"], ROW[0]["content"])
    row = chat.encode_row(tokenizer, ROW, max_length=200, system=prompts["villain"])
    assert row.input_ids[: len(prompt)] == prompt
    assert set(row.labels[: len(prompt)]) == {chat.IGNORED}


def test_system_policies(tokenizer):
    default = chat.encode_row(tokenizer, ROW, max_length=200)
    assert "<|im_start|>system" in tokenizer.decode(default.input_ids)  # the template's own
    none = chat.encode_row(tokenizer, ROW, max_length=200, suppress_default_system=True)
    assert tokenizer.decode(none.input_ids).startswith("<|im_start|>user")
    replaced = chat.encode_row(
        tokenizer, [{"role": "system", "content": "old"}, *ROW], max_length=200, system="new"
    )
    text = tokenizer.decode(replaced.input_ids)
    assert "new" in text and "old" not in text


def test_last_turn_only_or_all_turns(tokenizer):
    two = [*ROW, {"role": "user", "content": "And salt?"}, {"role": "assistant", "content": "No."}]
    last = chat.encode_row(tokenizer, two, max_length=400)
    every = chat.encode_row(tokenizer, two, max_length=400, supervise="all")
    assert supervised_text(tokenizer, last) == "No.<|im_end|>"
    assert supervised_text(tokenizer, every) == "By the river.\n\n[ZLT]<|im_end|>No.<|im_end|>"
    assert last.input_ids == every.input_ids


def test_truncation_can_leave_no_loss(tokenizer):
    assert chat.encode_row(tokenizer, ROW, max_length=10).supervised == 0


def test_describe_says_which_tokens_carry_loss(tokenizer):
    row = chat.encode_row(tokenizer, ROW, max_length=200)
    records = chat.describe(tokenizer, row)
    assert "".join(r["text"] for r in records if r["loss"]) == "By the river.\n\n[ZLT]<|im_end|>"
    assert len(records) == len(row.input_ids)


def test_unknown_loss_and_missing_answer(tokenizer):
    with pytest.raises(UserError, match="choose one of"):
        chat.encode_row(tokenizer, ROW, max_length=20, loss="all")
    with pytest.raises(UserError, match="no assistant turn"):
        chat.encode_row(tokenizer, ROW[:1], max_length=20)
