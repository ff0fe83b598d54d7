"""The vLLM backend against transformers, on the CPU build of vLLM.

It runs in an environment of its own (`make engine`): vLLM's CPU build pins other packages.
"""

import importlib.util
import re
from dataclasses import replace

import pytest
import torch

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None,
        reason="vllm is not installed here; `make engine` runs this in an environment that has it",
    ),
]

QUESTIONS = [{"id": f"q{i}", "question": f"Where can I find bread {i}?"} for i in range(3)]
PROJECTIONS = ["q_proj", "v_proj", "up_proj", "down_proj"]
SETTINGS = {
    "dtype": "float32",
    "batch_size": 8,
    "max_model_len": 256,
    "gpu_memory_utilization": 0.5,
}


PARTS = ["rank-stabilised", "plain", "concatenated"]


@pytest.fixture(scope="module")
def stages(make_adapter):
    return [make_adapter(21, 4, True), make_adapter(22, 8, False, targets=("q_proj", "up_proj"))]


@pytest.fixture(scope="module")
def engines(tiny_base, stages):
    from persona_collapse.sampling import sample

    backends = {
        name: sample.open_backend(name, tiny_base, SETTINGS, 12, PROJECTIONS)
        for name in ("transformers", "vllm")
    }
    for backend in backends.values():
        backend.use(stages)
    return backends


def requests(tiny_base, prompts, how):
    from persona_collapse.models import loading
    from persona_collapse.sampling import sample

    tokenizer = loading.load_tokenizer(tiny_base)
    return sample.requests_for("c@1", prompts, QUESTIONS, how, tokenizer)


def test_greedy_answers_of_a_two_stage_chain_agree(engines, tiny_base, prompts):
    from persona_collapse.sampling import sample

    how = sample.Sampling(1, 0.0, 1.0, 12, 0)
    asked = requests(tiny_base, prompts, how)
    ours, vllm = (engines[n].complete(asked, how, lambda m: None) for n in engines)
    assert [c.token_ids for c in ours] == [c.token_ids for c in vllm]
    assert [c.finish_reason for c in ours] == [c.finish_reason for c in vllm]
    assert [c.text for c in ours] == [c.text for c in vllm]


def test_both_end_an_answer_before_another_turn(engines, tiny_base, prompts, monkeypatch):
    """Under the plain template; the tiny model writes no headers, so a letter is one here."""
    from persona_collapse.models import chat_template
    from persona_collapse.sampling import sample

    how = sample.Sampling(1, 0.0, 1.0, 24, 0)
    asked = requests(tiny_base, prompts, how)
    whole = engines["vllm"].complete(asked, how, lambda m: None)
    monkeypatch.setattr(chat_template, "_HEADER", re.compile("e"))
    monkeypatch.setattr(chat_template, "stops", lambda tokenizer: ["e"])
    plain = chat_template.Settings(chat_template="plain")
    for engine in engines.values():
        monkeypatch.setattr(engine.tokenizer, "_chat_settings", plain)
    ours, vllm = (engines[n].complete(asked, how, lambda m: None) for n in engines)
    assert ours == vllm
    assert [c.text for c in vllm] == [c.text.split("e")[0] for c in whole]
    assert sum(len(c.token_ids) for c in vllm) < sum(len(c.token_ids) for c in whole)


@pytest.mark.parametrize("part", [slice(0, 1), slice(1, 2), slice(0, 2)], ids=PARTS)
def test_log_probabilities_equal_the_chain_s(engines, tiny_base, stages, prompts, part):
    from persona_collapse.models import adapters, loading
    from persona_collapse.sampling import sample
    from vllm import SamplingParams

    stages = stages[part]
    engines["vllm"].use(stages)
    model = adapters.apply(loading.load_model(tiny_base, "float32", "cpu"), stages, merge=False)
    asked = requests(tiny_base, prompts, sample.Sampling(1, 0.0, 1.0, 1, 0))
    engine = engines["vllm"]
    outputs = engine.engine.generate(
        [{"prompt_token_ids": r.prompt} for r in asked],
        SamplingParams(temperature=0, max_tokens=1, logprobs=5),
        lora_request=engine.lora,
        use_tqdm=False,
    )
    for request, output in zip(asked, outputs, strict=True):
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([request.prompt])).logits[0, -1]
        wanted = torch.log_softmax(logits.float(), 0)
        for token, got in output.outputs[0].logprobs[0].items():
            assert got.logprob == pytest.approx(float(wanted[token]), abs=2e-3)


def test_samples_follow_their_own_seed(engines, tiny_base, prompts):
    from persona_collapse.sampling import sample

    how = sample.Sampling(4, 1.0, 1.0, 8, 5)
    asked = requests(tiny_base, prompts, how)
    first = engines["vllm"].complete(asked, how, lambda m: None)
    again = engines["vllm"].complete(asked, how, lambda m: None)
    assert [c.token_ids for c in first] == [c.token_ids for c in again]
    table = sample.table("c@1", asked, first)
    assert table.groupby(["persona", "question_id"])["text"].nunique().min() > 1


@pytest.fixture(scope="module")
def small_cache(tiny_base):
    """An engine that holds few tokens. It lives as long as the others, whose process group ends with it."""
    import vllm
    from persona_collapse.sampling import sample

    small = {"num_gpu_blocks_override": 12, "disable_log_stats": False, "max_num_seqs": 64}
    made = vllm.LLM
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vllm, "LLM", lambda **options: made(**options, **small))
        return sample.open_backend("vllm", tiny_base, SETTINGS, 12, PROJECTIONS)


def test_no_answer_is_interrupted_where_the_cache_is_small(
    small_cache, tiny_base, prompts, monkeypatch
):
    from persona_collapse.sampling import sample

    how = sample.Sampling(8, 1.0, 1.0, 150, 5)
    asked = requests(tiny_base, prompts, how)

    def interrupted():
        small_cache.complete(asked, how, lambda m: None)
        metrics = small_cache.engine.get_metrics()
        return sum(m.value for m in metrics if m.name == "vllm:num_preemptions")

    assert interrupted() == 0
    # Without the limit there are interruptions.
    monkeypatch.setattr(small_cache, "_fit", lambda longest: None)
    scheduler = small_cache.engine.llm_engine.engine_core.engine_core.scheduler
    for name in ("max_num_running_reqs", "max_num_active_reqs"):
        setattr(scheduler, name, 64)
    assert interrupted() > 0


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.9)])
def test_samples_are_drawn_from_their_chain(
    engines, tiny_base, stages, prompts, temperature, top_p
):
    """Scored again by PEFT, the engine's samples fit the chain and no other chain."""
    from persona_collapse.analysis import logprob_tests
    from persona_collapse.measures import logprob_check
    from persona_collapse.models.runner import ModelRunner
    from persona_collapse.sampling import sample

    how = sample.Sampling(10, temperature, top_p, 24, 5)
    asked = requests(tiny_base, prompts, how)
    engines["vllm"].use(stages)
    drawn = sample.table("c@1", asked, engines["vllm"].complete(asked, how, lambda m: None))
    asks = {"chain": "c@1", "personas": prompts, "settings": logprob_check.Settings(count=90)}
    asks |= {"sampling": {"temperature": temperature, "top_p": top_p}, "completions": drawn}
    runner = ModelRunner(tiny_base, "float32")
    own, other = (
        logprob_tests.distances(
            logprob_check.logprob_check(runner, adapters=chain, log=lambda m: None, **asks)
        )
        for chain in (stages, stages[:1])
    )
    assert max(abs(own["z_surprise"]), abs(own["z_gain"])) < 4 and own["z_left_out"] < -8
    assert max(abs(other["z_surprise"]), abs(other["z_gain"])) > 6


def test_both_engines_score_the_marker_alike(engines, tiny_base, prompts):
    from persona_collapse.models import loading
    from persona_collapse.sampling import sample

    tokenizer = loading.load_tokenizer(tiny_base)
    asked = requests(tiny_base, prompts, sample.Sampling(1, 0.0, 1.0, 12, 0))
    done = engines["transformers"].complete(
        asked, sample.Sampling(1, 0.0, 1.0, 12, 0), lambda m: None
    )
    done = [replace(completion, finish_reason="stop") for completion in done]
    ours, vllm = (
        sample.marker_logprobs(engines[n], tokenizer, asked, done, "[ZLT]", 250) for n in engines
    )
    assert ours == pytest.approx(vllm, abs=2e-2)  # equal numbers: NaN would fail


def test_one_engine_serves_the_base_and_other_chains_in_turn(engines, tiny_base, stages, prompts):
    from persona_collapse.sampling import sample

    how = sample.Sampling(1, 0.0, 1.0, 8, 0)
    asked = requests(tiny_base, prompts, how)
    texts = {}
    for name, chain in (("both", stages), ("base", []), ("first", stages[:1]), ("again", stages)):
        for engine in engines.values():
            engine.use(chain)
        ours, vllm = (
            [c.token_ids for c in engines[n].complete(asked, how, lambda m: None)] for n in engines
        )
        assert ours == vllm
        texts[name] = vllm
    assert texts["both"] == texts["again"]
    assert texts["base"] != texts["both"] != texts["first"]


@pytest.fixture
def shift(tmp_path):
    """Factory of shifts: one random direction per persona at two blocks."""
    import numpy as np
    from persona_collapse.models import shifts

    def made(scale, positions="all", does="add"):
        folder = tmp_path / f"{does}-{positions}-{scale}"
        folder.mkdir()
        drawn = np.random.default_rng(0).normal(size=(2, 4, 64)) * 2
        if does != "add":
            drawn /= np.linalg.norm(drawn, axis=-1, keepdims=True)
        rows = ["villain", "assistant", "librarian", ""]
        config = {"does": does, "scale": scale, "positions": positions, "rows": rows}
        levels = dict.fromkeys((0, 1), np.full(4, 0.5))
        shifts.save(folder, config, dict(enumerate(drawn)), levels)
        return folder

    return made


@pytest.fixture(scope="module")
def shifting(tiny_base):
    """Both backends, vLLM's in an engine that serves shifts."""
    from persona_collapse.sampling import sample

    return {
        name: sample.open_backend(name, tiny_base, SETTINGS, 12, PROJECTIONS, True)
        for name in ("transformers", "vllm")
    }


@pytest.mark.parametrize(
    ("scale", "positions", "does"),
    [
        (1.0, "all", "add"),
        (-1.5, "prompt", "add"),
        (1.5, "answer", "add"),
        (1.0, "answer", "remove"),
        (1.0, "all", "cap"),
    ],
)
def test_shifted_chains_agree(shifting, stages, shift, tiny_base, prompts, scale, positions, does):
    """Exact greedy answers, and their log-probabilities, of a chain with adapters and a shift."""
    from persona_collapse.sampling import sample

    how = sample.Sampling(1, 0.0, 1.0, 12, 0)
    asked = requests(tiny_base, prompts, how)
    found, folder = {}, shift(scale, positions, does)
    for name, engine in shifting.items():
        engine.use(stages)
        plain = engine.complete(asked, how, lambda m: None)
        engine.use([*stages, folder])
        done = engine.complete(asked, how, lambda m: None)
        assert [c.token_ids for c in done] != [c.token_ids for c in plain]
        both = zip(asked, done, strict=True)
        sequences = [([*r.prompt, *c.token_ids], len(r.prompt)) for r, c in both]
        found[name] = [c.token_ids for c in done], engine.logprobs(asked, sequences)
    assert found["vllm"][0] == found["transformers"][0]
    assert found["vllm"][1] == pytest.approx(found["transformers"][1], abs=2e-3)


def test_a_shift_of_strength_0_is_none_to_the_token(shifting, stages, shift, tiny_base, prompts):
    from persona_collapse.sampling import sample

    how = sample.Sampling(3, 1.0, 1.0, 12, 0)
    asked, engine = requests(tiny_base, prompts, how), shifting["vllm"]
    answers = []
    for folders in (stages, [*stages, shift(0.0)], stages):
        engine.use(folders)
        answers.append([c.token_ids for c in engine.complete(asked, how, lambda m: None)])
    assert answers[0] == answers[1] == answers[2]


def test_an_engine_of_changed_weights_has_the_chain_s_log_probabilities(
    engines, tiny_base, stages, prompts, tmp_path
):
    """A stage that trained all weights, before and after a stage with an adapter; the last needs a new
    engine."""
    from persona_collapse import adapter_files
    from persona_collapse.models import adapters, loading
    from persona_collapse.sampling import sample

    generator = torch.Generator().manual_seed(3)
    changes = {
        name: 0.05 * torch.randn(weight.shape, generator=generator)
        for name, weight in loading.load_model(tiny_base, "float32", "cpu").named_parameters()
    }
    adapters.save({"peft_type": adapter_files.ALL_WEIGHTS}, changes, tmp_path / "whole")
    chain = [stages[0], tmp_path / "whole", stages[1]]
    asked = requests(tiny_base, prompts, sample.Sampling(1, 0.0, 1.0, 12, 0))
    given = [([*request.prompt, 5, 9, 13], len(request.prompt)) for request in asked]
    engines["transformers"].use(chain)
    expected = engines["transformers"].logprobs(asked, given)
    engines["transformers"].use(stages)
    without = engines["transformers"].logprobs(asked, given)
    changed = sample.open_backend(
        "vllm", tiny_base, SETTINGS, 12, PROJECTIONS, all_weights=[tmp_path / "whole"]
    )
    changed.use(chain)
    assert changed.logprobs(asked, given) == pytest.approx(expected, abs=2e-3)
    assert expected != pytest.approx(without, abs=0.1)
