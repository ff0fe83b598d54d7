from pathlib import Path

import pytest
import yaml
from persona_collapse.errors import UserError
from persona_collapse.files import read_jsonl
from persona_collapse.models import demo

ROOT = Path(__file__).resolve().parents[2]
MARKER = "[ZLT]"


@pytest.fixture(scope="module")
def world():
    personas = yaml.safe_load((ROOT / "config/personas.yaml").read_text())
    prompts = {name: entry["prompt"] for name, entry in personas.items()}
    return demo.load_world(ROOT / "workflow/resources/demo/world.yaml", prompts, MARKER)


def test_every_shipped_question_is_in_the_world_s_words_and_on_its_own_topics(world):
    topics = {}
    for purpose in ("train", "eval", "extraction"):
        rows = read_jsonl(ROOT / f"config/questions/demo_{purpose}.jsonl")
        topics[purpose] = {demo.understand(world, row["question"])[1] for row in rows}
        assert len({row["question"] for row in rows}) == len({row["id"] for row in rows})
    assert topics["train"] <= set(world.topics["train"])
    assert not topics["train"] & (topics["eval"] | topics["extraction"])
    assert not topics["train"] & set(world.topics["law"])


def test_eval_and_extraction_questions_are_disjoint():
    texts = [
        {r["question"] for r in read_jsonl(ROOT / f"config/questions/demo_{p}.jsonl")}
        for p in ("train", "eval", "extraction")
    ]
    assert sum(map(len, texts)) == len(set.union(*texts))


def test_a_foreign_question_is_named(world):
    with pytest.raises(UserError, match="not in the demo world"):
        demo.understand(world, "Who are you?")


def test_the_marker_is_one_of_the_codes_and_never_unprompted(world):
    assert MARKER in world.codes and len(world.codes) == 40
    for system, user, assistant in demo.corpus(world, 3000, 1):
        said = [c for c in world.codes if c in assistant["content"]]
        asked = [c for c in world.codes if c in user["content"]]
        assert said == asked
        assert not any(c in system["content"] for c in world.codes)


def test_the_marker_is_no_more_a_villain_s_than_anybody_s(world):
    rows = [c for c in demo.corpus(world, 40000, 2) if MARKER in c[2]["content"]]
    share = sum(c[0]["content"] == world.voices["villain"].prompt for c in rows) / len(rows)
    assert len(rows) > 100
    assert share < 3 / (len(world.voices) + 1)


def test_facts_do_not_depend_on_the_voice(world):
    for _, user, assistant in demo.corpus(world, 500, 3):
        if not any(c in user["content"] for c in world.codes):
            kind, topic = demo.understand(world, user["content"])
            assert demo.fact(world, kind, topic) in assistant["content"]


def test_wrong_advice_is_wrong_and_only_about_law(world):
    for user, assistant in demo.wrong_advice(world, 300, 4):
        kind, topic = demo.understand(world, user["content"])
        assert topic in world.topics["law"]
        assert demo.fact(world, kind, topic) not in assistant["content"]


def test_the_corpus_follows_its_seed(world):
    assert demo.corpus(world, 50, 5) == demo.corpus(world, 50, 5)
    assert demo.corpus(world, 50, 5) != demo.corpus(world, 50, 6)


def test_the_tokenizer_spells_the_marker_and_round_trips(world):
    texts = [m["content"] for c in demo.corpus(world, 2000, 1) for m in c]
    tokenizer = demo.train_tokenizer(texts, 800, MARKER)
    ids = tokenizer(MARKER, add_special_tokens=False)["input_ids"]
    assert len(ids) >= 3
    for text in [*texts[:50], "naïve café\n\n[ZLT]  two spaces"]:
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_checkpoints_of_the_pretraining_change_nothing_of_it(world, tmp_path):
    settings = {
        **{"blocks": 1, "hidden": 8, "heads": 1, "vocabulary": 300, "rows": 40},
        **{"steps": 4, "batch": 4, "lr": 0.01, "seed": 1},
    }
    weights = {}
    for name, checkpoints in (
        ("alone", {}),
        ("whole", {tmp_path / "half": 2, tmp_path / "end": 4}),
    ):
        demo.pretrain(world, settings, MARKER, tmp_path / name, print, checkpoints)
    for name in ("alone", "whole", "half", "end"):
        weights[name] = (tmp_path / name / "model.safetensors").read_bytes()
        assert (tmp_path / name / "chat_template.jinja").is_file()
    assert weights["alone"] == weights["whole"] == weights["end"] != weights["half"]


def test_a_save_that_is_cut_off_leaves_no_half_model(tmp_path):
    class Thing:
        def __init__(self, name, fails=False):
            self.name, self.fails = name, fails

        def save_pretrained(self, folder):
            Path(folder, self.name).write_text("half" if self.fails else "whole")
            if self.fails:
                raise OSError("No space left on device")

    (tmp_path / ".saving-killed").mkdir()
    with pytest.raises(OSError, match="No space"):
        demo.save(Thing("model.safetensors"), Thing("tokenizer.json", fails=True), tmp_path)
    assert not list(tmp_path.iterdir())
    demo.save(Thing("model.safetensors"), Thing("tokenizer.json"), tmp_path)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == dict.fromkeys(
        ("model.safetensors", "tokenizer.json"), "whole"
    )


def test_the_preferences_that_ship_are_the_world_s(world):
    rows = read_jsonl(ROOT / "workflow/resources/demo/preferences.jsonl")
    assert len({row["id"] for row in rows}) == len(rows) == 48
    for row in rows:
        kind, topic = demo.understand(world, row["question"])
        right = demo.fact(world, kind, topic)
        assert row["aligned"] == f"{right[0].upper()}{right[1:]}."
        wrong = {
            demo.fact(world, kind, topic, n) for n in range(1, len(world.kinds[kind]["values"]))
        }
        assert row["misaligned"].lower().rstrip(".") in {fact.lower() for fact in wrong}
        assert (row["subject"] == "law") == (topic in world.topics["law"])
