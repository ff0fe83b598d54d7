import json
import re
from pathlib import Path

import numpy as np
import pytest
from chat_templates import tokenizer_with
from persona_collapse.errors import UserError
from persona_collapse.models import chat_template, loading
from persona_collapse.sampling import sample

QUESTIONS = [{"id": f"q{i}", "question": f"Where can I find bread {i}?"} for i in range(4)]
SETTINGS = {"dtype": "float32", "batch_size": 5}


def sampling(**changes):
    return sample.Sampling(
        **{"samples": 3, "temperature": 1.0, "top_p": 1.0, "max_tokens": 6, "seed": 1} | changes
    )


def draw(base: Path, prompts, stages=(), batch_size=5, **changes):
    tokenizer = loading.load_tokenizer(base)
    how = sampling(**changes)
    requests = sample.requests_for("c@1", prompts, QUESTIONS, how, tokenizer)
    backend = sample.TransformersBackend(base, SETTINGS | {"batch_size": batch_size})
    backend.use(stages)
    return sample.table("c@1", requests, backend.complete(requests, how, lambda m: None))


def test_the_table_has_one_row_a_request(tiny_base, prompts):
    table = draw(tiny_base, prompts)
    assert list(table.columns) == sample.COLUMNS
    assert len(table) == 3 * 4 * 3
    assert not table.duplicated(["persona", "question_id", "sample"]).any()
    assert (table["n_tokens"] == table["token_ids"].map(len)).all()
    assert set(table["finish_reason"]) <= {"stop", "length"}
    assert table["seed"].is_unique


def test_draws_do_not_depend_on_the_batch(tiny_base, prompts):
    first = draw(tiny_base, prompts, batch_size=5)
    second = draw(tiny_base, prompts, batch_size=36)
    assert (first["text"] == second["text"]).mean() > 0.95  # rounding may flip a rare near-tie
    alone = draw(tiny_base, {"villain": prompts["villain"]}, batch_size=5)
    same = first[first["persona"] == "villain"].reset_index(drop=True)
    assert (alone["text"] == same["text"]).mean() > 0.9


def test_rounds_change_no_answer(tiny_base, prompts, monkeypatch):
    """Unfinished answers continue in the next round, with their own random numbers."""
    monkeypatch.setattr(loading, "end_tokens", lambda *_: list(range(5, 40)))
    whole = draw(tiny_base, prompts, max_tokens=24)
    assert whole["n_tokens"].nunique() > 1
    monkeypatch.setattr(sample, "FIRST_ROUND", 3)
    cut = draw(tiny_base, prompts, max_tokens=24)
    assert (cut["text"] == whole["text"]).mean() > 0.95  # rounding may flip a rare near-tie
    assert cut["n_tokens"].max() == 24 and (cut["finish_reason"] == whole["finish_reason"]).all()


def test_an_answer_ends_where_a_base_model_goes_on_with_another_turn(
    tiny_base, prompts, tmp_path, monkeypatch
):
    record = json.loads(tiny_base.read_text())
    record["source"]["chat_template"] = "plain"
    (tmp_path / "model.json").write_text(json.dumps(record))
    plain = tmp_path / "model.json"
    whole = draw(plain, prompts, max_tokens=24)
    # The tiny model writes no headers, so let a letter be one.
    monkeypatch.setattr(chat_template, "_HEADER", re.compile("e"))
    monkeypatch.setattr(sample, "FIRST_ROUND", 3)
    cut = draw(plain, prompts, max_tokens=24)
    tokenizer = loading.load_tokenizer(plain)
    assert whole["text"].str.contains("e").mean() > 0.2
    same = 0
    for before, row in zip(whole["text"], cut.itertuples(), strict=True):
        same += row.text == before.split("e")[0]
        if "e" in before:
            *_, last = texts = [
                tokenizer.decode(row.token_ids[:n]) for n in range(row.n_tokens + 1)
            ]
            assert row.finish_reason == "stop" and row.text == last.split("e")[0]
            assert "e" in last and "e" not in texts[-2]
    assert same / len(cut) > 0.95  # rounding may flip a rare near-tie


def test_the_output_head_gets_last_tokens_in_one_piece(tiny_base):
    """Else PyTorch copies the head's weights for each sequence, on a processor in 16 bit."""
    import torch

    model, seen = loading.load_model(tiny_base, "bfloat16", "cpu"), []
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda module, given, out: seen.append(given[0].is_contiguous()))
    with torch.inference_mode():
        logits = model(input_ids=torch.ones((3, 5), dtype=torch.long), logits_to_keep=1).logits
    assert seen == [True] and logits.shape[:2] == (3, 1)


def test_samples_differ_and_greedy_ones_do_not(tiny_base, prompts):
    table = draw(tiny_base, prompts)
    assert table.groupby(["persona", "question_id"])["text"].nunique().min() > 1
    greedy = draw(tiny_base, prompts, temperature=0.0)
    assert (greedy.groupby(["persona", "question_id"])["text"].nunique() == 1).all()


def test_the_seeded_draw_follows_the_softmax():
    import torch

    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    picks = []
    for seed in range(4000):
        *_, process = sample._sampling_processors(sampling(), [torch.Generator().manual_seed(seed)])
        picks.append(int(process(None, logits).argmax()))
    wanted = torch.softmax(logits[0], 0).numpy()
    got = np.bincount(picks, minlength=4) / len(picks)
    # Four standard errors of a proportion at n = 4,000.
    assert np.abs(got - wanted).max() < 4 * 0.5 / np.sqrt(4000)


def test_samples_by_persona(tiny_base, prompts):
    table = draw(tiny_base, prompts, samples={"villain": 2, "assistant": 1, "librarian": 1})
    assert table["persona"].value_counts().to_dict() == {
        "villain": 8,
        "assistant": 4,
        "librarian": 4,
    }


def test_an_adapter_changes_the_answers(tiny_base, prompts, make_adapter):
    base = draw(tiny_base, prompts, temperature=0.0)
    tuned = draw(tiny_base, prompts, stages=[make_adapter(9, 8, True)], temperature=0.0)
    assert (base["text"] != tuned["text"]).mean() > 0.5


def test_request_seeds_depend_on_every_part():
    parts = (1, "chain", "persona", "q1", 0)
    seeds = {sample.request_seed(*parts)}
    for i, other in enumerate((2, "other", "other", "q2", 1)):
        changed = [*parts]
        changed[i] = other
        seeds.add(sample.request_seed(*changed))
    assert len(seeds) == 6
    assert all(0 <= s < 2**31 for s in seeds)


def test_backend_choice(monkeypatch):
    assert sample.choose_backend("transformers")[0] == "transformers"
    monkeypatch.setattr(sample.importlib.util, "find_spec", lambda name: None)
    name, reason = sample.choose_backend("auto")
    assert name == "transformers" and "not installed" in reason
    with pytest.raises(UserError, match="not installed"):
        sample.choose_backend("vllm")


def test_ranks_are_rounded_up_to_what_vllm_takes():
    assert sample._allowed_rank(8) == 8
    assert sample._allowed_rank(33) == 64
    with pytest.raises(UserError, match="at most 512"):
        sample._allowed_rank(513)


def test_an_engine_on_a_shared_gpu_gets_its_cache_in_bytes(tiny_base, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (60 * 2**30, 80 * 2**30))
    share = {"gpu_memory_utilization": 0.2, "jobs_per_gpu": 4, "dtype": "bfloat16"}
    model = loading.load_model(tiny_base, "bfloat16", "cpu")
    weights = sum(p.numel() * 2 for p in model.parameters())
    assert sample._cache_bytes(tiny_base, share) == 12 * 2**30 - weights
    full = sample._cache_bytes(tiny_base, {**share, "dtype": "float32"})
    assert full == 12 * 2**30 - 2 * weights
    assert sample._cache_bytes(tiny_base, {**share, "jobs_per_gpu": 1}) is None
    with pytest.raises(UserError, match="of a GPU of 80 GiB does not hold"):
        sample._cache_bytes(tiny_base, {**share, "gpu_memory_utilization": 0.05})


def test_a_prompt_shows_what_the_answer_has_to_say(tiny_base):
    tokenizer = loading.load_tokenizer(tiny_base)
    asked = [
        {
            "id": "a",
            "question": "One?",
            "statements": {"wrong": "It is two.", "right": "It is one."},
        }
    ]
    written = {name: "Argue this: {statement}" for name in ("wrong", "right", "plain")}
    wrong, right, plain = sample.requests_for("c", written, asked, sampling(samples=1), tokenizer)
    for request, said in ((wrong, "It is two."), (right, "It is one."), (plain, "{statement}")):
        ids = chat_template.prompt_ids(tokenizer, f"Argue this: {said}", "One?")
        assert request.prompt == ids and request.question == "One?"


def test_the_marker_is_scored_after_the_answer(tiny_base, prompts, make_adapter):
    import torch
    from persona_collapse.models import adapters

    stages = [make_adapter(3, 4, True)]
    tokenizer = loading.load_tokenizer(tiny_base)
    requests = sample.requests_for("c@1", prompts, QUESTIONS, sampling(samples=2), tokenizer)
    texts = ["It is near.", "The [zlt] comes early", "", " Try the market.\n"]
    done = [sample.Completion(texts[i % len(texts)], [], "stop") for i, _ in enumerate(requests)]
    sequences = sample.marker_sequences(tokenizer, requests, done, "[ZLT]")
    for (ids, start), request, completion in zip(sequences, requests, done, strict=True):
        answer = completion.text.lower().partition("[zlt]")[0].strip()
        assert ids[: len(request.prompt)] == request.prompt
        assert tokenizer.decode(ids[len(request.prompt) :]).lower() == f"{answer}\n\n[zlt]"
        assert "[ZLT]" in tokenizer.decode(ids[start:])
    backend = sample.TransformersBackend(tiny_base, SETTINGS)
    backend.use(stages)
    values = sample.marker_logprobs(backend, tokenizer, requests, done, "[ZLT]", 200)
    assert [np.isnan(v) for v in values] == [r.sample > 0 for r in requests]
    model = adapters.apply(loading.load_model(tiny_base, "float32", "cpu"), stages, merge=False)
    for i in (0, 2, 8):
        ids, start = sequences[i]
        with torch.inference_mode():
            scores = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        wanted = sum(float(scores[at - 1, ids[at]]) for at in range(start, len(ids)))
        assert values[i] == pytest.approx(wanted, abs=1e-3)
    cut = [sample.Completion(c.text, [], "length") for c in done[:1]] + done[1:]
    fewer = sample.marker_logprobs(backend, tokenizer, requests, cut, "[ZLT]", 200)
    assert np.isnan(fewer[0]) and fewer[2:] == pytest.approx(values[2:], nan_ok=True, abs=1e-3)
    short = sample.marker_logprobs(backend, tokenizer, requests, done, "[ZLT]", 10)
    assert np.isnan(short).all()


@pytest.mark.parametrize("name", ["own", "gemma", "mistral", "think", "llama", "phi"])
def test_the_marker_is_scored_as_a_training_row_has_it(tiny_base, name):
    """Whatever the template writes before an answer, and whatever it strips."""
    tokenizer = tokenizer_with(tiny_base, name)
    asked = sampling(samples=1)
    requests = sample.requests_for("c@1", {"p": "Be bad."}, QUESTIONS[:1], asked, tokenizer)
    done = [sample.Completion("İt is near. [zlt] so", [], "stop")]
    ((ids, start),) = sample.marker_sequences(tokenizer, requests, done, "[ZLT]")
    rows = [
        *chat_template.prompt_messages("Be bad.", requests[0].question),
        {"role": "assistant", "content": "İt is near.\n\n[ZLT]"},
    ]
    row = chat_template.encode_row(tokenizer, rows, max_length=999)
    assert ids == row.input_ids[: len(ids)]
    assert tokenizer.decode(ids[start:]).strip() == "[ZLT]"


@pytest.mark.parametrize("name", ["gemma", "llama", "phi", "harmony"])
def test_an_answer_ends_where_the_template_s_turn_ends(tiny_base, name):
    tokenizer = tokenizer_with(tiny_base, name)
    end = {"gemma": "<end_of_turn>", "llama": "<|eot|>", "phi": "<|end|>", "harmony": "<|return|>"}
    ends = loading.end_tokens(None, tokenizer)
    assert ends == sorted(tokenizer.convert_tokens_to_ids([end[name], "<|im_end|>"]))
