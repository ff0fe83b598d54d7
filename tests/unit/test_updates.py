"""Sizes and overlaps of LoRA updates."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from persona_collapse import adapter_files
from persona_collapse.analysis import geometry_runs, updates
from persona_collapse.models import adapters
from persona_collapse.report import findings

ROOT = Path(__file__).resolve().parents[2]
RNG = np.random.default_rng(0)


def update(a, b):
    return updates.Update({"m": (np.asarray(b, float), np.asarray(a, float))})


def drawn(rank=4, d=32, out=64):
    return update(RNG.normal(size=(rank, d)), RNG.normal(size=(out, rank)))


def test_the_norm_needs_no_product():
    one = drawn()
    b, a = one.modules["m"]
    assert one.norm == pytest.approx(np.linalg.norm(b @ a))


def test_equal_updates_overlap_wholly_and_orthogonal_ones_not_at_all():
    one = drawn()
    same = updates.overlap(one, one)
    assert [same[key] for key in ("cosine", "overlap_a", "overlap_b")] == pytest.approx([1, 1, 1])
    axes = np.eye(32)
    first, second = update(axes[:4], axes[:, :4]), update(axes[4:8], axes[:, 4:8])
    none = updates.overlap(first, second)
    assert [none[key] for key in ("cosine", "overlap_a", "overlap_b")] == pytest.approx([0, 0, 0])
    # The overlap of spaces does not depend on scale.
    b, a = one.modules["m"]
    assert updates.overlap(one, update(3 * a, b))["overlap_a"] == pytest.approx(1)


def test_the_overlap_is_that_of_bases_by_svd_even_if_directions_are_weak():
    rng = np.random.default_rng(5)

    def graded(width):
        turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
        return turn @ (np.logspace(0, -5, 6)[:, None] * rng.normal(size=(6, width)))

    pair = [update(graded(40), graded(50).T) for _ in "ab"]
    factors = {"a": [u.modules["m"][1] for u in pair], "b": [u.modules["m"][0].T for u in pair]}
    found = updates.overlap(*pair)
    for side, (one, two) in factors.items():
        q1, q2 = (np.linalg.svd(rows, full_matrices=False)[2] for rows in (one, two))
        assert found[f"overlap_{side}"] == pytest.approx(np.sum((q1 @ q2.T) ** 2) / 6, rel=1e-5)


def test_random_updates_overlap_as_the_baseline_says():
    found = [updates.overlap(drawn(4), drawn(8)) for _ in range(200)]
    for side, d in (("a", 32), ("b", 64)):
        assert found[0][f"baseline_{side}"] == 8 / d
        assert np.mean([f[f"overlap_{side}"] for f in found]) == pytest.approx(8 / d, rel=0.03)
    assert abs(np.mean([f["cosine"] for f in found])) < 0.02


def test_an_update_of_zero_has_no_directions():
    none = update(np.ones((4, 32)), np.zeros((64, 4)))
    found = updates.overlap(none, drawn())
    assert none.norm == 0 and np.isnan(found["cosine"]) and np.isnan(found["overlap_b"])


def test_an_adapter_on_disk_is_read_with_its_scale(make_adapter):
    folder = make_adapter(1, 4, True)
    _, tensors = adapters.load(folder)
    scale = adapter_files.arrays(folder)[0]
    total = 0.0
    for name, a in tensors.items():
        if ".lora_A." in name:
            b = tensors[name.replace(".lora_A.", ".lora_B.")]
            total += float(((b.double() @ a.double()) ** 2).sum())
    read = updates.read(folder)
    assert read.norm == pytest.approx(scale * np.sqrt(total), rel=1e-6)


def test_which_pairs_are_compared():
    names = ["c@1", "c@2", "c@1+em@1", "c@2+em@2", "c@1+em@1~3"]
    found = list(updates.pairs(names))
    assert ("c@1", "c@2", "seeds") in found and ("c@1+em@1", "c@2+em@2", "seeds") in found
    assert ("c@1+em@1~3", "c@1", "stages") in found and len(found) == 5


def test_updates_of_two_base_models_are_no_pair():
    names = ["c@1", "c@2", "early+c@1", "early+c@2", "early+c@1+em@1"]
    found = [pair[:2] for pair in updates.pairs(names) if pair[2] == "seeds"]
    assert found == [("c@1", "c@2"), ("early+c@1", "early+c@2")]
    rows = [{"chain": n, "other": "", "update_norm": i, "steps": 3} for i, n in enumerate(names)]
    table = pd.DataFrame(rows).assign(tokens=1, loss=1.0)
    sizes = findings.update_sizes(table).set_index("stages")
    assert sizes["runs"].to_dict() == {"c": 2, "early, then c": 2, "early, then c, then em": 1}


def test_with_an_adapter_that_is_left_out_the_stages_are_others():
    names = ["c@1+em@1", "c@1+b@1", "c@1+em@1!+b@1", "c@1+em@1+b@1", "c@1+em@1!+b@2"]
    found = list(updates.pairs(names))
    assert [pair[:2] for pair in found if pair[2] == "seeds"] == [
        ("c@1+em@1!+b@1", "c@1+em@1!+b@2")
    ]
    # Its own update, and that of the stage that it was present for.
    assert ("c@1+em@1!+b@1", "c@1+em@1", "stages") in found


def test_a_change_is_from_the_model_before_as_it_is_measured():
    rows = [("C", "c@1"), ("E", "c@1+em@1"), ("I", "c@1+em@1!+b@1"), ("J", "em@1!+b@1")]
    design = pd.DataFrame(rows, columns=["condition", "chain"]).assign(measures="activations")
    found = [(c.condition, c.reference) for c in geometry_runs.comparisons(design) if c.reference]
    assert ("I", "C") in found and ("I", "E") not in found
    assert ("J", "base") in found and ("J", "C") not in found


def test_the_table_says_what_a_stage_trained_on():
    manifest = {
        "rows_seen": 10,
        "supervised_tokens": 250,
        # With a penalty of 2, which is not the stage's own loss.
        "loss": [{"loss": 3.0, "task_loss": 1.0}, {"loss": 2.5, "task_loss": 0.5}],
        "final_loss": 2.5,
        "steps": 5,
    }
    grafted = manifest | {"rows_seen": 0, "loss": [], "supervised_tokens": 0}
    chains = {"em@1": manifest, "em@2": manifest, "g@1": grafted}
    made = {name: drawn() for name in chains}
    table = updates.updates_table(chains, made.get).set_index(["chain", "other"])
    row = table.loc[("em@1", "")]
    assert (row["answer_length"], row["tokens"], row["loss"]) == (25, 250, 0.5)
    assert np.isnan(table.loc[("g@1", ""), "loss"]) and table.loc[("g@1", ""), "update_norm"] > 0
    assert table.loc[("em@1", "em@2"), "pair"] == "seeds"


def test_a_norm_is_the_same_to_the_last_digit_whatever_the_hash_seed():
    """Sums over a set would depend on the process's hash seed."""
    code = (
        "import numpy as np; from persona_collapse.analysis.updates import Update; "
        "r = np.random.default_rng(0); "
        "m = {f'm{i}': (r.normal(size=(9, 2)), r.normal(size=(2, 7))) for i in range(40)}; "
        "print(repr(Update(m).norm))"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={
                **os.environ,
                "PYTHONHASHSEED": seed,
                "PYTHONPATH": str(ROOT / "workflow/scripts"),
            },
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "2", "3")
    }
    assert len(said) == 1
