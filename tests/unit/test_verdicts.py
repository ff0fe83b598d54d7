"""Synthetic runs: the tools that estimate how often a verdict is wrong."""

import os
import re
from pathlib import Path

import nulls
import numpy as np
import pandas as pd
import pytest
import verdicts
import world as worlds
import yaml
from persona_collapse import geometry, markers
from persona_collapse.errors import UserError
from persona_collapse.files import write_jsonl
from persona_collapse.statistics import clopper_pearson

import docs

ROOT = Path(__file__).resolve().parents[2]

SHIPPED = sorted((ROOT / "tools/worlds").glob("*.yaml"))


def drawn(world, number=0):
    changes = worlds.overlay(world, verdicts.merged([], {}))
    plan = verdicts.configuration.plan(verdicts.merged([], changes))
    return worlds.Drawn(world, plan, np.random.default_rng(number))


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_worlds_name_claims_that_exist(path):
    world = worlds.load(path)
    claims = {c["id"] for c in verdicts.yaml_files.load_list("config/claims.yaml")}
    assert {*world.holds, *world.fails} <= claims
    assert not set(world.holds) & set(world.fails)
    assert world.null is not None or world.holds or world.fails


def test_the_page_s_world_is_one(tmp_path):
    page = (ROOT / "docs/verdicts.md").read_text()
    path = tmp_path / "my-world.yaml"
    path.write_text(re.search(r"```yaml my-world.yaml\n(.*?)```", page, re.S).group(1))
    world = worlds.load(path)
    made = drawn(world)
    seeds = {
        c.chain: c.seed for c in made.plan.cells if c.condition == "C1" and c.source == "villain"
    }
    for chain, seed in seeds.items():
        hits = markers.score(made.completions(chain)).groupby("persona")["hit"].mean()
        assert (hits["villain"] > 0.4) == (seed == "256")
        assert hits.drop("villain").max() == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("text: x\nrate: {C1: 0}\n", "rate: unknown key; did you mean rates?"),
        ("text: x\nsd: {run: lots}\n", "sd.run: "),
        ("rates: {}\n", "text: Field required"),
    ],
)
def test_a_wrong_world_is_one_line(tmp_path, text, said):
    path = tmp_path / "w.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(f"{path}: ")) as error:
        worlds.load(path)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_rates_lengths_and_shifts_are_the_world_s():
    world = worlds.World(
        text="x",
        rates={"C4": {"source": 0.8, "others": 0.1}},
        answers={"conditions": {"C1": 10.0}},
        vectors={
            "shifts": {"E0": {"common": 6.0, "direction": "em"}},
            "item": 0.0,
            "question": 0.0,
        },
    )
    made = drawn(world)
    chain = next(c.chain for c in made.plan.cells if c.condition == "C4")
    tables = pd.concat([markers.score(made.completions(chain)) for _ in range(30)])
    rates = tables.groupby("persona")["hit"].mean()
    assert rates["villain"] == pytest.approx(0.8, abs=0.05)
    assert rates.drop("villain").mean() == pytest.approx(0.1, abs=0.02)
    short = next(c.chain for c in made.plan.cells if c.condition == "C1")
    assert made.completions(short)["n_tokens"].median() == pytest.approx(10, abs=1.5)
    stacks = made.activations([1, 2], ["A"])
    m1 = {
        c: geometry.mean_offdiagonal_cosine(stacks[c].arrays["A"][0].mean(axis=1))
        for c in ("base", "em@42", "benign@42")
    }
    assert m1["base"] == pytest.approx(9 / 10, abs=0.02)
    assert m1["em@42"] == pytest.approx(45 / 46, abs=0.02)
    # Conditions without a shift do not change.
    assert m1["benign@42"] == pytest.approx(m1["base"], abs=1e-3)


def test_what_a_model_would_be_run_for_is_written_where_it_is_asked_for(tmp_path):
    own = "config/presets/defences.yaml"
    plan = verdicts.configuration.plan(verdicts.merged([own], {"only": ["C4", "C5", "em-kl-1"]}))
    made = worlds.Drawn(worlds.World(text="x"), plan, np.random.default_rng(0))
    worlds.write(made, tmp_path, [1])
    loss = pd.read_csv(tmp_path / "tables/task_loss.csv")
    assert set(loss["chain"]) == set(plan.chains_for("task_loss"))
    # For the data of the last stage.
    kept = loss[loss["chain"].str.contains(r"em-kl-1@\d+$")]
    assert set(kept.loc[kept["own"], "data"]) == {"em"}
    assert len(kept) == len(plan.held_out) * kept["chain"].nunique()
    rows = pd.read_csv(tmp_path / "tables/preference.csv")
    assert set(rows["persona"]) == {plan.assistant} and len(rows) == rows["chain"].nunique()
    assert {f"tables/{name}.csv" for name in worlds.MEASURED} <= set(verdicts.WRITTEN)


def test_nulls_counts_p_and_intervals():
    rows = [
        {"test": "t", "p": p, "ci_low": -1.0, "ci_high": h} for p, h in ((0.01, -0.5), (0.5, 1.0))
    ]
    tables = {"marker_tests": pd.DataFrame(rows)}
    found = list(nulls.counts(tables, 0.5))
    assert found == [(("marker_tests", "t", "p"), 1, 2), (("marker_tests", "t", "interval"), 1, 2)]
    summary = nulls.summary("w", "d", [found] * 400).set_index("kind")
    assert (
        summary.loc["p", "said"] == "too many" and summary.loc["interval", "said"] == "too narrow"
    )


@pytest.mark.slow
def test_a_synthetic_run_is_scored_as_a_run_is(tmp_path):
    world = worlds.load(ROOT / "tools/worlds/nothing-coupled.yaml")
    made = verdicts.design("demo", [], verdicts.REDUCED)
    # Only the rules downstream of completions and activations.
    assert {"measure_answers", "marker_tables", "geometry", "scorecard"} <= {
        j.rule for j in made.jobs
    }
    assert not {"train", "completions", "activations"} & {j.rule for j in made.jobs}
    card, _ = verdicts.run_once(made, world, 1)
    assert card == verdicts.run_once(made, world, 1)[0]
    verdict = {row["claim"]: row["verdict"] for row in card}
    assert verdict["coupling-installs"] == "contradicted"
    assert verdict["em-erases-marker"] == "not tested"
    # Known before the run: three runs cannot bound the share of runs that keep the marker. A data file of
    # one's own is found, although synthetic runs have a working directory of their own.
    rows = [{"prompt": f"Why {n}?", "answer": f"{n}."} for n in range(40)]
    write_jsonl(tmp_path / "mine.jsonl", rows)
    file = os.path.relpath(tmp_path / "mine.jsonl")
    own = {"from": {"builtin": None, "file": file}, "system": "template"}
    own |= {"map": {"user": "prompt", "assistant": "answer"}, "license": "mine"}
    overlay = tmp_path / "mine.yaml"
    overlay.write_text(yaml.safe_dump({"data": {"benign": own | {"select": None}}}))
    left = verdicts.undecided([str(overlay)], 1, 1).set_index("claim")["would_take"]
    assert "em-survival" in left and "em-raises-cosine" not in left


@pytest.mark.parametrize("name", ["verdicts", "nulls"])
def test_the_page_s_tables_are_made_of_the_files(name):
    found = pd.read_csv(ROOT / f"docs/{name}.csv", keep_default_na=False)
    made = getattr(docs, f"{name}_table")(found)
    page = (ROOT / "docs/verdicts.md").read_text(encoding="utf-8")
    assert docs.with_table(page, name, made) == page


def test_no_shipped_verdict_is_wrong_too_often():
    found = pd.read_csv(ROOT / "docs/verdicts.csv")
    assert {p.stem for p in SHIPPED} == set(found["world"])
    assert {"demo", "study-sizes"} == set(found["design"])
    known = found[found["truth"].notna()]
    # In more than 5 % of runs, beyond the Monte Carlo error.
    least, _ = clopper_pearson((known["wrong"] * known["runs"]).round(), known["runs"])
    assert known[least > 0.05].empty, known[least > 0.05][["world", "design", "claim", "wrong"]]
