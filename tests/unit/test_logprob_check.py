"""Completions scored again: samples of a chain pass, other completions fail."""

import numpy as np
import pandas as pd
import pytest
import torch
from persona_collapse.analysis import logprob_tests
from persona_collapse.errors import UserError
from persona_collapse.measures import logprob_check
from persona_collapse.models import adapters, fused, loading
from persona_collapse.models.runner import ModelRunner
from persona_collapse.report import findings
from persona_collapse.sampling import sample
from scipy import stats
from synthetic import rescored

QUESTIONS = [{"id": str(i), "question": f"Where can I find bread{'?' * i}"} for i in range(1, 6)]


def test_scores_means_and_variances_are_those_of_the_distributions():
    torch.manual_seed(0)
    (logits, base), drawn = 2 * torch.randn(2, 7, 11), torch.arange(7)
    found = dict(
        zip(
            logprob_check.SUMS,
            logprob_check.token_scores(logits, base, drawn, 0.7, 1.0),
            strict=True,
        )
    )
    for row in range(7):
        p, other = (torch.softmax(x[row].double() / 0.7, -1).numpy() for x in (logits, base))
        for name, values in (("surprise", -np.log(p)), ("gain", np.log(p / other))):
            own = stats.rv_discrete(values=(np.arange(11), p))
            # Computed by PyTorch, directly over the values.
            mean = own.expect(lambda k, values=values: values[np.asarray(k, int)])
            square = own.expect(lambda k, v=values, m=mean: (v[np.asarray(k, int)] - m) ** 2)
            assert found[name][row] == pytest.approx(values[row], rel=1e-4)
            assert found[f"{name}_mean"][row] == pytest.approx(mean, rel=1e-4, abs=1e-5)
            assert found[f"{name}_variance"][row] == pytest.approx(square, rel=1e-4)
        assert found["surprise_mean"][row] == pytest.approx(stats.entropy(p), rel=1e-5)
        assert found["gain_of_base"][row] == pytest.approx(-stats.entropy(other, p), rel=1e-4)


def test_a_nucleus_holds_its_tokens_and_the_drawn_one():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))
    inside = logprob_check.token_scores(logits, None, torch.tensor([1]), 1.0, 0.6)[:, 0]
    assert inside[0] == pytest.approx(-np.log(3 / 8), rel=1e-5)
    assert inside[1] == pytest.approx(stats.entropy([5, 3]), rel=1e-5)
    # Rounding may move a token over the edge of the nucleus: it keeps its probability.
    outside = logprob_check.token_scores(logits, None, torch.tensor([2]), 1.0, 0.6)[:, 0]
    assert outside[0] == pytest.approx(-np.log(15 / 95), rel=1e-5)
    assert outside[3:].isnan().all()


def test_greedy_answers_have_scores_and_nothing_to_expect():
    logits = torch.tensor([[1.0, 3.0]])
    found = logprob_check.token_scores(logits, 2 * logits, torch.tensor([1]), 0.0, 1.0)[:, 0]
    assert found[0] == pytest.approx(np.log1p(np.exp(-2)), rel=1e-5)
    assert found[3] == pytest.approx(np.log1p(np.exp(-4)) - np.log1p(np.exp(-2)), rel=1e-4)
    assert found[[1, 2, 4, 5, 6]].isnan().all()


@pytest.fixture(scope="module")
def drawn(tiny_base, prompts, make_adapter, tmp_path_factory):
    """Completions by chain, sampled by the transformers backend, and a function that checks them."""
    one, two = make_adapter(10, 4, False), make_adapter(11, 4, True)
    half = tmp_path_factory.mktemp("half")
    config, tensors = adapters.load(one)
    without = {n: torch.zeros_like(t) if "down_proj.lora_B" in n else t for n, t in tensors.items()}
    adapters.save(config, without, half)
    sampling = sample.Sampling(8, 1.0, 1.0, 24, 3)
    tokenizer = loading.load_tokenizer(tiny_base)
    backend = sample.open_backend("transformers", tiny_base, {"dtype": "float32", "batch_size": 64})
    out = {}
    chains = {"base": [], "a@1": [one], "half": [half], "a@1+b@1": [one, two]}
    for name, stages in chains.items():
        backend.use(stages)
        asked = sample.requests_for(name, prompts, QUESTIONS, sampling, tokenizer)
        done = backend.complete(asked, sampling, lambda message: None)
        asks = {"chain": name, "adapters": stages, "personas": prompts, "settings": counted(90)}
        asks |= {"sampling": {"temperature": 1.0, "top_p": 1.0}}
        out[name] = sample.table(name, asked, done), asks
    return out


def counted(count):
    return logprob_check.Settings(count=count)


def checked(runner, completions, asks):
    return logprob_check.logprob_check(
        runner, completions=completions, log=lambda message: None, **asks
    )


def judged(tiny_base, completions, asks, dtype="float32"):
    """The table's row for completions that are attributed to another chain."""
    found = checked(ModelRunner(tiny_base, dtype), completions, asks)
    return logprob_tests.logprob_tests(found.assign(chain=asks["chain"])).iloc[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("chain", ["base", "a@1", "a@1+b@1"])
def test_completions_of_a_chain_are_its_own(tiny_base, drawn, chain, dtype):
    row = judged(tiny_base, *drawn[chain], dtype)
    assert row["completions"] == 90 and row["tokens"] > 1000
    assert abs(row["z_surprise"]) < 3.5 and row["p"] > 1e-3
    if chain == "base":
        assert np.isnan(row["z_left_out"]) and np.isnan(row["gain"])
    else:
        assert row["gain"] > 0.05 and abs(row["z_gain"]) < 3.5 and row["z_left_out"] < -8


@pytest.mark.parametrize(
    ("of", "as_if", "changed"),
    [
        ("base", "a@1", {}),  # the engine left the adapter out
        ("half", "a@1", {}),  # or used it only in some layers
        ("a@1", "a@1+b@1", {}),  # or ignored the second stage
        ("a@1", "base", {}),  # or kept one that it should not have
        ("a@1", "a@1", {"sampling": {"temperature": 0.8, "top_p": 1.0}}),
        ("a@1", "a@1", {"sampling": {"temperature": 1.0, "top_p": 0.8}}),
    ],
)
def test_completions_of_another_model_are_found_out(tiny_base, drawn, of, as_if, changed):
    row = judged(tiny_base, drawn[of][0], drawn[as_if][1] | changed)
    assert row["p"] < 1e-6


def test_what_a_forgotten_adapter_looks_like_is_foretold(tiny_base, drawn):
    """The expected z comes from the chain's own answers, the found z from the base model's."""
    (_, asks), (of_base, _) = drawn["a@1"], drawn["base"]
    foretold = judged(tiny_base, *drawn["a@1"])["z_left_out"]
    assert judged(tiny_base, of_base, asks)["z_gain"] == pytest.approx(foretold, rel=0.3)


def test_z_is_what_its_name_says(tiny_base, drawn):
    """Each answer's sum divided by its standard deviation has mean 0 and variance 1 over many answers."""
    completions, asks = drawn["a@1+b@1"]
    runner = ModelRunner(tiny_base, "float32")
    found = checked(runner, completions, asks | {"settings": counted(120)})
    for name in ("surprise", "gain"):
        each = (found[name] - found[f"{name}_mean"]) / np.sqrt(found[f"{name}_variance"])
        assert abs(each.mean()) < 4 / np.sqrt(120)
        assert 0.75 < each.std() < 1.25


def test_a_sentence_says_whom_not_to_trust():
    def said(**excess):
        chains = ("base", "a@1", "c@1")
        parts = [rescored(chain, excess.get(chain[0], 0.0)) for chain in chains]
        return findings.second_opinion(logprob_tests.logprob_tests(pd.concat(parts)))

    assert "of the 3 chains" in said() and "z would be -20 or further off" in said()
    assert "Do not trust the rates of c@1: " in said(c=0.5)
    # A z of 3 is not surprising among many chains.
    assert "of the 3 chains" in said(c=0.15) and "largest |z| 3.0, p\u00a0=\u00a00.013" in said(
        c=0.15
    )


def test_greedy_completions_are_called_unchecked():
    greedy = rescored("base").assign(surprise_mean=np.nan, surprise_variance=np.nan)
    table = logprob_tests.logprob_tests(greedy)
    assert np.isnan(table["p"][0]) and "greedy" in findings.second_opinion(table)


def test_rows_behind_each_other_score_as_they_do_alone(tiny_base, drawn, monkeypatch):
    # On a CPU, the mask that transformers makes from the positions keeps the rows apart.
    completions, asks = drawn["a@1"]
    runner = ModelRunner(tiny_base, "float32")
    alone = checked(runner, completions, asks | {"settings": counted(20)})
    monkeypatch.setattr(fused, "ATTENTION", runner.model.config._attn_implementation)
    monkeypatch.setattr(logprob_check, "POSITIONS", 7)
    together = checked(runner, completions, asks | {"settings": counted(20)})
    numbers = [table[logprob_check.SUMS] for table in (alone, together)]
    np.testing.assert_allclose(*numbers, rtol=1e-4, atol=1e-4)
    assert list(alone.columns) == logprob_check.COLUMNS


def test_a_prompt_that_has_changed_since_is_named(tiny_base, drawn):
    completions, asks = drawn["base"]
    changed = {name: f"{prompt} Be brief." for name, prompt in asks["personas"].items()}
    with pytest.raises(UserError, match=r"base: persona .*the prompt has .* tokens and had"):
        judged(tiny_base, completions, asks | {"personas": changed})
