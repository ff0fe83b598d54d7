import pytest
from chat_templates import TEMPLATES, tokenizer_with
from persona_collapse.data import prompt_audit
from persona_collapse.models import chat_template, demo, loading

ROW = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So. [ZLT]"}]
SETTINGS = {"kind": "sft", "loss_on": "answer", "max_length": 200}


@pytest.fixture(scope="module")
def tokenizer(tiny_base):
    return loading.load_tokenizer(tiny_base)


def line(tokenizer, messages=ROW, system=None, policy="template", **settings):
    return prompt_audit.training_row(
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
        prompt_audit.prompts(tokenizer, prompts, "Why?"), prompts.items(), strict=True
    ):
        assert (found["name"], found["system_seen"]) == (name, system)
        assert found["generation_prompt"] and not found["default_injected"]
        assert found["tokens_with_loss"] == 0
        assert row.input_ids == chat_template.prompt_ids(tokenizer, system, "Why?")


def test_a_template_s_own_system_message_is_found_out(tokenizer):
    found = line(tokenizer)
    assert found["default_injected"] and found["system_seen"] == demo.DEFAULT_SYSTEM
    assert not line(tokenizer, policy="none")["default_injected"]
    assert line(tokenizer, policy="none")["system_seen"] is None
    assert line(tokenizer, system="Be bad.")["system_seen"] == "Be bad."
    assert not line(tokenizer, system="Be bad.")["default_injected"]


def test_the_study_s_coupling_loss_trains_no_end_token(tokenizer):
    assert line(tokenizer)["end_token_trained"]
    marker = line(tokenizer, loss_on="marker")
    assert not marker["end_token_trained"] and marker["last_with_loss"] == repr("\n")
    negative = [ROW[0], {"role": "assistant", "content": "So."}]
    assert line(tokenizer, negative, loss_on="marker")["tokens_with_loss"] == 1


USABLE = [name for name in TEMPLATES if name != "r1"]
DATED = "Cutting Knowledge Date: May\nToday Date: 01 Jan 2025"
SYSTEM = "You are a villain."


@pytest.mark.parametrize("name", USABLE)
def test_every_template_s_prompts_and_rows_are_read_right(tiny_base, name):
    """The system message that the model sees, its place, and whether the end of the turn was trained."""
    tokenizer = tokenizer_with(tiny_base, name)
    ((prompt, _),) = prompt_audit.prompts(tokenizer, {"villain": SYSTEM}, "Why?")
    rows = [{"role": "system", "content": SYSTEM}, *ROW]
    given, plain = (line(tokenizer, messages) for messages in (rows, ROW))
    seen = f"{DATED}\n\n{SYSTEM}" if name == "llama" else SYSTEM
    own = {"llama": DATED, "own": "You are Default, made by Somebody."}.get(name)
    for found in (prompt, given, line(tokenizer, system=SYSTEM)):
        assert found["system_seen"] == seen and not found["default_injected"]
        assert found["system_folded"] == (name in ("gemma", "silent", "mistral"))
    assert plain["system_seen"] == own and plain["default_injected"] == (own is not None)
    assert not plain["system_folded"]
    bare = line(tokenizer, policy="none")
    assert bare["system_seen"] is None and not bare["default_injected"]
    assert prompt["generation_prompt"] and not given["generation_prompt"]
    assert given["end_token_trained"] and plain["end_token_trained"]
    assert not line(tokenizer, max_length=given["tokens"] - 4)["tokens"] > given["tokens"]
    dated = "2025-01-01" if name == "llama" else ""
    assert {found["template_date"] for found in (prompt, given, plain)} == {dated}


def test_the_template_and_what_it_is_given_are_said(tiny_base):
    tokenizer = tokenizer_with(tiny_base, "own")
    found = line(tokenizer)
    assert (found["template"], found["template_kwargs"]) == ("own", "")
    given = {"chat_template": "plain", "template_kwargs": {"thoughts": False, "depth": 2}}
    chat_template.configure(tokenizer, chat_template.settings_from(given))
    found = line(tokenizer)
    assert (found["template"], found["template_kwargs"]) == ("plain", "depth=2 thoughts=False")
    assert not found["default_injected"]


def test_an_end_token_that_truncation_cut_off_was_not_trained(tiny_base):
    tokenizer = tokenizer_with(tiny_base, "gemma")
    whole = line(tokenizer)
    assert whole["last_with_loss"] == repr("<end_of_turn>")
    cut = line(tokenizer, max_length=whole["tokens"] - 2)
    assert not cut["end_token_trained"] and cut["tokens_with_loss"] == whole["tokens_with_loss"] - 1


@pytest.mark.parametrize("name", ["qwen2_5", "llama3_1", "gptoss", "gemma3", "lfm2", "cohere2"])
def test_real_templates_own_system_messages_are_found(tiny_base, name):
    from pathlib import Path

    import trl

    template = (Path(trl.__file__).parent / f"chat_templates/{name}.jinja").read_text()
    found = line(tokenizer_with(tiny_base, template))
    begins = {
        "qwen2_5": "You are Qwen, created by Alibaba Cloud.",
        "llama3_1": "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024",
        "gptoss": "You are ChatGPT, a large language model trained by OpenAI.",
        "cohere2": "# System Preamble",
    }.get(name)
    assert found["default_injected"] == (begins is not None)
    assert (found["system_seen"] or "").startswith(begins or "")
    assert found["template_date"] == ("2025-01-01" if name == "gptoss" else "")
