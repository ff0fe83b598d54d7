"""Effects of properties of the second stage, and benefits of defences, on synthetic runs."""

import numpy as np
import pandas as pd
import pytest
from persona_collapse.analysis import frontier, matched, second_stages, why
from test_matched import HEADLINE, QUESTIONS

BARE = {
    "kind": "sft", "dtype": "float32", "data": "em", "lr": 1e-4, "r": 32, "alpha": 64, "epochs": 1,
    "steps": None, "use_rslora": False, "defence": {}, "persona": None, "induction": "", "sees": [],
}  # fmt: skip
SETTINGS = {
    "em": BARE,
    "rank-4": BARE | {"r": 4, "alpha": 8},
    "rslora": BARE | {"use_rslora": True},
    "benign": BARE | {"data": "benign"},
    "kl": BARE | {"defence": {"kl": {"weight": 0.1}}},
    "caft": BARE | {"defence": {"caft": {"rank": 2, "layers": [20]}}, "sees": ["base", "em@1"]},
    "caft-random": BARE | {"defence": {"caft": {"rank": 2, "direction": "random"}}, "sees": []},
    "trait": BARE | {"data": "trait"},
    "prompted": BARE | {"persona": "villain", "induction": "villain"},
    "couple": BARE | {"kind": "couple", "persona": "villain"},
}
SEEDS = (1, 2, 3)


def run(*conditions, seeds=SEEDS, samples=20):
    """A run's inputs. `conditions`: (name, stage, stop, update norm, log(1 - M1), rate, held-out loss),
    for runs after a coupling with log(1 - M1) = 0; each seed shifts the last three slightly.
    """
    cells, sizes, answers, left_out, scores, losses = [], [], [], [], [], []

    def measured(chain, log_distance, rate):
        for number, q in enumerate(QUESTIONS):
            key = {"chain": chain, "persona": "villain", "question_id": q}
            some = round(rate * samples * len(QUESTIONS)) // len(QUESTIONS) + (number % 2)
            answers.extend(key | {"hit": n < some} for n in range(samples))
        values = {"log_distance": log_distance, "m1": 1 - np.exp(log_distance), "angle": 50.0}
        for metric, value in values.items():
            for kind, names in (("", [""]), ("persona", "abcde"), ("question", QUESTIONS)):
                key = {"chain": chain, "method": "A", "layer": 20, "metric": metric}
                left_out.extend(key | {"left_out": kind, "name": n, "value": value} for n in names)

    for seed in seeds:
        before = f"couple@{seed}"
        measured(before, 0.0, 0.8)
        for number, (name, stage, stop, norm, log_distance, rate, loss) in enumerate(conditions):
            within, _, last = stage.rpartition("!+")
            within = f"{within}@{seed}!+" if within else ""
            chain = f"{before}+{within}{last}@{seed}" + (f"~{stop}" if stop else "")
            cell = {"condition": name, "title": name, "chain": chain, "stages_after_coupling": 1}
            cells.append(cell | {"source": "villain", "measures": "markers activations"})
            wobble = 0.01 * (seed - 2) * (number + 1)
            measured(chain, log_distance + wobble, rate)
            key = {"chain": chain, "other": "", "update_norm": norm, "steps": float(stop or 100)}
            sizes.append(key | {"tokens": 1000.0, "loss": 1.0, "answer_length": 20.0})
            scores.append(
                {"chain": chain, "role": "source", "mean_tokens": 30.0, "marker_logprob": -1.0}
            )
            losses += [
                {"chain": chain, "data": d, "own": own, "loss": value}
                for d, own, value in (("em", True, loss + wobble), ("benign", False, 99.0))
            ]
    found = matched.outcomes(pd.DataFrame(left_out), pd.DataFrame(answers), HEADLINE)
    metrics = {n: matched.metric_of(pd.DataFrame(left_out), HEADLINE, n) for n in why.CHANGES}
    tables = (pd.DataFrame(t) for t in (cells, sizes, scores, losses))
    return (*tables, found, metrics)


def why_of(*conditions, **more):
    design, sizes, scores, losses, found, metrics = run(*conditions, **more)
    table = why.why_table(design, SETTINGS, sizes, found, metrics, scores, losses)
    return table.set_index(["condition", "dose"])


# The reference's curve: log(1 - M1) decreases by 1 each time the update norm doubles.
CURVE = (
    ("C1", "em", "", 8.0, -3.0, 0.1, 1.0),
    ("steps", "em", 10, 2.0, -1.0, 0.6, 2.0),
    ("steps", "em", 30, 4.0, -2.0, 0.3, 1.5),
)


def test_less_change_is_told_from_a_smaller_update():
    table = why_of(
        *CURVE,
        ("small", "rank-4", "", 4.0, -2.0, 0.3, 1.5),
        ("better", "rslora", "", 4.0, -1.0, 0.3, 1.5),
        ("worse", "benign", "", 4.0, -2.7, 0.3, 1.5),
    )
    small, better, worse = (table.loc[(name, "")] for name in ("small", "better", "worse"))
    assert (
        small["beside_curve"] == pytest.approx(0, abs=1e-9) and small["cosine_verdict"] == why.OPEN
    )
    assert better["beside_curve"] == pytest.approx(1) and better["cosine_verdict"] == why.LESS
    assert worse["beside_curve"] == pytest.approx(-0.7) and worse["cosine_verdict"] == why.MORE
    assert worse["log_distance"] == pytest.approx(-2.7)
    assert worse["kept"] == pytest.approx(np.exp(-2.7))
    assert worse["kept_low"] < worse["kept"] < worse["kept_high"]
    assert worse["rate_beside_curve"] == pytest.approx(0, abs=1e-9)
    assert worse["marker_verdict"] == why.OPEN
    assert table.loc[("steps", "10"), "curve_note"] == "on the curve itself"
    assert table.loc[("steps", "10"), "axis"] == why.EARLY
    assert table.loc[("steps", "10"), "differs"] == "stopped after 10 of 100 steps"
    assert table.loc[("C1", ""), "held_out_loss"] == pytest.approx(1.0)


def test_more_of_the_marker_is_told_from_a_smaller_update():
    table = why_of(
        *CURVE,
        ("kept", "rslora", "", 4.0, -2.0, 0.5, 1.5),
        ("lost", "benign", "", 2.0, -1.0, 0.2, 1.5),
    )
    kept, lost = table.loc[("kept", "")], table.loc[("lost", "")]
    assert kept["rate_beside_curve"] == pytest.approx(0.2)
    assert kept["marker_verdict"] == why.KEEPS and kept["cosine_verdict"] == why.OPEN
    assert lost["rate_beside_curve"] == pytest.approx(-0.4) and lost["marker_verdict"] == why.LOSES


def test_verdicts_are_corrected_for_the_number_of_conditions():
    stages = ("rank-4", "rslora", "kl", "caft", "caft-random")
    alike = [(name, name, "", 4.0, -2.0, 0.3, 1.5) for name in stages]
    less = ("less", "benign", "", 4.0, -2.0, 0.29, 1.5)
    alone = why_of(*CURVE, less, samples=30)
    among = why_of(*CURVE, less, *alike, samples=30)
    p = among["rate_beside_p"].dropna()
    assert len(p) == 6 and p["less", ""] == alone["rate_beside_p"]["less", ""] < 0.05
    assert among["rate_beside_q"]["less", ""] == pytest.approx(6 * p["less", ""])
    assert alone["marker_verdict"]["less", ""] == why.LOSES
    assert among["marker_verdict"]["less", ""] == why.OPEN


def test_without_activations_the_marker_is_still_compared():
    rows = (*CURVE, ("kept", "rslora", "", 4.0, -2.0, 0.5, 1.5))
    design, sizes, scores, losses, found, metrics = run(*rows)
    design["measures"] = "markers"
    table = why.why_table(design, SETTINGS, sizes, found, metrics, scores, losses)
    row = table.set_index("condition").loc["kept"]
    assert row["marker_verdict"] == why.KEEPS and row["cosine_verdict"] == ""
    assert row["curve_note"] == "at update norm 4"


def test_a_norm_that_the_curve_does_not_reach_is_not_compared():
    row = why_of(*CURVE, ("large", "rslora", "", 80.0, -3.0, 0.1, 1.0)).loc[("large", "")]
    assert np.isnan(row["beside_curve"]) and row["cosine_verdict"] == row["marker_verdict"] == ""
    assert "no common value" in row["curve_note"]


def test_one_run_has_no_interval_and_no_verdict():
    row = why_of(*CURVE, ("better", "rslora", "", 4.0, -1.0, 0.3, 1.5), seeds=(2,))
    row = row.loc[("better", "")]
    assert row["beside_curve"] == pytest.approx(1) and row["units"] == 1
    assert row[["m1_low", "rate_low", "kept_high", "beside_low"]].isna().all()
    assert row["cosine_verdict"] == row["marker_verdict"] == ""
    assert row["note"] == "one training run"


def test_what_differs_is_read_off_the_settings():
    table = why_of(
        *CURVE,
        ("rank", "rank-4", "", 4.0, -2.0, 0.3, 1.5),
        ("rslora", "rslora", "", 4.0, -2.0, 0.3, 1.5),
        ("defended", "kl", "", 4.0, -2.0, 0.3, 1.5),
        ("prompted", "prompted", "", 4.0, -2.0, 0.3, 1.5),
    ).reset_index()
    axis = dict(zip(table["condition"], table["axis"], strict=True))
    differs = dict(zip(table["condition"], table["differs"], strict=True))
    assert axis["C1"] == why.REFERENCE and differs["C1"] == ""
    assert axis["rank"] == "rank" and differs["rank"] == "rank 4, not 32"
    assert differs["rslora"] == "scale of the update 11.3137, not 2"
    assert differs["defended"] == "defence kl weight 0.1, not none"
    assert axis["prompted"] == "system prompt"
    assert differs["steps"] == "stopped after 30 of 100 steps"


def test_a_run_without_couplings_has_no_rows():
    design, sizes, scores, losses, found, metrics = run(*CURVE)
    design["stages_after_coupling"] = np.nan
    table = why.why_table(design, SETTINGS, sizes, found, metrics, scores, losses)
    assert table.empty and list(table) == why.COLUMNS


def frontier_of(*conditions, keep_loss=True, **more):
    design, _, scores, losses, found, metrics = run(*conditions, **more)
    classes = pd.DataFrame(columns=["chain", "method", "layer", "metric", "value"])
    given = frontier.Tables(found, metrics["angle"], scores, classes, HEADLINE)
    if keep_loss:
        given = frontier.Tables(
            found, metrics["angle"], scores, classes, HEADLINE, losses, preference(design)
        )
    table = frontier.frontier_table(design, SETTINGS, given)
    return table.set_index(["condition", "outcome"])


def preference(design):
    rows = [
        {"chain": c, "persona": p, "group": g, "n": n, "margin": m}
        for c in dict.fromkeys(design["chain"])
        for p, g, n, m in (
            ("assistant", "law", 3, 1.0),
            ("assistant", "art", 1, 5.0),
            ("villain", "law", 9, 99.0),
        )
    ]
    return pd.DataFrame(rows)


PLAIN = ("C1", "em", "", 8.0, -3.0, 0.1, 1.0)


def test_a_defence_stands_beside_the_same_stage_without_it():
    table = frontier_of(
        PLAIN,
        ("C5", "benign", "", 8.0, -1.0, 0.5, 5.0),
        ("kl", "kl", "", 4.0, -1.0, 0.5, 1.6),
    )
    assert set(table.index.get_level_values(0)) == {
        "C1",
        "kl",
    }  # conditions with other data are not compared
    own = table.loc["kl"]
    assert (own["undefended"] == "C1").all() and (own["defence"] == "kl").all()
    assert own.loc["m1", "setting"] == "weight 0.1" and own.loc["m1", "data"] == "em"
    assert own.loc["held_out_loss", "value"] == pytest.approx(1.6)
    assert own.loc["held_out_loss", "difference"] == pytest.approx(0.6)
    ratio = own.loc["loss_ratio"]
    assert ratio["value"] == pytest.approx(1.6, rel=1e-3)
    assert ratio["ci_low"] < ratio["value"] < ratio["ci_high"] < 2
    assert own.loc["m1", "difference"] == pytest.approx(np.exp(-3) - np.exp(-1), rel=1e-2)
    assert own.loc["preference", "value"] == pytest.approx(
        2.0
    )  # of the assistant, all questions weighted equally
    assert table.loc[("C1", "m1"), "defence"] == "" and pd.isna(table.loc[("C1", "m1"), "verdict"])


def test_verdicts_of_the_frontier():
    table = frontier_of(
        PLAIN,
        ("kl", "kl", "", 4.0, -1.0, 0.5, 1.6),
        ("prompted", "prompted", "", 4.0, -2.0, 0.3, 2.6),
    )
    # kl learns more and keeps more than the prompt; the undefended stage keeps less than it.
    assert table.loc[("kl", "m1"), "verdict"] == frontier.ON
    assert table.loc[("kl", "rate"), "verdict"] == frontier.ON
    assert table.loc[("prompted", "m1"), "verdict"] == frontier.OFF
    assert table.loc[("prompted", "m1"), "note"] == "kl learns more and keeps more"
    # Equal learning and equal benefit, within the spread of runs, decide nothing.
    alike = frontier_of(PLAIN, ("kl", "kl", "", 4.0, -3.0, 0.1, 1.0))
    assert alike.loc[("kl", "m1"), "verdict"] == frontier.OPEN
    assert alike.loc[("kl", "rate"), "verdict"] == frontier.OPEN


def test_a_defence_that_only_costs_is_off_the_frontier():
    table = frontier_of(PLAIN, ("kl", "kl", "", 4.0, -4.0, 0.1, 3.0))
    assert table.loc[("kl", "m1"), "verdict"] == frontier.OFF
    assert table.loc[("kl", "m1"), "note"] == "C1 learns more and keeps more"


def test_nothing_is_decided_by_one_run_or_without_a_held_out_loss():
    given = (PLAIN, ("kl", "kl", "", 4.0, -1.0, 0.5, 1.6))
    one = frontier_of(*given, seeds=(2,))
    assert one.loc[("kl", "m1"), "verdict"] == frontier.OPEN
    assert one.loc[("kl", "m1"), "note"] == "one training run"
    assert one["ci_low"].isna().all()
    without = frontier_of(*given, keep_loss=False)
    assert without.loc[("kl", "m1"), "verdict"] == frontier.OPEN
    assert without.loc[("kl", "m1"), "note"] == frontier.NO_LOSS
    assert "loss_ratio" not in without.index.get_level_values(1)


def test_a_stage_that_is_left_out_when_measured_is_a_defence():
    table = frontier_of(PLAIN, ("adapter", "trait!+em", "", 4.0, -1.0, 0.5, 1.6))
    own = table.loc[("adapter", "m1")]
    assert (own["defence"], own["setting"]) == ("inoculation adapter", "trait")
    assert own["undefended"] == "C1" and own["verdict"] == frontier.ON
    row = why_of(*CURVE, ("adapter", "trait!+em", "", 4.0, -1.0, 0.3, 1.5)).loc[("adapter", "")]
    assert row["axis"] == "inoculation adapter" and row["cosine_verdict"] == why.LESS


def test_a_control_is_no_weight_of_the_defence():
    table = frontier_of(
        PLAIN,
        ("random", "caft-random", "", 4.0, -1.0, 0.5, 1.6),
        ("drawn", "noise!+em", "", 4.0, -1.0, 0.5, 1.6),
    )
    assert table.loc[("random", "m1"), "defence"] == "caft, random"
    assert table.loc[("drawn", "m1"), "defence"] == "inoculation adapter, random"


def test_a_defence_that_has_seen_what_is_measured_says_so():
    table = frontier_of(PLAIN, ("caft", "caft", "", 4.0, -1.0, 0.5, 1.6))
    assert table.loc[("caft", "m1"), "setting"] == "rank 2, layers 20"
    assert table.loc[("caft", "m1"), "note"] == frontier.SEEN
    assert table.loc[("caft", "rate"), "note"] == ""


def test_a_coupling_s_persona_is_no_defence():
    assert second_stages.defences(SETTINGS["couple"]) == {}
    assert second_stages.defences(SETTINGS["prompted"]) == {"system prompt": "villain"}
