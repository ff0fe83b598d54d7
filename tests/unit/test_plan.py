"""A plan is computed once, and its cost grows linearly with the number of chains."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml
from persona_collapse import chains
from persona_collapse.errors import UserError
from persona_collapse.study import configuration
from persona_collapse.study.plan import Plan

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def study(seeds):
    """The default config with this many seeds."""
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    return configuration.check({**config, "seeds": list(range(1, seeds + 1))})


def worked_out(config):
    """Use everything that rules and jobs ask of a plan."""
    plan = Plan(config)
    jobs = [*plan.couplings_answers, *plan.chains_answers, *plan.measurements, *plan.trainings]
    assert [job.name for job in jobs] and json.dumps([job.values() for job in jobs])
    for name in plan.trained_chains:
        chain = chains.parse(name)
        found = plan.folders(name), plan.rank(name), plan.projections(name)
        assert all(found) and plan.stage_settings(chain.last.name)
        assert plan.data_of(chain) or not plan.stages[chain.last.name].trains
    assert plan.data_used and len(plan.cells) == len(plan.grid)
    return plan


def of_two_models(**conditions):
    """The plan of a demo whose chains start from its model or from a checkpoint of its pretraining."""
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    config["models"] = {
        "early": {"demo_step": 40},
        "unused": {"path": str(ROOT), "date": "2026-01-02"},
    }
    config["model"] |= {"system_role": "fold", "date": "2025-05-06"}
    config["conditions"] |= {
        name: {"title": name, "chain": chain} for name, chain in conditions.items()
    }
    return configuration.plan(config)


def test_chains_of_another_model_have_all_of_their_own():
    plan = worked_out(
        of_two_models(Y1="early+couple-villain@42+em@{seed}", Y0="early+em@{seed}").config
    )
    assert plan.models_used == ["base", "early"]
    for measure in ("markers", "activations", "completions"):
        assert plan.chains_for(measure)[:2] == ["base", "early"]
    # Template settings of `model:` are defaults for the other models.
    assert plan.models["early"] == {"demo_step": 40, "system_role": "fold", "date": "2025-05-06"}
    assert plan.models["unused"]["date"] == "2026-01-02"
    assert plan.base("early+em@1") == "results/demo/bases/early/model.json"
    assert plan.base("em@1") == plan.base("base") == "results/demo/bases/base/model.json"
    coupled = plan.training("early+couple-villain@42")
    assert coupled.rows == "results/demo/data/early+couple-villain.jsonl"
    assert plan.answers("early+couple-villain").chain == plan.answers("early+couple-villain").model
    assert plan.training("early+em@1").rows == plan.training("em@1").rows
    (cell, *_) = [cell for cell in plan.cells if cell.condition == "Y0"]
    assert (cell.model, cell.before, cell.kinds) == ("early", "early", "sft")
    # One engine holds one model.
    for own in (plan.completions("early"), plan.answers("couple-villain")):
        assert {job.model for job in plan.beside(own)} == {own.model}


def test_what_defences_read_is_of_the_model_that_is_trained():
    config = of_two_models().config
    config["stages"]["steered"] = {
        "kind": "sft",
        "data": "em",
        "defence": {
            "steer": {"layers": [0.5], "after": "em@1"},
            "project": {"data": "couple-villain"},
        },
    }
    config["conditions"]["Y2"] = {"title": "steered", "chain": "early+steered@1"}
    plan = configuration.plan(config)
    inputs = plan.training("early+steered@1").inputs
    assert (
        inputs["activations/em@1.safetensors"] == "results/demo/activations/early+em@1.safetensors"
    )
    assert inputs["activations/base.safetensors"] == "results/demo/activations/early.safetensors"
    assert inputs["data/couple-villain.jsonl"] == "results/demo/data/early+couple-villain.jsonl"
    assert "early+em@1" in plan.trained_chains and "early+couple-villain" in plan.data_used
    own = plan.training("steered@1").inputs
    assert own["activations/base.safetensors"] == "results/demo/activations/base.safetensors"


def test_the_persona_file_is_read_once_and_each_cell_made_once(monkeypatch):
    config, counts = study(20), Counter()
    read, cell = Path.read_text, Plan._cell

    def reads(path, *args, **kwargs):
        counts[path.name] += path.suffix != ".py"
        return read(path, *args, **kwargs)

    def cells(plan, *args):
        counts["cells"] += 1
        return cell(plan, *args)

    monkeypatch.setattr(Path, "read_text", reads)
    monkeypatch.setattr(Plan, "_cell", cells)
    plan = worked_out(config)
    assert +counts == {Path(config["personas"]["file"]).name: 1, "cells": len(plan.cells)}


def test_four_times_the_chains_are_four_times_the_work():
    calls, sizes = [], []
    for seeds in (25, 100):
        config, count = study(seeds), 0

        def counted(_frame, event, _argument):
            nonlocal count
            count += event in ("call", "c_call")

        before = sys.getprofile()
        sys.setprofile(counted)
        try:
            plan = Plan(config)
            for asked in ("couplings_answers", "chains_answers", "measurements", "trainings"):
                assert getattr(plan, asked)
        finally:
            sys.setprofile(before)
        calls.append(count)
        sizes.append(len(plan.cells))
    assert sizes[1] > 3 * sizes[0]
    assert calls[1] / calls[0] < 1.1 * sizes[1] / sizes[0]


def test_jobs_name_their_own_personas():
    config = study(2)
    config["personas"]["by_source"] = {"villain": ["villain", "assistant"]}
    plan = Plan(config)
    assert list(plan.completions("couple-villain@2").personas) == ["villain", "assistant"]
    # A chain in several cells answers as all personas that they count; a chain in none as the evaluated
    # ones.
    shared = plan.completions("em@1").personas
    assert list(shared)[:2] == ["villain", "assistant"]
    assert set(shared) == set(config["personas"]["eval"])
    assert list(plan.completions("base").personas) == config["personas"]["eval"]


def test_a_condition_may_ask_fewer_personas():
    config = study(2)
    config["conditions"]["C1"]["personas"] = ["librarian", "assistant"]
    plan = Plan(config)
    (chain, *_) = (cell.chain for cell in plan.cells if cell.condition == "C1")
    assert list(plan.completions(chain).personas) == ["assistant", "librarian", "villain"]
    # In another condition all personas answer.
    assert list(plan.completions("base").personas) == config["personas"]["eval"]


def with_stage(**stage):
    """A plan of the default config with these additional keys in stage `em`."""
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    config["stages"]["em"] |= stage
    return configuration.plan(config)


def test_how_a_training_uses_its_machine_is_no_part_of_its_job():
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    plain = configuration.plan(config)
    how = {"padding_free": True, "max_batch_tokens": 512, "deterministic": True}
    config["runtime"]["training"] = how
    packed = configuration.plan(config)
    assert plain.training("em@42") == packed.training("em@42")
    assert plain.runtime["training"] != packed.runtime["training"]
    assert plain.training("em@42") != with_stage(lr=1e-5).training("em@42")


@pytest.mark.parametrize(
    ("defence", "shares"),
    [
        ({}, 1),
        ({"ldifs": {}}, 1),
        ({"kl": {}}, 2),
        ({"kl": {"weight": 0.0}}, 1),
        ({"kl": {}, "r3f": {}}, 3),
    ],
)
def test_a_training_with_two_passes_of_logits_takes_two_shares_of_a_gpu(defence, shares):
    for places in (4, 2, 1):
        plan = with_stage(defence=defence)
        plan.config["runtime"]["jobs_per_gpu"] = places
        assert plan.gpu_shares("em@42") == min(shares, places)
        assert plan.gpu_shares("couple-villain@42") == 1


def test_a_defence_s_files_are_inputs_and_its_code_is_counted():
    plain = with_stage()
    kept = with_stage(defence={"kl": {"weight": 0.1}})
    other = with_stage(defence={"kl": {"data": "benign"}})
    jobs = [plan.training("em@42") for plan in (plain, kept, other)]
    assert [job.inputs for job in jobs] == [
        {}, {}, {"data/benign.jsonl": "results/demo/data/benign.jsonl"}
    ]  # fmt: skip
    assert jobs[0].loss_code != jobs[1].loss_code == jobs[2].loss_code
    assert plain.training("benign@42") == kept.training("benign@42")


def test_a_stage_that_is_left_out_is_there_in_training_alone():
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    chain = "couple-villain@42+em@{seed}!+benign@{seed}"
    config["conditions"]["I"] = {"title": "inoculated", "chain": chain, "seeds": [7]}
    plan = configuration.plan(config)
    name = chain.format(seed=7)
    models = "results/demo/models"
    coupled, evil = f"{models}/couple-villain@42", f"{models}/couple-villain@42+em@7"
    assert plan.training(name).adapters == [coupled, evil]
    for job in (
        plan.completions(name),
        plan.responses(name),
        plan.measurement("activations", name),
    ):
        assert job.adapters == [coupled, f"{models}/{name}"]
    assert {"couple-villain@42+em@7", name} <= set(plan.trained_chains)
    assert plan.rank(name) == 2 * plan.rank("couple-villain@42")
    (cell,) = [cell for cell in plan.cells if cell.condition == "I"]
    assert (cell.before, cell.kinds, cell.stages_after_coupling, cell.source) == (
        "couple-villain@42", "couple+sft!+sft", 1, "villain"
    )  # fmt: skip
    # A coupling that is left out has taught nothing to the measured chain.
    config["conditions"]["I"]["chain"] = "couple-villain@42!+em@{seed}"
    (cell,) = [c for c in configuration.plan(config).cells if c.condition == "I"]
    assert (cell.before, cell.stages_after_coupling, cell.source) == ("base", None, "")


def test_a_data_set_that_a_defence_alone_reads_is_used():
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    config["data"]["calm"] = config["data"]["benign"]
    config["stages"]["em"]["defence"] = {"kl": {"data": "calm"}}
    assert "calm" in configuration.plan(config).data_used
    config["only"] = ["C1"]
    assert set(configuration.plan(config).config["data"]) == {"em", "calm"}


def test_a_coupling_s_rows_are_there_for_a_defence_though_no_chain_has_the_coupling():
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    config["stages"]["em"]["defence"] = {"project": {"data": "couple-villain"}}
    config["conditions"] = {"E": {"title": "EM", "chain": "em@{seed}", "seeds": [42]}}
    config["statistics"] |= {"contrasts": [], "matched": [], "hypotheses": [], "axis": None}
    for given in (config, config | {"only": ["E"]}):
        plan = configuration.plan(given)
        assert plan.data_used == ["em", "couple-villain"]
        assert [job.name for job in plan.couplings_answers] == ["couple-villain"]
        path = "results/demo/data/couple-villain.jsonl"
        assert path in plan.training("em@42").files


@pytest.mark.parametrize(
    ("defence", "said"),
    [
        (
            {"kl": {"data": "calm"}},
            "defence: expected an entry of data: .benign, em. or a coupling .*, got 'calm'",
        ),
        ({"kl": {"weight": -1}}, "defence: kl: weight: expected at least 0.*, got -1"),
        ({"distance": {}}, "defence: expected a defence .*kl.*, got 'distance'"),
    ],
)
def test_a_wrong_defence_is_one_line_before_any_job(defence, said):
    with pytest.raises(UserError, match=f"config: stages: em: {said}"):
        with_stage(defence=defence)


def test_a_job_s_plan_waits_for_no_large_library():
    """A job makes its plan before it knows whether its work is done, so this takes at most a fifth of a
    second."""
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'workflow/scripts')!r})\n"
        "from persona_collapse.study.plan import Plan\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    large = {"torch", "transformers", "pandas", "scipy", "datasets", "snakemake", "matplotlib"}
    assert not large & set(done.stdout.split())
