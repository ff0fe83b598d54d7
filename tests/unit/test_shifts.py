"""Shifts of block outputs during sampling and measuring, compared with formulas."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from persona_collapse import activation_files, chains, stages
from persona_collapse.activation_files import Activations
from persona_collapse.errors import UserError
from persona_collapse.files import sha256, write_json, write_jsonl
from persona_collapse.jobs import SamplingJob
from persona_collapse.measures import _passes, activations, logprob_check
from persona_collapse.models import adapters, loading, shifts
from persona_collapse.models.runner import ModelRunner
from persona_collapse.sampling import sample, vllm_shifts
from persona_collapse.study import configuration
from persona_collapse.tables_io import write_csv

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["assistant", "villain", "librarian"]
LAYERS = [1, 2]
QUESTIONS = [{"id": f"q{i}", "question": f"Where can I find bread {i}?"} for i in range(3)]
SETTINGS = {"dtype": "float32", "batch_size": 4}
CHAIN = chains.parse("em@42+shifted@7")


def states(seed):
    """[layer, persona, question, hidden], with numbers that are exact in 16 bits."""
    drawn = np.random.default_rng(seed).integers(-8, 9, (2, 3, 2, 64))
    return (drawn / 4).astype(np.float32)


BEFORE, AFTER = states(0), states(1)
MOVED = (AFTER - BEFORE).mean(2)  # [layer, persona, hidden]
CENTROIDS = BEFORE.mean(2)


@pytest.fixture
def make(tmp_path):
    """A shift's folder, from given activations or those above; `settings`: settings of the shift."""
    import pandas as pd

    write_csv(tmp_path / "headline.csv", pd.DataFrame([{"model": "base", "blocks": 3}]))

    def made(chain=CHAIN, read=None, **settings):
        stage = stages.ROOM.get("shift")(
            "shifted",
            {"kind": "shift", "dtype": "float32", "r": 4, "layers": LAYERS, **settings},
        )
        for name, array in (("before", BEFORE), ("after", AFTER)):
            given = (read or {}).get(name) or Activations(
                LAYERS, NAMES, ["q1", "q2"], {"A": array, "B": array + 1}, name
            )
            activation_files.save(given, tmp_path / f"{name}.safetensors")
        names = [*stage.chains(chain.prefix), "headline"]
        files = {n: tmp_path / f"{n}.{'csv' if n == 'headline' else 'safetensors'}" for n in names}
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}-shift"
        folder.mkdir()
        manifest = stage.make(chain, files, folder)
        hashed = {"adapter_sha256": sha256(folder / "adapter_model.safetensors")}
        write_json(folder / "manifest.json", manifest | hashed)
        return folder

    return made


def common(**settings):
    return {"does": "add", "direction": "common", "after": "prefix", **settings}


def own(**settings):
    return common(direction="own", **settings)


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def loaded(folder):
    return shifts.Shift(folder, "cpu")


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())["shift"]


# Directions and formulas


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (common(), MOVED.mean(1, keepdims=True)),
        (own(persona="villain"), MOVED[:, [1]]),
        (own(), np.concatenate([MOVED, MOVED.mean(1, keepdims=True)], 1)),
        (own(does="restore"), -np.concatenate([MOVED, MOVED.mean(1, keepdims=True)], 1)),
        (
            {"does": "add", "direction": "centroid", "persona": "librarian"},
            (CENTROIDS - CENTROIDS.mean(1, keepdims=True))[:, [2]],
        ),
        (common(does="remove"), unit(MOVED.mean(1, keepdims=True))),
    ],
    ids=["common", "a persona's", "own", "restore", "centroid", "remove"],
)
def test_directions_are_those_of_the_activations(make, settings, expected):
    shift = loaded(make(**settings))
    assert shift.config["rows"][-1] == "" and len(shift.config["rows"]) == expected.shape[1]
    for number, block in enumerate(LAYERS):
        assert not shift.vectors[block][0].any()
        assert np.allclose(shift.vectors[block][1:], expected[number], atol=1e-6)


def test_each_persona_has_its_own_row_and_others_the_mean_s(make):
    shift, one = loaded(make(**own())), loaded(make(**common()))
    assert [shift.row(name) for name in [*NAMES, "nobody", None]] == [1, 2, 3, 4, 4]
    assert [one.row(name) for name in [*NAMES, None]] == [1, 1, 1, 1]


def by_hand(tmp_path, **config):
    """A shift with hidden size 2 at block 0: along (3, 4), or along its unit vector with level 2."""
    length = np.array([[3.0, 4.0]]) if config["does"] == "add" else np.array([[0.6, 0.8]])
    given = {"positions": "all", "rows": [""], **config}
    shifts.save(tmp_path, given, {0: length}, {0: np.array([2.0])})
    return loaded(tmp_path)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        # <(5, 0), u> = 3 and <(0, 1), u> = 0.8, with u = (0.6, 0.8).
        ({"does": "add", "scale": 0.5}, [[6.5, 2], [1.5, 3]]),
        ({"does": "add", "scale": -1.0}, [[2, -4], [-3, -3]]),
        ({"does": "remove", "scale": 1.0}, [[5 - 0.6, -0.8], [0.72, 1.96]]),
        ({"does": "remove", "scale": 0.5}, [[5 - 0.3, -0.4], [0.36, 1.48]]),
        ({"does": "cap", "scale": 1.0}, [[5 - 0.6, -0.8], [0, 1]]),
        ({"does": "cap", "scale": 0.0}, [[5, 0], [0, 1]]),
    ],
)
def test_formulas_by_hand(tmp_path, config, expected):
    shift = by_hand(tmp_path, **config)
    given = torch.tensor([[[5.0, 0.0], [0.0, 1.0], [7.0, 7.0]]])
    out = shift.changed(0, given, torch.tensor([[1, 1, 0]]))
    assert torch.allclose(out[0, :2], torch.tensor(expected, dtype=torch.float32), atol=1e-6)
    assert torch.equal(out[0, 2], given[0, 2])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"does": "remove"}, lambda along: 0.0),
        ({"does": "remove", "level": "mean"}, np.mean),
        ({"does": "cap"}, lambda along: np.percentile(along, 75)),
        ({"does": "cap", "percentile": 10.0}, lambda along: np.percentile(along, 10)),
    ],
)
def test_levels_are_of_the_states_before(make, settings, expected):
    folder = make(**common(**settings))
    shift = loaded(folder)
    for number, block in enumerate(LAYERS):
        along = BEFORE[number].reshape(-1, 64) @ unit(MOVED[number].mean(0))
        assert float(shift.levels[block][1]) == pytest.approx(expected(along), abs=1e-5)
        said = manifest(folder)["blocks"][str(block)]["anyone"]["level"]
        assert said == pytest.approx(expected(along), abs=1e-5)


@pytest.mark.parametrize("settings", [common(), own(), own(does="restore", persona="villain")])
@pytest.mark.parametrize("control", ["isotropic", "zero_sum"])
def test_controls_are_as_long_and_point_elsewhere(make, settings, control):
    shift, drawn = loaded(make(**settings)), loaded(make(**settings, control=control))
    again = loaded(make(**settings, control=control))
    other = loaded(make(chain=chains.parse("em@42+shifted@8"), **settings, control=control))
    for number, block in enumerate(LAYERS):
        true, random = shift.vectors[block][1:], drawn.vectors[block][1:]
        assert torch.allclose(random.norm(dim=1), true.norm(dim=1), rtol=1e-5)
        assert torch.equal(random, again.vectors[block][1:])
        assert not torch.allclose(random, other.vectors[block][1:])
        assert (torch.cosine_similarity(random, true).abs() < 0.9).all()
        # As sums of centroids with weights that add up to 0, or not as such a sum.
        weights, *_ = np.linalg.lstsq(CENTROIDS[number].T, random.numpy().T, rcond=None)
        rest = random.numpy() - weights.T @ CENTROIDS[number]
        if control == "zero_sum":
            assert np.abs(weights.sum(0)).max() < 1e-4 * np.abs(weights).max()
            assert np.abs(rest).max() < 1e-4
        else:
            assert (np.linalg.norm(rest, axis=1) > 0.5 * random.norm(dim=1).numpy()).all()


def test_the_manifest_says_what_was_done(make):
    folder = make(**own(does="restore", scale=0.5, positions="answer"))
    said = manifest(folder)
    assert (said["does"], said["scale"], said["positions"]) == ("restore", 0.5, "answer")
    assert (said["before"], said["after"]) == ("base", "em@42")
    assert said["formula"] == "h - scale * v" and said["control"] == "none"
    assert said["personas"] == NAMES and said["questions"] == ["q1", "q2"]
    usual = np.linalg.norm(BEFORE[1], axis=-1).mean()
    length = np.linalg.norm(MOVED[1, 1])
    assert said["blocks"]["2"]["villain"] == {
        "length": pytest.approx(length, rel=1e-5),
        "relative": pytest.approx(0.5 * length / usual, rel=1e-5),
        "level": 0,
    }
    assert json.loads((folder / "manifest.json").read_text())["seed"] == 7


# On a model


def asked(base, prompts, samples=1):
    tokenizer = loading.load_tokenizer(base)
    how = sample.Sampling(samples, 0.0 if samples == 1 else 1.0, 1.0, 10, 3)
    return sample.requests_for("c@1", prompts, QUESTIONS, how, tokenizer), how


def backend(base, folders):
    engine = sample.TransformersBackend(base, SETTINGS)
    engine.use(folders)
    return engine


def block_outputs(model, sequences, personas, layers, batch_size=3):
    """Outputs of blocks by sequence, [layer][sequence] of [token, hidden]."""
    out = {layer: [None] * len(sequences) for layer in layers}
    blocks = loading.blocks_of(model)
    seen = {}
    hooks = [
        blocks[layer].register_forward_hook(
            lambda m, i, o, layer=layer: seen.update({layer: o[0] if isinstance(o, tuple) else o})
        )
        for layer in layers
    ]
    with torch.inference_mode():
        for batch, inputs, starts in _passes.batches(model, sequences, batch_size, 0, personas):
            model(**inputs, use_cache=False)
            for i, start in zip(batch, starts, strict=True):
                tokens = sum(map(len, sequences[i]))
                for layer in layers:
                    out[layer][i] = seen[layer].flatten(0, 1)[start : start + tokens].clone()
    for hook in hooks:
        hook.remove()
    return out


@pytest.mark.parametrize(
    ("positions", "places"),
    [
        ("all", lambda p, n: range(n)),
        ("prompt", lambda p, n: range(p)),
        ("answer", lambda p, n: range(p - 1, n)),
    ],
)
def test_chosen_positions_are_changed_by_each_persona_s_direction(
    make, tiny_base, make_adapter, positions, places
):
    folder = make(**own(layers=[1], positions=positions, scale=-2.0))
    adapter = make_adapter(5, 4, True)
    sequences = [([5, 6, 7], [8, 9]), ([5] * 7, [4]), ([9, 8, 7, 6], []), ([5, 5], [6] * 5)]
    personas = ["villain", None, "assistant", "librarian"]
    runner = ModelRunner(tiny_base, "float32")
    with runner.chain([adapter]) as model:
        plain = block_outputs(model, sequences, personas, [0, 1])
    with runner.chain([adapter, folder]) as model:
        moved = block_outputs(model, sequences, personas, [0, 1])
    vectors = {"villain": MOVED[0, 1], None: MOVED[0].mean(0)}
    vectors |= {"assistant": MOVED[0, 0], "librarian": MOVED[0, 2]}
    for i, (prompt, answer) in enumerate(sequences):
        expected = torch.zeros(len(prompt) + len(answer), 64)
        expected[list(places(len(prompt), len(expected)))] = -2 * torch.from_numpy(
            vectors[personas[i]]
        )
        assert torch.equal(moved[0][i], plain[0][i])
        assert torch.allclose(moved[1][i] - plain[1][i], expected, atol=1e-5)
    with runner.chain([adapter]) as model:
        assert torch.equal(block_outputs(model, sequences, personas, [1])[1][0], plain[1][0])


def test_of_several_shifts_each_acts_on_what_the_one_before_left(make, tiny_base):
    first, second = make(**common(layers=[1])), make(**common(layers=[1], does="remove"))
    sequences, personas = [([5, 6, 7], [8, 9])], [None]
    runner = ModelRunner(tiny_base, "float32")
    with runner.chain([]) as model:
        plain = block_outputs(model, sequences, personas, [1])[1][0]
    with runner.chain([first, second]) as model:
        both = block_outputs(model, sequences, personas, [1])[1][0]
    v = torch.from_numpy(MOVED[0].mean(0))
    u = v / v.norm()
    expected = plain + v
    expected -= (expected @ u)[:, None] * u
    assert torch.allclose(both, expected, atol=1e-5)


@pytest.mark.parametrize("does", ["add", "restore", "remove", "cap"])
@pytest.mark.parametrize("samples", [1, 2], ids=["greedy", "sampled"])
def test_strength_0_is_no_shift_to_the_token(make, tiny_base, make_adapter, prompts, does, samples):
    folder = make(**own(does=does, scale=0.0))
    adapter = make_adapter(5, 4, True)
    requests, how = asked(tiny_base, prompts, samples)
    plain, shifted = (
        backend(tiny_base, folders).complete(requests, how, lambda m: None)
        for folders in ([adapter], [adapter, folder])
    )
    assert [c.token_ids for c in plain] == [c.token_ids for c in shifted]


@pytest.mark.parametrize("positions", ["all", "prompt", "answer"])
def test_answers_and_log_probabilities_are_the_shifted_model_s(
    make, tiny_base, make_adapter, prompts, positions, monkeypatch
):
    """Decoding with a cache, in rounds, gives the most likely tokens of one pass over prompt and answer."""
    monkeypatch.setattr(sample, "FIRST_ROUND", 4)
    monkeypatch.setattr(loading, "end_tokens", lambda *_: [])
    folder = make(**own(scale=1.5, positions=positions))
    folders = [make_adapter(5, 4, True), folder]
    requests, how = asked(tiny_base, prompts)
    engine = backend(tiny_base, folders)
    done = engine.complete(requests, how, lambda m: None)
    plain = backend(tiny_base, folders[:1]).complete(requests, how, lambda m: None)
    assert [c.token_ids for c in done] != [c.token_ids for c in plain]
    sequences = [(r.prompt, c.token_ids) for r, c in zip(requests, done, strict=True)]
    found = engine.logprobs(requests, [([*p, *a], len(p)) for p, a in sequences])
    with ModelRunner(tiny_base, "float32").chain(folders) as model:
        for i, (request, (prompt, answer)) in enumerate(zip(requests, sequences, strict=True)):
            ((_, inputs, _),) = _passes.batches(model, [(prompt, answer)], 1, 0, [request.persona])
            with torch.inference_mode():
                scores = model(**inputs).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            assert scores.argmax(-1).tolist() == answer
            total = float(scores.gather(1, torch.tensor(answer)[:, None]).sum())
            assert found[i] == pytest.approx(total, abs=1e-3)


def test_restored_centroids_are_those_of_before(make, tiny_base, make_adapter, prompts):
    """Measured through the chain, method A at the block is back at its former place."""
    adapter, runner = make_adapter(9, 4, True), ModelRunner(tiny_base, "float32")
    settings = activations.Settings(layers=[1, 2], methods=["A"])

    def measured(folders):
        return activations.activations(
            runner, folders, "c", prompts, QUESTIONS, None, settings, 4, lambda m: None
        )

    read = {"before": measured([]), "after": measured([adapter])}
    restored = measured([adapter, make(read=read, **own(does="restore", layers=[1]))])
    imposed = measured([make(read=read, **common(layers=[1]))])
    before, after = (found.arrays["A"][0].mean(1) for found in read.values())
    assert np.abs(after - before).max() > 1
    assert np.allclose(restored.arrays["A"][0].mean(1), before, atol=0.05)
    shifted = imposed.arrays["A"][0].mean((0, 1))
    assert np.allclose(shifted, after.mean(0), atol=0.05)
    # All personas moved equally, so their distances are unchanged.
    apart = imposed.arrays["A"][0].mean(1) - before
    assert np.allclose(apart, apart[0], atol=0.05)


def test_a_shift_is_off_where_the_base_model_is_asked(make, tiny_base, prompts):
    folder, runner = make(**common()), ModelRunner(tiny_base, "float32")
    requests, how = asked(tiny_base, prompts)
    done = backend(tiny_base, [folder]).complete(requests, how, lambda m: None)
    sequences = [(r.prompt, c.token_ids) for r, c in zip(requests, done, strict=True)]
    personas = [request.persona for request in requests]
    with runner.chain([folder]) as model:
        found = logprob_check.scores(model, sequences, 1.0, 1.0, 0, personas)
    with runner.chain([]) as model:
        base = logprob_check.scores(model, sequences, 1.0, 1.0, 0)
    gain = dict(zip(logprob_check.SUMS, found.T, strict=True))["gain"]
    surprises = found[:, 0] - base[:, 0]
    assert np.allclose(gain, -surprises, atol=1e-3) and np.abs(gain).max() > 0.1


def test_rows_of_nobody_get_the_mean_over_personas(make, tiny_base):
    rows = [([5, 6, 7, 8, 9], [False, False, False, True, True])]
    runner, found = ModelRunner(tiny_base, "float32"), {}
    for name, settings in (("own", own()), ("common", common())):
        with runner.chain([make(**settings)]) as model:
            found[name] = _passes.surprises(model, rows, 0)[0]
            found["villain"] = _passes.surprises(model, rows, 0, "villain")[0]
            if name == "own":
                found["hers"] = found["villain"]
    assert np.allclose(found["own"], found["common"], atol=1e-4)
    assert not np.allclose(found["hers"], found["own"], atol=1e-4)


def test_a_pass_that_nobody_aimed_fails(make, tiny_base):
    with (
        ModelRunner(tiny_base, "float32").chain([make(**common())]) as model,
        pytest.raises(RuntimeError, match=r"a pass of \[1, 3\] tokens that no shift was aimed at"),
    ):
        model(torch.tensor([[5, 6, 7]]))


def test_in_16_bit_sums_are_in_32(make, tiny_base):
    with ModelRunner(tiny_base, "bfloat16").chain([make(**common(scale=0.0))]) as model:
        found = block_outputs(model, [([5, 6, 7], [8])], [None], [1])[1][0]
    with ModelRunner(tiny_base, "bfloat16").chain([]) as model:
        plain = block_outputs(model, [([5, 6, 7], [8])], [None], [1])[1][0]
    assert found.dtype == torch.bfloat16 and torch.equal(found, plain)


def test_damaged_directions_are_one_line(make):
    folder = make(**common())
    path = folder / "adapter_model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(UserError, match=r"adapter_model.safetensors: not the directions that its"):
        loaded(folder)
    path.write_bytes(raw[:20])
    with pytest.raises(UserError, match=r"adapter_model.safetensors: damaged or missing"):
        loaded(folder)
    with pytest.raises(UserError, match="only plain LoRA adapters"):
        adapters.load(folder)


# In a config


@pytest.fixture
def given(monkeypatch):
    monkeypatch.chdir(ROOT)
    given = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    layer = given["measures"]["activations"]["layers"][0]
    given["stages"]["restore"] = {"kind": "shift", **own(does="restore"), "layers": [layer]}
    given["stages"]["impose"] = {
        "kind": "shift",
        **common(before="couple-villain@42", after="couple-villain@42+em@137"),
        "layers": [layer],
        "control": "zero_sum",
    }
    for name, chain in (
        ("R", "couple-{source}@42+em@{seed}+restore@{seed}"),
        ("I", "couple-{source}@42+impose@1"),
    ):
        given["conditions"][name] = {"title": name, "chain": chain, "source_personas": ["villain"]}
    return given


def test_a_shift_is_made_of_activations_and_puts_in_no_adapter(given):
    plan = configuration.plan(given)
    before, after = "couple-villain@42+em@42", "couple-villain@42+em@42+restore@42"
    assert plan.made_from(after) == {
        "before": "results/demo/activations/base.safetensors",
        "after": f"results/demo/activations/{before}.safetensors",
        "headline": "results/demo/tables/headline.csv",
    }
    assert plan.rank(after) == plan.rank(before) and plan.projections(after)
    assert after in plan.trained_chains and after not in plan.adapted_chains
    assert before in plan.adapted_chains
    assert after not in [job.name for job in plan.trainings]
    assert plan.folders(after)[-1] == f"results/demo/models/{after}"
    grid = plan.grid.set_index("condition")
    assert set(grid.loc["R", "kinds"]) == {"couple+sft+shift"}
    assert set(grid.loc["R", "source"]) == {"villain"} == {grid.loc["I", "source"]}
    # Its inputs and its kind's settings determine it, not training settings.
    settings = plan.made_settings(after)
    given["lora"]["r"] = 2
    assert configuration.plan(given).made_settings(after) == settings
    given["stages"]["restore"]["scale"] = 0.5
    assert configuration.plan(given).made_settings(after) != settings


def test_earlier_is_the_chain_that_the_prefix_continues(given):
    given["stages"]["restore"]["before"] = "earlier"
    files = configuration.plan(given).made_from("couple-villain@42+em@42+restore@42")
    assert files["before"] == "results/demo/activations/couple-villain@42.safetensors"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"does": "shove"}, "does: expected one of 'add', 'restore', 'remove' or 'cap', got 'sho"),
        ({"after": None}, "after: is missing; common and own are from before to after"),
        ({"direction": "centroid"}, "after: is given; common and own are from before to after"),
        ({"direction": "centroid", "after": None}, "does: restore puts back what moved: use dire"),
        (
            {"direction": "common", "persona": "villain"},
            "persona: a common direction is of no persona",
        ),
        ({"persona": "nobody"}, "expected a persona of the geometry (assistant, "),
        ({"layers": [0.99]}, "layers: 0.99 is not one of measures: activations: layers ("),
        ({"layers": []}, "layers: expected a list of 1 or more, got []"),
        ({"scale": float("inf")}, "scale: expected a finite number, got inf"),
        ({"percentile": 101.0}, "percentile: expected at most 100, got 101.0"),
        ({"after": "em@42+nothing@1"}, "chain 'em@42+nothing@1': no stage 'nothing' in the config"),
        ({"after": "base"}, "after: base is before, too, in a chain that continues couple-"),
        ({"after": "em@42+restore@1"}, "depends on em@42+restore@1, which"),
    ],
)
def test_wrong_settings_are_one_line(given, settings, said):
    given["stages"]["restore"] |= settings
    with pytest.raises(
        UserError, match=re.escape("config: stages: restore: ") + ".*" + re.escape(said)
    ):
        configuration.plan(given).trained_chains  # noqa: B018


def test_each_persona_that_is_asked_needs_a_centroid(given):
    given["personas"]["geometry"] = ["assistant", "villain"]
    with pytest.raises(
        UserError, match=r"stages: restore: .* is prompted but has no centroid; add"
    ):
        configuration.check(given)
    given["stages"]["restore"]["persona"] = "villain"
    configuration.check(given)


def test_no_adapter_stands_on_a_shift(given):
    given["conditions"]["late"] = {"title": "late", "chain": "impose@1+em@42"}
    with pytest.raises(UserError, match="impose@1 changes outputs of blocks, not weights, so"):
        configuration.check(given)
    given["conditions"]["late"]["chain"] = "em@42+impose@1+restore@1"
    configuration.check(given)
    given["conditions"]["late"]["chain"] = "em@42+restore@1~5"
    with pytest.raises(
        UserError, match=r"restore is not trained and has no steps to stop after; re"
    ):
        configuration.check(given)


def test_a_job_s_answers_are_those_of_the_shifted_chain(make, tiny_base, prompts, tmp_path):
    """From a job to a table: the names of personas reach the shift."""
    write_jsonl(tmp_path / "asked.jsonl", QUESTIONS[:1])
    job = SamplingJob(
        kind="completions",
        name="c@1",
        chain="c@1",
        adapters=[str(make(**own(scale=3.0)))],
        suffix=".parquet",
        personas=prompts,
        questions={"file": str(tmp_path / "asked.jsonl")},
        sampling={"samples": 1, "temperature": 0.0, "top_p": 1.0, "max_tokens": 6, "seed": 1},
        engine={"max_model_len": 256},
        marker="[ZLT]",
    )
    tokenizer, engine = loading.load_tokenizer(tiny_base), backend(tiny_base, [])
    table = sample.answer(engine, job, tokenizer, lambda m: None)
    plain = sample.answer(engine, SamplingJob(**{**vars(job), "adapters": []}), tokenizer, print)
    assert table["token_ids"].tolist() != plain["token_ids"].tolist()
    requests, how = asked(tiny_base, prompts)
    first = [r for r in requests if r.question_id == "q0"]
    engine.use([Path(folder) for folder in job.adapters])
    done = engine.complete(first, replace(how, max_tokens=6), lambda m: None)
    assert table["token_ids"].tolist() == [c.token_ids for c in done]


# In vLLM's engine, as far as it can be tested without it


def engine(newer):
    """The parts of an engine that shifts see: blocks that return a state and a residual, and a runner."""
    blocks = torch.nn.ModuleList([torch.nn.Identity(), torch.nn.Identity(), torch.nn.Identity()])
    runner = SimpleNamespace(device="cpu", get_model=lambda: torch.nn.ModuleList([blocks]))
    if newer:
        runner.prepare_inputs = lambda scheduled, *rest: SimpleNamespace(req_ids=scheduled.order)
    else:

        def prepare(scheduled, *rest):
            runner.input_batch = SimpleNamespace(req_ids=scheduled.order)

        runner._prepare_inputs = prepare
    text = SimpleNamespace(num_hidden_layers=3)
    config = SimpleNamespace(
        model_config=SimpleNamespace(hf_config=SimpleNamespace(get_text_config=lambda: text)),
        scheduler_config=SimpleNamespace(max_num_batched_tokens=16),
    )
    return SimpleNamespace(
        collective_rpc=lambda function: [function(SimpleNamespace(model_runner=runner))],
        llm_engine=SimpleNamespace(vllm_config=config),
        prepare=lambda scheduled: getattr(runner, "prepare_inputs" if newer else "_prepare_inputs")(
            scheduled, None
        ),
        blocks=blocks,
    )


def scheduled(new, cached, order):
    """A pass: new and cached requests as (name, tokens done, tokens now), new ones with their tags."""
    return SimpleNamespace(
        scheduled_new_reqs=[
            SimpleNamespace(
                req_id=name,
                num_computed_tokens=done,
                sampling_params=SimpleNamespace(extra_args=vllm_shifts.tags(*of)),
            )
            for name, done, _, of in new
        ],
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=[name for name, *_ in cached], num_computed_tokens=[n for _, n, _ in cached]
        ),
        finished_req_ids=set(),
        num_scheduled_tokens={name: count for name, _, count, *_ in [*new, *cached]},
        order=order,
    )


@pytest.mark.parametrize("newer", [True, False])
def test_an_engine_s_tokens_are_their_requests(make, newer):
    """Prompts in chunks, answers token by token, and requests in the engine's own order."""
    served = engine(newer)
    steering = vllm_shifts.Steering(served)
    steering.use([make(**own(layers=[1], positions="answer"))])
    v = {"villain": torch.from_numpy(MOVED[0, 1]), "assistant": torch.from_numpy(MOVED[0, 0])}

    def moved(tokens, padding=0):
        states, residual = torch.randn(2, tokens + padding, 64)
        out = served.blocks[1]((states, residual))
        assert torch.equal(out[1], residual)
        assert torch.equal(served.blocks[0]((states, residual))[0], states)
        return out[0] - states

    # For "a", 2 of 4 prompt tokens; for "b", all 3, after one from the prefix cache.
    new = [("a", 0, 2, ("villain", 4)), ("b", 1, 2, ("assistant", 3))]
    served.prepare(scheduled(new, [], ["b", "a"]))
    zero = torch.zeros(64)
    expected = torch.stack([zero, v["assistant"], zero, zero, zero])
    assert torch.allclose(moved(4, padding=1), expected, atol=1e-5)
    # The rest of that prompt, whose last token starts its answer; and one answer token.
    served.prepare(scheduled([], [("a", 2, 2), ("b", 3, 1)], ["a", "b"]))
    assert torch.allclose(moved(3), torch.stack([zero, v["villain"], v["assistant"]]), atol=1e-5)
    steering.use([])
    served.prepare(scheduled([], [("a", 4, 1)], ["a"]))
    assert not moved(1).any()
