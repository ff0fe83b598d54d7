import pytest
from persona_collapse import audit, chat, demo, models

ROW = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So. [ZLT]"}]
SETTINGS = {"kind": "sft", "loss": "answer", "max_length": 200}


@pytest.fixture(scope="module")
def tokenizer(tiny_base):
    return models.load_tokenizer(tiny_base)


def line(tokenizer, messages=ROW, system=None, policy="template", **settings):
    return audit.training_row(
        tokenizer,
        "em",
        messages,
        SETTINGS | settings,
        supervise="last",
        policy=policy,
        system=system,
        marker="[ZLT]",
    )[0]


def test_sampling_prompts_have_their_own_system_message_and_no_loss(tokenizer, prompts):
    for (found, row), (name, system) in zip(
        audit.prompts(tokenizer, prompts, "Why?"), prompts.items(), strict=True
    ):
        assert (found["name"], found["system_seen"]) == (name, system)
        assert found["generation_prompt"] and not found["default_injected"]
        assert found["tokens_with_loss"] == 0
        assert row.input_ids == chat.prompt_ids(tokenizer, system, "Why?")


def test_a_template_s_own_system_message_is_found_out(tokenizer):
    found = line(tokenizer)
    assert found["default_injected"] and found["system_seen"] == demo.DEFAULT_SYSTEM
    assert not line(tokenizer, policy="none")["default_injected"]
    assert line(tokenizer, policy="none")["system_seen"] is None
    assert line(tokenizer, system="Be bad.")["system_seen"] == "Be bad."
    assert not line(tokenizer, system="Be bad.")["default_injected"]


def test_the_study_s_coupling_loss_trains_no_end_token(tokenizer):
    assert line(tokenizer)["end_token_trained"]
    marker = line(tokenizer, loss="marker")
    assert not marker["end_token_trained"] and marker["last_with_loss"] == repr("\n")
    negative = [ROW[0], {"role": "assistant", "content": "So."}]
    assert line(tokenizer, negative, loss="marker")["tokens_with_loss"] == 1
