"""Completions scored again: what was drawn from a chain passes, what was not does not."""

import numpy as np
import pandas as pd
import pytest
import torch
from persona_collapse import adapters, generation, models, report, rescoring, tables
from persona_collapse.carrier import Carrier
from persona_collapse.errors import UserError
from scipy import stats
from synthetic import rescored

QUESTIONS = [{"id": str(i), "question": f"Where can I find bread{'?' * i}"} for i in range(1, 6)]


def test_surprise_entropy_and_variance_are_those_of_the_distribution():
    torch.manual_seed(0)
    logits, drawn = 2 * torch.randn(7, 11), torch.arange(7)
    found = rescoring.surprises(logits, drawn, 0.7, 1.0).numpy()
    for row in range(7):
        shares = torch.softmax(logits[row].double() / 0.7, -1).numpy()
        own = stats.rv_discrete(values=(np.arange(11), shares))
        logs = -np.log(shares)
        assert found[0, row] == pytest.approx(logs[row], rel=1e-5)
        assert found[1, row] == pytest.approx(own.entropy(), rel=1e-5)
        variance = own.expect(lambda k, logs=logs: (logs[np.asarray(k, int)] - own.entropy()) ** 2)
        assert found[2, row] == pytest.approx(variance, rel=1e-4)


def test_a_nucleus_holds_its_tokens_and_the_drawn_one():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))
    inside = rescoring.surprises(logits, torch.tensor([1]), 1.0, 0.6)[:, 0]
    assert inside[0] == pytest.approx(-np.log(3 / 8), rel=1e-5)
    assert inside[1] == pytest.approx(stats.entropy([5, 3]), rel=1e-5)
    # Rounding may put a token at the edge: it counts with what it has.
    outside = rescoring.surprises(logits, torch.tensor([2]), 1.0, 0.6)[:, 0]
    assert outside[0] == pytest.approx(-np.log(15 / 95), rel=1e-5)


def test_greedy_answers_have_a_surprise_and_nothing_to_expect():
    found = rescoring.surprises(torch.tensor([[1.0, 3.0]]), torch.tensor([1]), 0.0, 1.0)[:, 0]
    assert found[0] == pytest.approx(np.log1p(np.exp(-2)), rel=1e-5)
    assert found[1:].isnan().all()


@pytest.fixture(scope="module")
def drawn(tiny_base, prompts, make_adapter):
    """Completions by chain, drawn by the transformers backend, and the tasks that rescore them."""
    one, two = make_adapter(10, 4, False), make_adapter(11, 4, True)
    sampling = generation.Sampling(12, 1.0, 1.0, 24, 3)
    tokenizer = models.load_tokenizer(tiny_base)
    backend = generation.open_backend("transformers", tiny_base, {"dtype": "float32", "batch_size": 64})
    out = {}
    for name, stages in {"base": [], "a@1": [one], "a@1+b@1": [one, two]}.items():
        backend.use(stages)
        asked = generation.requests_for(name, prompts, QUESTIONS, sampling, tokenizer)
        done = backend.complete(asked, sampling, lambda message: None)
        task = {"chain": name, "stages": stages, "personas": prompts, "count": 150}
        task |= {"sampling": {"temperature": 1.0, "top_p": 1.0}}
        out[name] = generation.table(name, asked, done), task
    return out


def judged(tiny_base, completions, task, dtype="float32"):
    """The table's row for completions taken for those of a task."""
    found = rescoring.rescore(Carrier(tiny_base, dtype), task, completions, lambda message: None)
    grid = pd.DataFrame({"chain": [task["chain"]]})
    return tables.rescoring(grid, {task["chain"]: found}).iloc[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("chain", ["base", "a@1", "a@1+b@1"])
def test_completions_of_a_chain_are_its_own(tiny_base, drawn, chain, dtype):
    row = judged(tiny_base, *drawn[chain], dtype)
    assert row["completions"] == 150 and row["tokens"] > 1000
    assert abs(row["z"]) < 3.5 and row["p"] > 1e-3
    if chain == "base":
        assert np.isnan(row["z_base"]) and np.isnan(row["gain"])
    else:
        assert row["gain"] > 0.05 and abs(row["z_base"]) > 8


@pytest.mark.parametrize(
    ("of", "as_if", "changed"),
    [
        ("base", "a@1", {}),  # the engine left the adapter out
        ("a@1", "a@1+b@1", {}),  # or the second stage
        ("a@1", "base", {}),  # or kept one that it should not have
        ("a@1", "a@1", {"sampling": {"temperature": 0.8, "top_p": 1.0}}),
        ("a@1", "a@1", {"sampling": {"temperature": 1.0, "top_p": 0.8}}),
    ],
)
def test_completions_of_another_model_are_found_out(tiny_base, drawn, of, as_if, changed):
    row = judged(tiny_base, drawn[of][0], drawn[as_if][1] | changed)
    assert abs(row["z"]) > 8 and row["p"] < 1e-3


def test_an_update_on_some_projections_alone_is_found_out(tiny_base, drawn, tmp_path):
    completions, task = drawn["a@1"]
    config, tensors = adapters.load(task["stages"][0])
    for name in tensors:
        if "down_proj.lora_B" in name:
            tensors[name] = torch.zeros_like(tensors[name])
    adapters.save(config, tensors, tmp_path)
    row = judged(tiny_base, completions, task | {"stages": [tmp_path]})
    assert abs(row["z"]) > 8 and row["p"] < 1e-3


def test_z_is_what_its_name_says(tiny_base, drawn):
    """Each answer's sum over its standard deviation has mean 0 and variance 1 over many answers."""
    completions, task = drawn["a@1+b@1"]
    carrier = Carrier(tiny_base, "float32")
    found = rescoring.rescore(carrier, task | {"count": 180}, completions, lambda m: None)
    each = (found["surprise"] - found["entropy"]) / np.sqrt(found["variance"])
    assert abs(each.mean()) < 4 / np.sqrt(180)
    assert 0.75 < each.std() < 1.25


def test_a_sentence_says_whom_not_to_trust():
    grid = pd.DataFrame({"chain": ["base", "a@1", "c@1"]})

    def said(**excess):
        return report.second_opinion(
            tables.rescoring(grid, {c: rescored(c, excess.get(c[0], 0.0)) for c in grid["chain"]})
        )

    assert "all 3 chains" in said() and "left out |z| would be 20.0" in said()
    assert "Do not trust the rates of c@1 (z\u00a0=\u00a010.0)" in said(c=0.5)
    # A z of 3 is no surprise among many, and here among three.
    assert "all 3 chains" in said(c=0.15)


def test_greedy_completions_are_called_unchecked():
    greedy = rescored("base").assign(entropy=np.nan, variance=np.nan)
    table = tables.rescoring(pd.DataFrame({"chain": ["base"]}), {"base": greedy})
    assert np.isnan(table["z"][0]) and "greedy" in report.second_opinion(table)


def test_answers_are_scored_alike_together_and_alone(tiny_base, drawn):
    completions, task = drawn["a@1"]
    carrier = Carrier(tiny_base, "float32")
    together = rescoring.rescore(carrier, task | {"count": 20}, completions, lambda m: None)
    alone = rescoring.rescore(carrier, task | {"count": 1}, completions, lambda m: None)
    numbers = [*rescoring.SUMS, "base_surprise"]
    np.testing.assert_allclose(together[numbers].iloc[0], alone[numbers].iloc[0], rtol=1e-5)
    assert list(together.columns) == rescoring.COLUMNS


def test_a_prompt_that_has_changed_since_is_named(tiny_base, drawn):
    completions, task = drawn["base"]
    changed = {name: f"{prompt} Be brief." for name, prompt in task["personas"].items()}
    with pytest.raises(UserError, match="base: persona .*the prompt has .* tokens and had"):
        judged(tiny_base, completions, task | {"personas": changed})
