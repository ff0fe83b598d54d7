"""The findings, computed from the tables: sentences and combined tables.

The sentences are correct whatever the numbers are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import pandas as pd

from ..analysis.claims import digest
from ..analysis.verdicts import CONTRADICTED, REPLICATED, VERDICTS
from ..chains import BASE, parse
from .figures._frames import words

#: Headings of the scorecard, by the `where` of claims.yaml, in reading order.
CLAIM_GROUPS = {
    "takeaway 1": "Any fine-tuning destroys the marker",
    "takeaway 2": "Any fine-tuning raises the cosines",
    "takeaway 3": "The one explains the other",
    "takeaway 4": "The induction persona does not matter",
    "takeaway 5": "Leakage has a gradient",
    "table": "Figures of the headline tables",
    "caveat": "Caveats that the study names",
    "later": "What the same project found later",
    "defence": "What could keep personas apart",
    "cause": "Does the geometry cause the behaviour?",
}
#: Below this p, corrected for the number of chains, completions count as samples of another model.
STRANGE = 1e-3
#: The findings mention shares of cut-off answers above this.
LOST = 0.1


def percent(value: float) -> str:
    """A share as a percentage with a sensible number of digits."""
    return (
        "n/a"
        if pd.isna(value)
        else f"{100 * value:.0f} %"
        if value in (0, 1)
        else f"{100 * value:.1f} %"
    )


def findings(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """Sentences of the page in addition to its headline numbers: claims and warnings."""
    checked = tables["logprob_tests"]
    sentences = [second_opinion(checked)] if (checked["p"] < STRANGE).any() else []
    verdicts = tables["scorecard"]["verdict"].value_counts()
    counted = [f"{verdicts[verdict]} {verdict}" for verdict in VERDICTS if verdict in verdicts]
    sentences.append(f"Of the study's {verdicts.sum()} claims: {', '.join(counted)}.")
    return sentences + cut_off(tables["answer_stats"]) + loudest(tables["simulation"])


def in_numbers(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The headline, one row per condition and source: `condition`, `title`, and numbers as text.

    `before`, `after`: share of the source's answers with the marker before and after the last stage,
    chains pooled. `kept`: probability that a new training run keeps a rate above 5 % (95 % interval),
    if there are several runs. `cosine`: mean cosine at the headline, averaged over chains. Empty if not
    measured.
    """
    rates, grid = tables["marker_rates"], tables["design"]
    own = rates[rates["role"] == "source"].groupby(["condition", "source"])[["hits", "n"]].sum()
    counted = rates.drop_duplicates(["chain", "persona"]).set_index(["chain", "persona"])
    several = grid.groupby("condition")["source"].nunique()
    continued = set(grid.loc[grid["stages_after_coupling"] > 0, "condition"])
    m1 = headline(tables["geometry"]).query("metric == 'm1' and test == ''")
    means = m1.groupby("condition")["value"].mean()
    rows = []
    for (condition, source), chains in grid.groupby(["condition", "source"], sort=False):
        befores = [(before, source) for before in dict.fromkeys(chains["before"])]
        known = (condition, source) in own.index and set(befores) <= set(counted.index)
        was = counted.loc[befores, ["hits", "n"]].sum() if known else None
        now = own.loc[(condition, source)] if (condition, source) in own.index else None
        rows.append(
            {
                "condition": condition,
                "title": chains["title"].iloc[0]
                + (f" ({words(source)})" if several[condition] > 1 and source else ""),
                "before": "" if was is None else percent(was["hits"] / was["n"]),
                "after": "" if now is None else percent(now["hits"] / now["n"]),
                "kept": survival(
                    tables["rate_model"], condition, source if several[condition] > 1 else ""
                )
                if condition in continued
                else "",
                "cosine": f"{means[condition]:.3f}" if condition in means else "",
            }
        )
    return pd.DataFrame(rows)


def loudest(table: pd.DataFrame) -> list[str]:
    """A sentence on the false-positive rates of the study's tests, if they are too high; `table`:
    tables/simulation.csv.

    The simulated world `own shift` has the effect that the test looks for.
    """
    own = table[(table["kind"] == "test") & table["as_study"] & (table["world"] != "own shift")]
    loud = own[own["verdict"] == "too many"]
    if loud.empty:
        return []
    worst = loud.loc[loud["rate"].idxmax()]
    return [
        f"On simulated data without an effect, {loud['name'].nunique()} of {own['name'].nunique()} tests "
        f"that the study used reject more often than in 5 %. The worst is {worst['name']}: it rejects in "
        f"{percent(worst['rate'])} of data sets of the simulated world “{worst['world']}”."
    ]


def survival(table: pd.DataFrame, condition: str, source: str) -> str:
    """Probability that a new training run of a condition keeps the marker, as text; empty with a single
    run.

    `table`: tables/rate_model.csv. `source`: a source persona; empty for all sources of the condition.
    """
    rows = table[
        (table["quantity"] == "survival")
        & (table["condition"] == condition)
        & (table["source"] == source)
        & (table["units"] > 1)
    ]
    if rows.empty:
        return ""
    low, high = rows.iloc[0][["ci_low", "ci_high"]]
    return f"{percent(low).removesuffix(' %')} to {percent(high)}"


def decided(scorecard: pd.DataFrame) -> pd.DataFrame:
    """The claims with a verdict, replicated ones first."""
    order = {REPLICATED: 0, CONTRADICTED: 1}
    rows = scorecard[scorecard["verdict"].isin(order)]
    return rows.sort_values("verdict", key=lambda column: column.map(order), kind="stable")


def worded(scorecard: pd.DataFrame) -> pd.DataFrame:
    """The scorecard with ids of claims in its sentences replaced by their texts."""
    texts = dict(zip(scorecard["claim"], scorecard["text"], strict=True))

    def named(said: str) -> str:
        said = re.sub(
            r"^first ([\w-]+)", lambda m: f"first: “{texts.get(m[1], m[1])}” replicated", said
        )
        return re.sub(r"\bthe claim ([\w-]+) is", lambda m: f"“{texts.get(m[1], m[1])}” is", said)

    columns = {name: scorecard[name].fillna("").map(named) for name in ("note", "would_take")}
    return scorecard.assign(**columns)


def undecided(scorecard: pd.DataFrame) -> list[dict[str, Any]]:
    """The claims without a verdict, grouped by reason: verdict, reason, and each claim with what it needs."""
    rest = scorecard[~scorecard["verdict"].isin((REPLICATED, CONTRADICTED))].fillna({"note": ""})
    # The reason is the heading of its claims.
    notes = [
        note.removeprefix(reason).lstrip("; ")
        for note, reason in zip(rest["note"], rest["reason"], strict=True)
    ]
    rest = rest.assign(note=notes)
    groups = [
        {
            "verdict": verdict,
            "reason": reason,
            "claims": rows[["text", "would_take", "note"]].fillna("").to_dict("records"),
        }
        for (verdict, reason), rows in rest.groupby(["verdict", "reason"], sort=False)
    ]
    return sorted(groups, key=lambda group: VERDICTS.index(group["verdict"]))


def takeaways(scorecard: pd.DataFrame) -> list[dict[str, Any]]:
    """The study's five takeaways, each with its claims counted by verdict."""
    found = []
    for where, title in CLAIM_GROUPS.items():
        own = scorecard[scorecard["where"] == where]
        if where.startswith("takeaway") and len(own):
            counts = own["verdict"].value_counts()
            found.append(
                {"title": title, "claims": len(own)} | {v: int(counts.get(v, 0)) for v in VERDICTS}
            )
    return found


def registration(scorecard: pd.DataFrame, registered: pd.DataFrame) -> dict[str, Any]:
    """Hash and date of the registered bars, and the claims whose bar has changed or is new since."""
    since = scorecard["registered"].fillna("").astype(str)
    other = scorecard[since.str.startswith(("changed", "added"))]
    return {
        "sha256": digest(registered),
        "date": "" if registered.empty else str(registered["date"].iloc[0]),
        "data_before": int(max(registered.get("data_before", ()), default=0)),
        "changed": other[["claim", "text", "expected", "registered"]],
    }


def simulated(table: pd.DataFrame) -> dict[str, list[str]]:
    """Names of the tests and intervals that were run on simulated data."""
    return {
        kind: list(dict.fromkeys(table.loc[table["kind"] == kind, "name"]))
        for kind in ("test", "interval")
    }


def cut_off(table: pd.DataFrame) -> list[str]:
    """A sentence on rates that are lower bounds, if any; `table`: tables/answer_stats.csv."""
    own = table[table["role"] == "source"].groupby("condition", sort=False)
    means = own[["truncated", "rate", "rate_finished"]].mean()
    means = means[means["truncated"] > LOST]
    if means.empty:
        return []
    cells = [
        f"{condition} {percent(row.truncated)} (of finished ones {percent(row.rate_finished)} say the "
        f"marker, of all {percent(row.rate)})"
        for condition, row in means.iterrows()
    ]
    return [
        "The marker is at the end of an answer, so rates are lower bounds where answers were cut "
        f"off at the largest length. Of the source's answers: {'; '.join(cells)}."
    ]


def second_opinion(table: pd.DataFrame) -> str:
    """A sentence on whether the completions were sampled from their chains; `table`:
    tables/logprob_tests.csv."""
    checked = table[table["p"].notna()]
    if checked.empty:
        return "These completions are greedy, so nothing says what they should look like."
    strange = checked[checked["p"] < STRANGE]
    if len(strange):
        return (
            f"Do not trust the rates of {', '.join(strange['chain'])}: scored again by PEFT, these "
            "completions do not look like draws from the chains they are counted for."
        )
    largest = checked[["z_surprise", "z_gain"]].abs().max(axis=None)
    sentence = (
        f"Scored again by PEFT, the completions of the {len(checked)} chains with this check look like draws "
        f"from the chains they are counted for: largest |z| {largest:.1f}, "
        f"p\u00a0=\u00a0{checked['p'].min():.2g} over all of them (a warning comes below {STRANGE:g})."
    )
    if checked["z_left_out"].notna().any():
        least = checked["z_left_out"].max()
        sentence += f" Had the engine left the adapters out, z would be {least:.0f} or further off."
    return sentence


def summary(scorecard: pd.DataFrame) -> pd.DataFrame:
    """Counts of claims by heading and verdict; every verdict has a column."""
    group = scorecard["where"].map(CLAIM_GROUPS).fillna(scorecard["where"])
    counts = pd.crosstab(group, scorecard["verdict"]).reindex(columns=VERDICTS, fill_value=0)
    order = [name for name in CLAIM_GROUPS.values() if name in counts.index]
    order += [name for name in counts.index if name not in order]
    return counts.loc[order].rename_axis("claims about").reset_index()


def tests_side_by_side(tests: pd.DataFrame) -> pd.DataFrame:
    """One row per comparison of pooled chains: the difference, and the p of each test in one column each."""
    if tests.empty:
        return pd.DataFrame()
    key = ["condition", "reference", "source"]
    pooled = tests[
        (tests["seed"] == "") | ~tests.duplicated([*key, "test"], keep=False)
    ].drop_duplicates([*key, "test"])
    wide = pooled.set_index([*key, "test"])
    shown: dict[str, tuple[str, str]] = {
        "difference": ("questions", "estimate"),
        "low": ("questions", "ci_low"),
        "high": ("questions", "ci_high"),
        "p_fisher": ("fisher", "p"),
        "p_questions": ("questions", "p"),
        "p_floor": ("questions", "p_floor"),
        "p_firth": ("firth", "p"),
        "p_firth_length": ("firth_length", "p"),
        "p_seeds": ("seeds", "p"),
        "p_equivalent": ("questions", "p_equivalent"),
        "nats": ("logprob", "estimate"),
        "p_nats": ("logprob", "p"),
    }
    rows = []
    for values in pooled[key].drop_duplicates().itertuples(index=False):
        row = dict(zip(key, values, strict=True))
        for name, (test, column) in shown.items():
            at = (*values, test)
            row[name] = wide.loc[at, column] if at in wide.index else float("nan")
        rows.append(row)
    return pd.DataFrame(rows)


def geometry_side_by_side(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """One row per chain at the headline method and block: M1 and its variants."""
    own = headline(tables["geometry"])
    own = own[own["chain"] != ""]
    axis, classes = (
        headline(tables[name]).assign(test="") for name in ("shared_axis", "separability")
    )
    wide, axis, classes = (
        table.set_index(["condition", "chain", "metric", "test"]) for table in (own, axis, classes)
    )
    shown = {
        "m1": (wide, "m1", "value"),
        "change": (wide, "m1", "delta_base"),
        "q_low": (wide, "m1", "delta_low"),
        "q_high": (wide, "m1", "delta_high"),
        "both_low": (wide, "m1 two_way", "delta_low"),
        "both_high": (wide, "m1 two_way", "delta_high"),
        "p_pairs": (wide, "m1 pairs", "p"),
        "p_personas": (wide, "m1 personas", "p"),
        "p_swap": (wide, "m1 label_swap", "p"),
        "p_floor": (wide, "m1 label_swap", "p_floor"),
        "without_longest": (wide, "m1_without_longest", "delta_base"),
        "centred": (wide, "m1_centred", "value"),
        "rank": (wide, "effective_rank", "value"),
        "spread": (wide, "spread", "value"),
        "pc1": (wide, "pc1_share", "value"),
        "angle": (wide, "angle", "value"),
        "angle_lost": (wide, "angle_lost", "value"),
        "cka": (wide, "cka_base", "value"),
        "procrustes": (wide, "procrustes_base", "value"),
        "procrustes_halves": (wide, "procrustes_halves", "value"),
        "subspace": (wide, "subspace_angle", "value"),
        "subspace_halves": (wide, "subspace_angle_halves", "value"),
        "common_shift": (wide, "common_shift", "value"),
        "split_half": (wide, "m1_split_half", "value"),
        "p_axis": (axis, "m2_anchored", "p"),
        "axis": (axis, "m2_held_out", "value"),
        "accuracy": (classes, "m3_accuracy", "value"),
    }
    rows = []
    for condition, chain in own[["condition", "chain"]].drop_duplicates().itertuples(index=False):
        row = {"condition": condition, "chain": chain}
        for name, (table, row_name, column) in shown.items():
            metric, _, test = row_name.partition(" ")
            at = (condition, chain, metric, test)
            row[name] = table.loc[at, column] if at in table.index else float("nan")
        rows.append(row)
    return pd.DataFrame(rows)


#: Labels for metrics of `over_runs`.
RUN_METRICS = {
    "m1": "mean cosine",
    "m1_unbiased": "mean cosine, corrected for noise",
    "angle": "mean angle (degrees)",
    "m1_centred": "mean cosine, centred",
    "spread": "relative spread",
    "mean_distance": "mean distance",
}


def over_runs(table: pd.DataFrame) -> pd.DataFrame:
    """Changes and contrasts over training runs at the headline; `table`: tables/geometry_runs.csv."""
    rows = headline(table)
    rows = rows[(rows["reference"] != "") & rows["metric"].isin(RUN_METRICS)]
    rows = rows.sort_values("metric", key=lambda m: m.map(list(RUN_METRICS).index), kind="stable")
    return rows.assign(measure=rows["metric"].map(RUN_METRICS))


def equivalence(table: pd.DataFrame) -> pd.DataFrame:
    """Differences that were compared with a margin, over training runs; `table`: tables/geometry_runs.csv."""
    rows = headline(table)
    rows = rows[rows["margin"].notna()]
    names = RUN_METRICS | {"log_distance": "log(1 − mean cosine)"}
    return rows.assign(measure=rows["metric"].map(names))


def left_out(table: pd.DataFrame) -> pd.DataFrame:
    """For each number and each kind of unit left out: the lowest and highest value that remains, and
    the left-out unit.

    `table`: tables/leave_one_out.csv, or a table with the same columns.
    """
    keys = ["quantity", "condition", "reference", "dose", "left_out"]
    keys = [key for key in keys if key in table]
    groups = table.groupby(keys, sort=False)["estimate"]
    ends = {
        end: table.loc[rows].set_index(keys)[["name", "estimate", "whole"]]
        for end, rows in (("low", groups.idxmin()), ("high", groups.idxmax()))
    }
    both = (
        ends["low"]
        .drop(columns="whole")
        .merge(ends["high"], left_index=True, right_index=True, suffixes=("_low", "_high"))
    )
    same = both["estimate_low"] == both["estimate_high"]
    both.loc[same, ["name_low", "name_high"]] = "any"
    return both.reset_index()


def components(table: pd.DataFrame) -> pd.DataFrame:
    """Variance components as columns, one row per condition: SD and its interval, or a dash.

    `table`: tables/variance_components.csv, or a table with the same columns.
    """
    said = [
        f"{row.sd:.2g} ({row.ci_low:.2g} to {row.ci_high:.2g})" if row.sd == row.sd else "–"
        for row in table.itertuples(index=False)
    ]
    component = table["component"].replace("source", "between sources")
    table = table.assign(
        said=said, component=component, source=table["source"].fillna("").replace("", "all")
    )
    keys = ["condition", "source", *(["dose"] if "dose" in table else [])]
    table[keys] = table[keys].fillna("")
    names = list(dict.fromkeys(table["component"]))
    wide = table.pivot_table(
        index=keys, columns="component", values="said", aggfunc="first", sort=False
    )
    return wide.reindex(columns=names).fillna("–").reset_index()


#: Labels for quantities in the tables of matched comparisons and of updates.
OUTCOMES = {"m1": "change of the mean cosine", "rate": "marker rate"}
MATCHED_ON = {
    "loss": "last training loss (nats per token)",
    "tokens": "trained tokens",
    "update_norm": "size of the update",
    "answer_length": "tokens per training answer",
}
PAIRS = {"stages": "stages of one chain", "seeds": "runs of other seeds"}


def matched(table: pd.DataFrame) -> pd.DataFrame:
    """Matched comparisons, the possible ones first; `table`: tables/matched.csv."""
    known = table["estimate"].notna()
    rows = pd.concat([table[known], table[~known]])
    # With an estimate, the amount has a column of its own.
    note = rows["note"].fillna("").str.replace(r"^at [^;]*(; )?", "", regex=True)
    return rows.assign(
        outcome=rows["outcome"].map(OUTCOMES), equal=rows["matched_on"].map(MATCHED_ON), note=note
    )


def told_apart(table: pd.DataFrame) -> int:
    """The number of personas between which the classifier decides; 0 without one. `table`:
    tables/separability.csv."""
    chance = table["chance"].dropna()
    return round(1 / chance.iloc[0]) if len(chance) else 0


def half_doses(table: pd.DataFrame) -> pd.DataFrame:
    """Half-doses with labels of their outcomes; `table`: tables/half_dose.csv."""
    return table.assign(outcome=table["outcome"].map(OUTCOMES))


def counted(table: pd.DataFrame, design: pd.DataFrame) -> pd.DataFrame:
    """The table of a measure of answers, one row per chain: its conditions, and the rate of each persona."""
    rates = table.pivot(index="chain", columns="persona", values="rate")
    rates = rates.loc[list(dict.fromkeys(table["chain"])), list(dict.fromkeys(table["persona"]))]
    conditions = design.groupby("chain")["condition"].agg(lambda names: ", ".join(names.unique()))
    rates.insert(0, "condition", rates.index.map(conditions))
    return rates.rename_axis(columns=None).reset_index()[["condition", "chain", *rates.columns[1:]]]


def _stages(name: str) -> str:
    """A chain's name without its seeds: its model, if it is another than the base model, its stages in
    order, and the step where it was stopped early."""
    chain = parse(name)
    stages = [
        s.name + (f" ({s.stop} steps)" if s.stop else "") + (" (left out)" if s.left_out else "")
        for s in chain.stages
    ]
    return ", then ".join([chain.model, *stages] if chain.model != BASE else stages)


def update_sizes(table: pd.DataFrame) -> pd.DataFrame:
    """Size of each stage's update, one row for all its runs; `table`: tables/updates.csv."""
    own = table[table["other"].fillna("") == ""]
    groups = own.assign(stages=own["chain"].map(_stages)).groupby("stages", sort=False)
    return groups.agg(
        runs=("chain", "size"),
        norm=("update_norm", "mean"),
        low=("update_norm", "min"),
        high=("update_norm", "max"),
        steps=("steps", "mean"),
        tokens=("tokens", "mean"),
        loss=("loss", "mean"),
    ).reset_index()


def update_overlaps(table: pd.DataFrame) -> pd.DataFrame:
    """Overlap of the directions of updates, one row for all pairs of the same stages; see `update_sizes`."""
    pairs = table[table["other"].fillna("") != ""]
    keys = ["pair", "one", "other", "seed"]
    last = {name: parse(name).last.seed for name in {*pairs["chain"], *pairs["other"]}}
    same = pairs["chain"].map(last) == pairs["other"].map(last)
    words_of = {
        "pair": pairs["pair"].map(PAIRS),
        "one": pairs["chain"].map(_stages),
        "other": pairs["other"].map(_stages),
        "seed": same.map({True: "same", False: "other"}),
    }
    values = ["cosine", "overlap_a", "baseline_a", "overlap_b", "baseline_b"]
    groups = pairs.assign(**words_of).groupby(keys, sort=False)
    return groups[values].mean().assign(pairs=groups.size()).reset_index()


def causes(tables: Mapping[str, pd.DataFrame]) -> list[dict[str, Any]]:
    """Interventions on states during sampling: `text` and `verdict` of each claim, and `rows`.

    Covers the claims that compare a target with its controls, if the run has these. Rows: the target,
    what it continues or is compared with, its controls, and the better control. Columns: marker rate
    (value, ci_low, ci_high, units), and the target's rate minus it (difference, low, high).
    """
    rates = tables["rate_model"]
    own = rates[(rates["role"] == "source") & (rates["source"] == "")]
    level = own[own["quantity"] == "rate"].drop_duplicates("condition").set_index("condition")
    titles = dict(zip(tables["design"]["condition"], tables["design"]["title"], strict=True))
    bars = dict(tables["registered_claims"][["claim", "bar"]].itertuples(index=False))
    found = []
    for score in tables["scorecard"].itertuples(index=False):
        arm = json.loads(bars.get(score.claim, "{}")).get("measure", {}).get("beyond_controls")
        if not arm or arm["condition"] not in level.index:
            continue
        apart = own[(own["quantity"] == "difference") & (own["condition"] == arm["condition"])]
        apart = apart.drop_duplicates("reference").set_index("reference")
        others = [name for name in apart.index if name not in arm["controls"]]
        rows = []
        for name in (arm["condition"], *others, *arm["controls"]):
            row = {"condition": name, "title": titles.get(name, "")}
            if name in level.index:
                row |= level.loc[name, ["value", "ci_low", "ci_high", "units"]].to_dict()
            if name in apart.index:
                ends = apart.loc[name, ["value", "ci_low", "ci_high"]]
                row |= dict(zip(("difference", "low", "high"), ends, strict=True))
            rows.append(row)
        ends = (score.measured, score.ci_low, score.ci_high)
        better = {"condition": "the better control"}
        rows.append(better | dict(zip(("difference", "low", "high"), ends, strict=True)))
        columns = ["condition", "title", "value", "ci_low", "ci_high", "difference", "low", "high"]
        table = pd.DataFrame(rows, columns=[*columns, "units"]).fillna({"title": ""})
        found.append({"text": score.text, "verdict": score.verdict, "rows": table})
    return found


def unrelated(table: pd.DataFrame) -> float:
    """Linear CKA of random vectors with the run's dimensions; `table`: tables/geometry.csv."""
    return float(table.loc[table["metric"] == "cka_unrelated", "value"].mean())


def headline(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of a table at the headline method and block."""
    return table[table["headline"]]
