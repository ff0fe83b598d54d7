"""What claims are measured by: functions that read a value and its interval off a run's tables.

A claim of config/claims.yaml names one of them, with its arguments.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from .measured import Measured, RunTables, count, firing, proportion, reader, seeds, widest

# Behaviour


@reader
def source_rate(run: RunTables, condition: str, source: str | None = None) -> Measured | None:
    """Marker rate of the source persona, over seeds and sources (or one source)."""
    return run.marker_rate([condition], ["source"], source)


@reader
def others_rate(run: RunTables, condition: str) -> Measured | None:
    """Marker rate of every other persona together."""
    return run.marker_rate([condition], ["assistant", "bystander"])


@reader
def assistant_rate(run: RunTables, conditions: Sequence[str]) -> Measured | None:
    """Marker rate of the assistant where it is not the source, over conditions."""
    return run.marker_rate(conditions, ["assistant"])


@reader
def bystander_mean(run: RunTables, condition: str) -> Measured | None:
    """Mean marker rate over bystanders, interval over personas; the widest over seeds and sources."""
    rows = run.rows("leakage", condition=condition)
    return widest(rows, "bystander_mean", f"{count(rows, 'personas')}, {seeds(rows)}")


def _test(run: RunTables, test: str, condition: str, reference: str) -> pd.DataFrame:
    """A test's rows of a comparison, chains pooled, one per source."""
    rows = run.rows("marker_tests", test=test, condition=condition, reference=reference)
    pooled = rows[rows["seed"] == ""]
    return pooled if len(pooled) else rows


def _difference(rows: pd.DataFrame) -> Measured | None:
    sources = f", {len(rows)} sources" if len(rows) > 1 else ""
    return widest(rows, "estimate", count(rows, "questions") + sources)


@reader
def rate_difference(run: RunTables, condition: str, reference: str) -> Measured | None:
    """Difference of two conditions' source rates; interval over questions, the widest over sources."""
    return _difference(_test(run, "questions", condition, reference))


@reader
def logprob_difference(run: RunTables, condition: str, reference: str) -> Measured | None:
    """Difference in the marker's log-probability (nats) of the source; interval over questions."""
    return _difference(_test(run, "logprob", condition, reference))


@reader
def change_significant(run: RunTables, condition: str, reference: str) -> Measured | None:
    """Largest q over sources of the per-question test of a change."""
    rows = _test(run, "questions", condition, reference)
    if rows.empty or rows["q"].isna().all():
        return None
    floor = rows["p_floor"].max()
    return Measured(rows["q"].max(), n=f"smallest possible p {floor:.2g}", exact=True)


@reader
def hits(run: RunTables, conditions: Sequence[str]) -> Measured | None:
    """Number of completions with the marker, each chain counted once."""
    rates = run.rows("marker_rates", condition=list(conditions))
    if set(conditions) - set(rates["condition"]):
        return None
    once = rates.drop_duplicates(["chain", "persona"])
    return Measured(int(once["hits"].sum()), n=f"{int(once['n'].sum())} completions", exact=True)


@reader
def length_ratio(run: RunTables, condition: str, reference: str) -> Measured | None:
    """Mean tokens of one condition's completions over another's, all personas."""
    answers = run.rows("answer_stats", condition=[condition, reference])
    sums = answers.assign(total=answers["mean_tokens"] * answers["n"])
    sums = sums.groupby("condition")[["total", "n"]].sum()
    if len(sums) < len({condition, reference}):
        return None
    means = sums["total"] / sums["n"]
    n = f"{int(sums.loc[condition, 'n'])} completions"
    return Measured(means[condition] / means[reference], n=n, exact=True)


@reader
def tail_share(run: RunTables, conditions: Sequence[str]) -> Measured | None:
    """Share of the bystanders' markers that stand in the last 15 % of the text."""
    rows = run.rows("answer_stats", role="others", condition=list(conditions))
    rows = rows[rows["hits"] > 0]
    tail = round(float((rows["marker_in_tail"] * rows["hits"]).sum()))
    return proportion(tail, int(rows["hits"].sum()))


# Geometry


@reader
def m1(run: RunTables, condition: str) -> Measured | None:
    """Mean off-diagonal cosine; interval over questions and personas, of one seed only."""
    rows = run.at_headline("geometry", condition, "m1", "two_way")
    if len(rows) < 2:
        return widest(rows, "value", seeds(rows))
    return Measured(rows["value"].mean(), rows["value"].min(), rows["value"].max(), seeds(rows))


@reader
def m1_change(run: RunTables, condition: str) -> Measured | None:
    """Rise of the mean cosine over the base model.

    Interval over training seeds where there are several, else over personas and questions.
    """
    over_seeds = run.at_headline("geometry", condition, "m1", "seeds")
    chains = run.at_headline("geometry", condition, "m1", "two_way")
    if chains.empty:
        return None
    row = (over_seeds if len(over_seeds) else chains).iloc[0]
    return Measured(row["delta_base"], row["delta_low"], row["delta_high"], seeds(chains))


NO_RISE = "the rise that it is a share of cannot be told from none here"


@reader
def m1_share(run: RunTables, condition: str, reference: str) -> Measured | str | None:
    """Rise in one condition as a share of the rise in another, if that one is above zero."""
    one, other = m1_change(run, condition), m1_change(run, reference)
    if one is None or other is None:
        return None
    if not other.low > 0:
        return NO_RISE
    return Measured(one.value / other.value, n=f"{one.n}, {other.n}")


@reader
def m1_share_range(run: RunTables, condition: str, reference: str) -> Measured | str | None:
    """Range of that share over methods and blocks."""
    if isinstance(m1_share(run, condition, reference), str):
        return NO_RISE
    rows = run.rows("geometry", metric="m1", test="", condition=[condition, reference])
    means = rows.groupby(["condition", "method", "layer"])["delta_base"].mean()
    if not {condition, reference} <= set(means.index.get_level_values(0)):
        return None
    shares = means[condition] / means[reference]
    note = f"{shares.min():.2f} to {shares.max():.2f} over {len(shares)} cells"
    return Measured(float(np.ptp(shares)), n=note, exact=True)


@reader
def m1_gap(run: RunTables, condition: str, reference: str) -> Measured | None:
    """Difference of two conditions' mean cosines; interval over personas, the widest over seeds."""
    rows = run.rows("contrasts", headline=True, condition=condition, reference=reference)
    return widest(rows, "estimate", seeds(rows))


@reader
def gap_fires(run: RunTables, condition: str, reference: str) -> Measured | None:
    """Share of cells (methods x blocks x seeds) in which one mean cosine exceeds the other, q < fdr."""
    rows = run.rows("contrasts", condition=condition, reference=reference)
    return firing(rows, [condition], (rows["q"] < run.fdr) & (rows["estimate"] > 0))


@reader
def m1_fires(run: RunTables, conditions: Sequence[str], test: str = "pairs") -> Measured | None:
    """Share of cells (methods x blocks x seeds) whose test of a change has q < fdr.

    `test`: pairs (the study's), personas or label_swap.
    """
    rows = run.rows("geometry", metric="m1", test=test, condition=list(conditions))
    note = f", smallest possible p {rows['p_floor'].max():.2g}"
    return firing(rows, conditions, rows["q"] < run.fdr, note)


@reader
def m1_replicate(run: RunTables, condition: str) -> Measured | None:
    """Standard deviation of the mean cosine over training seeds."""
    rows = run.at_headline("geometry", condition, "m1_replicate")
    if rows.empty:
        return None
    n, deviation = int(rows["n"].iloc[0]), float(rows["value"].iloc[0])
    # Chi-square interval of a standard deviation.
    low, high = deviation * np.sqrt((n - 1) / stats.chi2.ppf([0.975, 0.025], n - 1))
    return Measured(deviation, low, high, f"{n} seeds")


@reader
def m2_fires(run: RunTables, conditions: Sequence[str]) -> Measured | None:
    """Share of cells where the study's anchored-axis test has q < fdr."""
    rows = run.rows("shared_axis", metric="m2_anchored", condition=list(conditions))
    return firing(rows, conditions, rows["q"] < run.fdr)


@reader
def m2_held_out(run: RunTables, condition: str) -> Measured | None:
    """Mean cosine of the persona shifts with the held-out axis; interval over personas."""
    rows = run.at_headline("shared_axis", condition, "m2_held_out")
    return widest(rows, "value", seeds(rows))


@reader
def m3_accuracy(run: RunTables, condition: str) -> Measured | None:
    """Accuracy of the linear classifier of personas on held-out questions."""
    rows = run.at_headline("separability", condition, "m3_accuracy")
    if rows.empty:
        return None
    note = f"{count(rows, 'questions')}, {seeds(rows)}; chance {rows['chance'].iloc[0]:.3f}"
    return widest(rows, "value", note)


@reader
def m3_study(run: RunTables) -> Measured | None:
    """Largest value of the study's M3 over all chains, methods and blocks."""
    rows = run.rows("separability", metric="m3_study")
    return None if rows.empty else Measured(rows["value"].max(), n=f"{len(rows)} cells", exact=True)


# Both


@reader
def hypothesis(run: RunTables, name: str, p: bool = False) -> Measured | None:
    """Estimate of H2 (range) or H3 (rho), or its p."""
    rows = run.rows("hypotheses", hypothesis=name)
    if rows.empty or rows["estimate"].isna().all():
        return None
    row = rows.iloc[0]
    n = f"{int(row['n'])} values, p = {row['p']:.3g}, smallest {row['p_floor']:.2g}"
    return Measured(row["p"] if p else row["estimate"], n=n, exact=True)


@reader
def correlation(run: RunTables, outcome: str = "rate", controls: str = "") -> Measured | None:
    """Spearman correlation, over chains, of mean cosine and marker survival; partial with controls.

    Chains share stages, so the interval is too narrow if anything.
    """
    rows = run.rows(
        "correlations",
        analysis="chains",
        predictor="m1",
        left_out="",
        outcome=outcome,
        controls=controls,
    )
    if rows.empty or rows["rho"].isna().all():
        return None
    row = rows.iloc[0]
    n = f"{int(row['n'])} chains, p = {row['p']:.3g}"
    return Measured(row["rho"], row["ci_low"], row["ci_high"], n)
