"""The tables of docs/models.md, from what tools/models.py keeps of finished runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import altair as alt
import models as kept_runs
import numpy as np
import pandas as pd
import vl_convert
from markdown_tables import cell, lines, raw_table, shown
from models import CONDITIONS, SCORECARD, Kept, Model
from persona_collapse import chains, yaml_files
from persona_collapse.report import findings
from persona_collapse.report.figures._render import PAPER_FONT, quiet
from persona_collapse.report.figures._style import PALETTE, SHAPES
from persona_collapse.statistics import clopper_pearson, combined, over_runs, spearman_floor
from persona_collapse.tables_io import read_csv

#: What the page needs of a run's tables.
KEPT = {
    **CONDITIONS,
    "scorecard": Kept(SCORECARD),
    "updates": Kept(("chain", "update_norm", "tokens", "answer_length"), "other == ''"),
    "geometry": Kept(
        ("chain", "value"), "headline and metric == 'm1' and test == ''", measure="activations"
    ),
    "half_dose": Kept((
        "arm", "reference", "outcome", "half_dose", "ci_low", "ci_high", "ratio", "ratio_low", "ratio_high",
        "units", "note",
    )),
    "logprob_tests": Kept(("chain", "completions", "z_surprise", "z_gain", "z_left_out", "p")),
}  # fmt: skip


def size(parameters: float) -> str:
    """A number of parameters in words: 1.54 B, 135 M."""
    unit, name = (1e9, "B") if parameters >= 1e9 else (1e6, "M")
    return f"{parameters / unit:.3g}\u00a0{name}"


def number(value: float, digits: int = 3) -> str:
    """A number to three significant digits, without exponents where it can be helped."""
    if pd.isna(value):
        return "–"
    return f"{value:.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def with_interval(value: float, low: float, high: float) -> str:
    """A value with its interval, if it has one."""
    if pd.isna(low) or pd.isna(high):
        return number(value)
    return f"{number(value)} ({number(low)} to {number(high)})"


def runs_table(models: Sequence[Model]) -> str:
    """What was run on each model, and with what."""
    rows = []
    for model in models:
        record, at = model.record, model.tables["geometry_runs"].iloc[0]
        rows.append([
            f"[{cell(model.name)}](models/{model.name}/record.json)",
            f"{size(record['parameters'])} ({cell(record['family'])})",
            cell(record["model"]),
            f"{record['trainings']}",
            number(model.tables["logprob_tests"]["p"].min()),
            f"{cell(at['method'])}, {at['layer']}",
            cell("; ".join(record["devices"])),
            cell(", ".join(f"{name} {version}" for name, version in record["versions"].items())),
        ])  # fmt: skip
    head = [
        "run", "size", "model", "adapters", "answers checked, smallest p", "M1 at", "device", "versions",
    ]  # fmt: skip
    commands = [f"- {cell(model.name)}: `{model.record['command']}`" for model in models]
    return "\n".join([*raw_table(head, rows), "", "Commands:", "", *commands])


def _one_run(row: Any) -> bool:
    """Does a line of the scorecard say that a single training run is behind its interval?"""
    return re.search(r"\b1 training run\b", str(row.n)) is not None


def _cards(models: Sequence[Model]) -> list[dict[str, Any]]:
    """Each model's scorecard as rows by claim."""
    return [
        {row.claim: row for row in model.tables["scorecard"].itertuples(index=False)}
        for model in models
    ]


def claims_table(models: Sequence[Model]) -> str:
    """Claim by claim: published, and each model's value, interval, verdict and reason; by heading.

    Claims that no model could measure come last, with the reasons.
    """
    cards = _cards(models)
    texts = {
        claim: row for card in cards for claim, row in card.items()
    }  # the largest's, if it has it
    order = list(dict.fromkeys(claim for card in reversed(cards) for claim in card))
    measured = [c for c in order if any(c in card and pd.notna(card[c].measured) for card in cards)]
    head = ["claim", "published (7B)", *(cell(m.name) for m in reversed(models))]
    parts = []
    for where in dict.fromkeys([*findings.CLAIM_GROUPS, *(texts[c].where for c in measured)]):
        rows = []
        for claim in (c for c in measured if texts[c].where == where):
            first = texts[claim]
            said = [lines([cell(first.text), f"*{cell(first.expected)}*"]), cell(first.published)]
            for card in reversed(cards):
                row = card.get(claim)
                if row is None:
                    said.append("no such claim then")
                    continue
                verdict = f"**{row.verdict}**: {cell(row.reason)}"
                if row.expected != first.expected:
                    verdict += f" (expected there: {cell(row.expected)})"
                value = with_interval(row.measured, row.ci_low, row.ci_high)
                one = " (one run)" if _one_run(row) else ""
                said.append(lines([value + one, verdict] if pd.notna(row.measured) else [verdict]))
            rows.append(said)
        if rows:
            title = findings.CLAIM_GROUPS.get(where, where)
            parts += ["", f"### {title}", "", *raw_table(head, rows)]
    rest: dict[str, list[str]] = {}
    for claim in (c for c in order if c not in measured):
        rest.setdefault(texts[claim].reason, []).append(cell(texts[claim].text))
    if rest:
        parts += ["", "### Not measured in the runs of this page", ""]
        parts += [f"- {cell(reason)}: {'; '.join(own)}." for reason, own in rest.items()]
    return "\n".join(parts[1:])


@dataclass(frozen=True)
class Cell:
    """A mean over training runs, with what it can say of its precision."""

    value: float
    low: float
    high: float
    units: float

    def text(self, digits: int) -> str:
        """In words; NaN as nothing."""
        if pd.isna(self.value):
            return ""
        few = ("not trained", "one run")
        without = few[int(self.units)] if self.units < 2 else f"{self.units:.0f} runs alike"
        return shown(self.value, self.low, self.high, digits, without)


NOTHING = Cell(np.nan, np.nan, np.nan, 0)


def _cut(found: Cell) -> Cell:
    """A share whose interval is cut at 0 and 1."""
    low, high = np.clip([found.low, found.high], 0.0, 1.0)
    return replace(found, low=float(low), high=float(high))


def mean_over_runs(rows: pd.DataFrame, column: str) -> Cell:
    """Mean of a column over a condition's chains, those of one root averaged; Student's interval."""
    rows = rows[rows[column].notna()]
    if rows.empty:
        return NOTHING
    over = over_runs(rows[column], [chains.root(name) for name in rows["chain"]])
    trained = 0 if set(rows["chain"]) == {chains.BASE} else over.units
    return Cell(over.estimate, over.low, over.high, trained)


def _row(table: pd.DataFrame, value: str, **where: Any) -> Cell:
    """The value of the first row whose columns have these values."""
    for column, wanted in where.items():
        table = table[table[column] == wanted]
    if table.empty or pd.isna(table.iloc[0][value]):
        return NOTHING
    row = table.iloc[0]
    return Cell(row[value], row["ci_low"], row["ci_high"], row["units"])


def sources(model: Model, condition: str = "") -> list[str]:
    """The source personas of a run, or of one of its conditions, in the order of its design."""
    design = model.tables["design"]
    own = design[design["condition"] == condition] if condition else design
    return [source for source in dict.fromkeys(own["source"]) if source]


def shared_source(models: Sequence[Model]) -> str | None:
    """The source by which runs are compared: empty if all have the same ones, else the first that all
    have; None if there is none."""
    every = [sources(model) for model in models]
    if all(set(own) == set(every[0]) for own in every):
        return ""
    shared = set.intersection(*map(set, every))
    return next((source for source in every[0] if source in shared), None)


def source_label(model: Model, condition: str, source: str) -> str:
    """What `source` is called in the rates of a condition: nothing where there is no other, because the
    table has rows by source for conditions with several."""
    return "" if sources(model, condition) == [source] else source


def modelled(
    model: Model, condition: str, quantity: str, source: str | None = "", **where: Any
) -> Cell:
    """A quantity of the model of training runs; one run says nothing of others.

    `source`: of this source alone; empty: of all of the condition's; None: of no source.
    """
    if source is None:
        return NOTHING
    where |= {"condition": condition, "quantity": quantity}
    where |= {"source": source_label(model, condition, source)}
    found = _row(model.tables["rate_model"], "value", **where)
    return replace(found, low=np.nan, high=np.nan) if found.units == 1 else found


def rate(model: Model, condition: str, role: str, source: str | None = "") -> Cell:
    """How often a persona of this role says the marker; `source` as in `modelled`."""
    return modelled(model, condition, "rate", source, role=role)


def level(model: Model, condition: str, metric: str, **where: Any) -> Cell:
    """A metric of the geometry over runs: its level, or its difference to a `reference` (None: no such)."""
    where = {"reference": "", "dose": ""} | where
    column = "estimate" if where["reference"] else "value"
    table = model.tables["geometry_runs"]
    if "headline" in table:
        where["headline"] = True
    return _row(table, column, condition=condition, metric=metric, **where)


def _told(model: Model, condition: str) -> Cell:
    return _cut(level(model, condition, "m3_accuracy"))


def before(model: Model, condition: str) -> str:
    """The condition whose chains a condition goes on from; empty where that is none."""
    design, rates = model.tables["design"], model.tables["rate_model"]
    own = design[(design["condition"] == condition) & (design["stages_after_coupling"] > 0)]
    others = set(design[design["chain"].isin(own["before"])]["condition"])
    found = rates[(rates["condition"] == condition) & rates["reference"].isin(others)]["reference"]
    return str(found.iloc[0]) if len(found) else ""


def _drop(model: Model, condition: str, source: str | None = "") -> Cell:
    """The source's marker rate minus that before the second stage."""
    reference = before(model, condition) or None
    return modelled(model, condition, "difference", source, reference=reference)


def shares_of_false(model: Model, law: bool) -> pd.DataFrame:
    """Of the questions about the law, or of all others, the share in which the false answer is likelier.

    Asked as the assistant; one row per chain, column `share`. Empty for a run without `preference`.
    """
    table = model.tables.get("preference")
    if table is None:
        return pd.DataFrame({"chain": [], "share": []})
    own = table[(table["group"] == "Law") == law]
    sums = own.groupby("chain", as_index=False)[["preferred", "n"]].sum()
    return sums.assign(share=sums["preferred"] / sums["n"])


def _prefers_false(model: Model, names: Sequence[str], law: bool) -> Cell:
    """Mean of `shares_of_false` over these chains."""
    shares = shares_of_false(model, law)
    return _cut(mean_over_runs(shares[shares["chain"].isin(names)], "share"))


def minus_before(shares: pd.DataFrame, cells: pd.DataFrame) -> Cell:
    """Mean over a condition's chains of the share, minus that of the chain before the second stage.

    `shares`: columns chain and share; `cells`: the condition's rows of the design.
    """
    own = shares.set_index("chain")["share"]
    cells = cells.drop_duplicates("chain")
    change = cells["chain"].map(own) - cells["before"].map(own)
    return mean_over_runs(cells.assign(change=change), "change")


def _undosed(model: Model) -> pd.DataFrame:
    """The design without chains that were stopped early, which have a table of their own, and without
    shifts, which are on another page."""
    design = model.tables["design"]
    known = design["chain"].isin(model.tables["training"]["chain"])
    known |= design["chain"].map(chains.untrained)
    return design[known & ~design["chain"].str.contains("~")]


def _conditions(models: Sequence[Model]) -> Iterator[tuple[str, list[tuple[Model, pd.DataFrame]]]]:
    """Each condition that was trained to its end, with the models that have it, large ones first."""
    designs = [(model, _undosed(model)) for model in reversed(models)]
    for name in dict.fromkeys(c for _, design in designs for c in design["condition"]):
        own = [(m, design[design["condition"] == name]) for m, design in designs]
        yield name, [(model, rows) for model, rows in own if len(rows)]


def conditions_table(models: Sequence[Model]) -> str:
    """Every condition of every model: rates, answers, geometry."""
    rows = []
    for name, own in _conditions(models):
        for model, cells in own:
            stats = model.tables["answer_stats"]
            stats = stats[(stats["condition"] == name) & stats["chain"].isin(cells["chain"])]
            role = "source" if (stats["role"] == "source").any() else "others"
            main = stats[stats["role"] == role]
            rows.append([
                cell(f"{name}: {cells['title'].iloc[0]}"),
                cell(model.name),
                f"{cells['chain'].nunique()}",
                rate(model, name, "source").text(2),
                _cut(mean_over_runs(stats[stats["role"] == "source"], "rate_finished")).text(2),
                rate(model, name, "bystander").text(2),
                mean_over_runs(main, "mean_tokens").text(0),
                _cut(mean_over_runs(main, "truncated")).text(2),
                mean_over_runs(main, "marker_logprob").text(1),
                level(model, name, "m1").text(3),
                _told(model, name).text(2),
                *(_prefers_false(model, list(cells["chain"]), law).text(2) for law in (True, False)),
            ])  # fmt: skip
    head = [
        "condition", "run", "chains", "source says the marker", "of finished answers", "others", "tokens",
        "cut off", "log-probability", "M1", "persona told", "prefers the false answer: law", "elsewhere",
    ]  # fmt: skip
    return "\n".join(raw_table(head, rows))


def blocks_table(
    models: Sequence[Model], pairs: Callable[[Model], Iterable[tuple[str, str]]]
) -> str:
    """The mean cosine of conditions minus that of others, at every block. `pairs`: condition, reference.

    With the headline's method. A condition that was stopped early has a row per stop. Runs that were kept
    with the headline's block alone are left out.
    """
    found = []
    for model in models:
        table = model.tables.get("geometry_runs", pd.DataFrame())
        if "headline" not in table:
            continue
        table = table[table["metric"] == "m1"]
        table = table[table["method"] == table.loc[table["headline"], "method"].iloc[0]]
        for name, other in pairs(model):
            own = table[(table["condition"] == name) & (table["reference"] == other)]
            for dose, rows in own.groupby("dose", sort=False, dropna=False):
                stop = "" if pd.isna(dose) or dose == "" else f", {dose} steps"
                values = {
                    int(row["layer"]): Cell(
                        row["estimate"], row["ci_low"], row["ci_high"], row["units"]
                    )
                    for _, row in rows.iterrows()
                }
                found.append((cell(model.name), cell(f"{name}{stop}"), cell(other), values))
    blocks = sorted({block for *_, values in found for block in values})
    rows = [[*words, *(values.get(b, NOTHING).text(3) for b in blocks)] for *words, values in found]
    head = ["run", "condition", "minus", *(f"block {block}" for block in blocks)]
    return "\n".join(raw_table(head, rows))


def _from_before_and_base(model: Model) -> Iterator[tuple[str, str]]:
    for name in dict.fromkeys(model.tables["design"]["condition"]):
        for other in filter(None, [before(model, name), chains.BASE]):
            yield name, other


def blocks_of_second_stages(models: Sequence[Model]) -> str:
    """`blocks_table` of every trained condition, minus the one before its second stage and the base."""
    return blocks_table(models, _from_before_and_base)


def _second(chain: str, after: float) -> str:
    """The stages that follow the coupling in a chain, without seeds."""
    stages = [stage for stage in chains.parse(chain).stages if not stage.left_out]
    return ", then ".join(stage.name for stage in stages[-int(after) :])


def _lead(model: Model, names: Sequence[str]) -> Cell:
    """By how much the source puts the marker's log-probability above the others', in nats."""
    stats = model.tables["answer_stats"]
    stats = stats[stats["chain"].isin(names)].drop_duplicates(["chain", "source", "role"])
    wide = stats.pivot(index=["chain", "source"], columns="role", values="marker_logprob")
    if not {"source", "others"} <= set(wide):
        return NOTHING
    return mean_over_runs((wide["source"] - wide["others"]).rename("lead").reset_index(), "lead")


def stages_table(models: Sequence[Model]) -> str:
    """What survives, by kind of second stage: conditions that go on from a coupling."""
    rows = []
    for name, own in _conditions(models):
        for model, cells in own:
            cells = cells[cells["stages_after_coupling"] > 0]
            if cells.empty:
                continue
            first = cells.iloc[0]
            second = _second(first["chain"], first["stages_after_coupling"])
            data = model.tables["training"].set_index("chain")["name"].get(first["chain"], "")
            lengths = model.tables["updates"]
            lengths = lengths[lengths["chain"].isin(cells["chain"])]["answer_length"]
            reference, here = before(model, name), sources(model, name)
            alike = not reference or set(here) == set(sources(model, reference))
            which = "" if alike else here[0] if len(here) == 1 else None
            survived = model.tables["rate_model"].query(
                "condition == @name and source == '' and quantity == 'survival'"
            )
            rows.append((second, [
                cell(f"{second}" + (f" (data: {data})" if data and data != second else "")),
                cell(f"{name}: {first['title']}"),
                cell(model.name),
                number(lengths.mean()),
                rate(model, reference, "source", which).text(2),
                rate(model, name, "source").text(2),
                " ".join(f"{row.hits:.0f} of {row.n:.0f}" for row in survived.itertuples()),
                " → ".join(_lead(model, cells[at]).text(1) for at in ("before", "chain")),
                level(model, name, "m1", reference=reference or None).text(3),
            ]))  # fmt: skip
    rows.sort(key=lambda row: row[0])  # stable: conditions and models stay in order
    head = ["second stage", "condition", "run", "tokens per training answer", "source before", "source after",
            "runs that kept it", "source's lead, nats", "M1 minus before"]  # fmt: skip
    return "\n".join(raw_table(head, [row for _, row in rows]))


def sources_table(models: Sequence[Model]) -> str:
    """By source persona: the marker, and the geometry of the same chains, where a run has several sources."""
    rows = []
    for name, own in _conditions(models):
        for model, cells in own:
            here = sources(model, name)
            if len(here) < 2 or cells["stages_after_coupling"].isna().all():
                continue
            stats, geometry = model.tables["answer_stats"], model.tables.get("geometry")
            for source in here:
                names = cells[cells["source"] == source]["chain"]
                told = stats[stats["chain"].isin(names) & (stats["source"] == source)]
                told = told[told["role"] == "source"].drop_duplicates("chain")
                m1 = NOTHING
                if geometry is not None:
                    at = geometry["chain"].isin(names)
                    m1 = mean_over_runs(geometry[at].drop_duplicates("chain"), "value")
                rows.append([
                    cell(f"{name}: {cells['title'].iloc[0]}"),
                    cell(model.name),
                    cell(source),
                    rate(model, name, "source", source).text(2),
                    mean_over_runs(told, "marker_logprob").text(1),
                    _lead(model, names).text(1),
                    m1.text(3),
                ])  # fmt: skip
    if not rows:
        return "Each of these runs has one source."
    head = [
        "condition",
        "run",
        "source",
        "source says the marker",
        "log-probability",
        "lead, nats",
        "M1",
    ]
    return "\n".join(raw_table(head, rows))


def doses_table(models: Sequence[Model]) -> str:
    """Second stages that were stopped early, by steps; and after how many steps half is done."""
    rows = []
    designs = [(m, m.tables["design"]) for m in reversed(models)]
    stopped = [(m, d[d["chain"].str.contains("~")]) for m, d in designs]
    for name in dict.fromkeys(c for _, d in stopped for c in d["condition"]):
        for model, cells in stopped:
            cells = cells[cells["condition"] == name]
            steps = cells["chain"].map(lambda chain: chains.parse(chain).last.stop)
            for dose, own in cells.groupby(steps):
                stats = model.tables["answer_stats"]
                stats = stats[stats["chain"].isin(own["chain"]) & (stats["condition"] == name)]
                source = stats[stats["role"] == "source"]
                rows.append([
                    cell(f"{name}: {own['title'].iloc[0]}"),
                    cell(model.name),
                    f"{dose}",
                    _cut(mean_over_runs(source, "rate")).text(2),
                    mean_over_runs(source, "mean_tokens").text(0),
                    level(model, name, "m1", dose=str(dose)).text(3),
                ])  # fmt: skip
    if not rows:
        return "No second stage was stopped early in these runs."
    head = ["condition", "run", "steps", "source says the marker", "tokens", "M1"]
    halves = [
        [cell(model.name), cell(row.arm), cell(findings.OUTCOMES[row.outcome]),
         with_interval(row.half_dose, row.ci_low, row.ci_high), cell(row.note)]
        for model in reversed(models)
        for row in model.tables["half_dose"].itertuples(index=False)
    ]  # fmt: skip
    made = raw_table(head, rows)
    if halves:
        made += ["", *raw_table(["run", "arm", "of the", "steps to half of it", "note"], halves)]
    return "\n".join(made)


def earlier_doses_table(_: Sequence[Model]) -> str:
    """Second stages of an earlier run of SmolLM2, stopped early: one training run in each cell."""
    kept = read_csv(kept_runs.ROOT / "docs/doses/answer_stats.csv")
    own = kept[kept["role"] == "source"].drop_duplicates("chain").set_index("chain")
    stages = {"em": "false answers", "em-control": "true answers", "benign": "word problems"}
    coupled = "couple-villain@42"
    rows = []
    for stage, title in stages.items():
        whole = f"{coupled}+{stage}@42"
        names = [coupled, *(f"{whole}~{dose}" for dose in (3, 10, 30, 100)), whole]
        cells = []
        for row in own.loc[names].itertuples():
            low, high = map(float, clopper_pearson(row.hits, row.n))
            cells.append(f"{shown(row.rate, low, high)}; {row.mean_tokens:.0f}")
        rows.append([title, *cells])
    return "\n".join(raw_table(["steps", "0", "3", "10", "30", "100", "all"], rows))


@dataclass(frozen=True)
class Point:
    """A model's value with its interval, and its size."""

    model: Model
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Trend:
    """A quantity over models, small ones first: `points`; `steps` between neighbours; `slope` per decade.

    Of steps and slope: value, low, high. Their intervals are over training runs of these very models.
    """

    points: list[Point]
    steps: list[tuple[float, float, float]]
    slope: tuple[float, float, float]

    @property
    def said(self) -> str:
        """Which way the value goes with size, by the steps and the slope whose intervals leave out 0."""
        *signs, overall = (
            int(low > 0) - int(high < 0) for _, low, high in (*self.steps, self.slope)
        )
        ways = set(signs) - {0}
        if len(ways) > 1:
            return "up and down"
        if not ways and not overall:
            return "no difference shown"
        word = "rises" if 1 in {*ways, overall} else "falls"
        if all(signs):
            return f"{word} at each step" if len(signs) > 1 else word
        if overall:
            return f"{word} over all, not at each step"
        return f"{word} at {sum(map(bool, signs))} of {len(signs)} steps"


def trend(points: Sequence[Point]) -> Trend | None:
    """The trend of a quantity that two models or more have with an interval; else None.

    `slope`: least squares over log10 of the number of parameters.
    """
    own = [p for p in points if np.isfinite([p.value, p.low, p.high]).all()]
    own.sort(key=lambda p: p.model.record["parameters"])
    at = np.log10([p.model.record["parameters"] for p in own])
    if len(own) < 2 or not np.ptp(at):
        return None

    def sum_of(weights: Sequence[float], parts: Sequence[Point]) -> tuple[float, float, float]:
        given = np.array([[p.value, p.low, p.high] for p in parts]).T
        value, low, high = map(float, combined(weights, *given))
        return value, low, high

    centred = at - at.mean()
    slope = sum_of(list(centred / (centred @ centred)), own)
    return Trend(own, [sum_of([-1, 1], pair) for pair in pairwise(own)], slope)


#: What each claim measures, by its id.
MEASURES: dict[str, Any] = {
    claim["id"]: claim.get("measure", {})
    for claim in yaml_files.load_list(kept_runs.ROOT / "config/claims.yaml")
}


def _sources_measured(model: Model, measure: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """The sources that a claim's measure covers in a run: the one it names, those of its conditions, or
    all of a run if it names neither."""
    found: set[str] = set()
    for arguments in measure.values():
        given = arguments or {}
        names = [given.get("condition"), given.get("reference"), *given.get("conditions", [])]
        every = {s for name in filter(None, names) for s in sources(model, name)}
        if not any(names):
            every = set(sources(model))
        found |= {given["source"]} if "source" in given else every
    return found


def _claim_trends(models: Sequence[Model]) -> Iterator[tuple[list[str], Trend]]:
    """Claims whose value has an interval over runs on two models or more.

    Where models have a claim's conditions with different sources, those are compared that agree.
    """
    cards = _cards(models)
    for claim in dict.fromkeys(c for card in reversed(cards) for c in card):
        own = MEASURES.get(claim, {})
        rows = [(m, card[claim]) for m, card in zip(models, cards, strict=True) if claim in card]
        rows = [(m, row) for m, row in rows if pd.notna(row.measured)]
        covered = [frozenset(_sources_measured(m, own)) for m, _ in rows]
        most = max(covered, key=covered.count, default=None)
        rows = [row for row, its in zip(rows, covered, strict=True) if its == most]
        found = trend([
            Point(m, row.measured, row.ci_low, row.ci_high) for m, row in rows if not _one_run(row)
        ])  # fmt: skip
        if found:
            row = rows[-1][1]
            yield [cell(row.text), cell(row.published)], found


#: What may collapse, in words, and how a model's condition tells it, by one source if it can.
COLLAPSE: dict[str, Callable[[Model, str, str | None], Cell]] = {
    "source's marker rate minus that before the second stage": _drop,
    "log(1 − M1) minus the base's": lambda m, c, _: level(
        m, c, "log_distance", reference=chains.BASE
    ),
    "persona told": lambda m, c, _: _told(m, c),
}


def _condition_trends(models: Sequence[Model]) -> Iterator[tuple[list[str], Trend]]:
    """Conditions' measures of collapse that have an interval over runs on two models or more.

    Conditions of the same chains count once, and the base is not trained.
    """
    source = shared_source(models)
    for what, read in COLLAPSE.items():
        seen = set()
        for name, own in _conditions(models):
            chains_of = tuple(frozenset(cells["chain"]) for _, cells in own)
            found_of = [(m, read(m, name, source)) for m, _ in own]
            over = [(m, f) for m, f in found_of if f.units > 1 or name == chains.BASE]
            found = trend([Point(m, f.value, f.low, f.high) for m, f in over])
            if found and chains_of not in seen:
                seen.add(chains_of)
                yield [cell(what), cell(f"{name}: {own[0][1]['title'].iloc[0]}")], found


def _trend_row(found: Trend) -> list[str]:
    """Values, steps, slope and what they say, in cells."""
    values = [
        f"{cell(p.model.name)}: {with_interval(p.value, p.low, p.high)}" for p in found.points
    ]
    sizes = [size(p.model.record["parameters"]) for p in found.points]
    steps = [
        f"{small} → {large}: {with_interval(*step)}"
        for (small, large), step in zip(pairwise(sizes), found.steps, strict=True)
    ]
    return [lines(values), lines(steps), with_interval(*found.slope), found.said]


TREND = ["value", "difference", "per tenfold of size", "with size"]


def sizes_tables(models: Sequence[Model]) -> str:
    """Does collapse grow or shrink with size? Claims and conditions over the models, a run of each size."""
    several = models
    models = list({model.record["parameters"]: model for model in reversed(several)}.values())[::-1]
    claims, conditions = list(_claim_trends(models)), list(_condition_trends(models))
    # The same numbers may stand in several claims.
    every = list({tuple(_trend_row(found)): found for _, found in (*claims, *conditions)}.values())
    if not every:
        return "A comparison takes two models whose values have intervals over training runs."
    steps = [step for found in every for step in found.steps]
    apart = sum(low > 0 or high < 0 for _, low, high in steps)
    ways = pd.Series([found.said for found in every]).value_counts()
    said = [
        f"Of {len(every)} quantities: {'; '.join(f'{n} {way}' for way, n in ways.items())}. Of {len(steps)} "
        f"steps between neighbours {apart} leave out 0; if size changed nothing and quantities were "
        f"independent, about {0.05 * len(steps):.0f} would. Many restate one another."
    ]
    if len(models) > 2:
        floor = spearman_floor(range(len(models)), range(len(models)))
        said.append(
            f"No p is given: over {len(models)} models a rank test cannot give less than {floor:.2g}."
        )
    if len(models) < len(several):
        names = ", ".join(model.name for model in models)
        said.append(f"Of several runs on models of one size, the first by name is used: {names}.")
    if (source := shared_source(models)) != "":
        whose = f"rates are those of {source}" if source else "rates of conditions are not compared"
        said.append(
            f"The runs do not have the same source personas: {whose}, and a claim is compared between "
            "runs that have it with the same ones. Geometry is that of all chains of a condition."
        )
    families: dict[str, list[str]] = {}
    for model in models:
        families.setdefault(model.record["family"], []).append(model.name)
    if len(families) > 1:
        groups = "; ".join(f"{family}: {', '.join(own)}" for family, own in families.items())
        said.append(
            f"Size is not the only difference: the models are of {len(families)} families ({groups})."
        )
    parts = [" ".join(map(cell, said)), ""]
    parts += raw_table(
        ["claim", "published (7B)", *TREND], [[*key, *_trend_row(found)] for key, found in claims]
    )
    parts += ["", "Conditions, by what may have collapsed:", ""]
    parts += raw_table(
        ["measure", "condition", *TREND], [[*key, *_trend_row(found)] for key, found in conditions]
    )
    return "\n".join(parts)


#: Tables of the page by their marks.
TABLES: dict[str, Callable[[Sequence[Model]], str]] = {
    "runs": runs_table,
    "claims": claims_table,
    "conditions": conditions_table,
    "sources": sources_table,
    "second stages": stages_table,
    "doses": doses_table,
    "earlier doses": earlier_doses_table,
    "sizes": sizes_tables,
}


#: The figure's panels: what is on the y axis, and how a model's condition tells it, by one source if it can.
PANELS: dict[str, Callable[[Model, str, str | None], Cell]] = {
    "source says the marker": lambda m, c, source: rate(m, c, "source", source),
    "log(1 − M1) minus the base's": COLLAPSE["log(1 − M1) minus the base's"],
}


def figures(models: Sequence[Model]) -> dict[str, str]:
    """SVGs by name: what couplings and the stages after them do to marker and geometry, by model.

    Conditions of couplings that two models or more have, or the only one. Means with 95 % intervals over
    training runs.
    """
    rows = []
    source = shared_source(models)
    for name, own in _conditions(models):
        several = len(own) > 1 or len(models) == 1
        if several and any(rate(model, name, "source").units for model, _ in own):
            title = f"{name}: {own[0][1]['title'].iloc[0]}"
            found_of = [
                (y, model, read(model, name, source))
                for y, read in PANELS.items()
                for model, _ in own
            ]
            rows += [
                {"y": y, "condition": title, "model": model.name,
                 "value": found.value, "low": found.low, "high": found.high}
                for y, model, found in found_of if found.units
            ]  # fmt: skip
    table = pd.DataFrame(rows)
    names = sorted(table["condition"].unique())
    # The reader's font may be wider than the one that is measured here.
    legend = alt.Legend(orient="bottom", columns=2, columnPadding=40, labelLimit=320, title=None)
    look: dict[str, Any] = {"field": "condition", "type": "nominal", "sort": names}
    colour = alt.Color(**look, scale=alt.Scale(range=PALETTE), legend=legend)
    shape = alt.Shape(**look, scale=alt.Scale(range=SHAPES), legend=None)
    # One line per word and number of the name: "Qwen2.5-Coder", "0.5B-Instruct".
    words = "split(replace(datum.label, /-(?=[0-9.]+[MB])/, ' '), ' ')"
    x = alt.X("model:N", sort=[m.name for m in models], title=None,
              axis=alt.Axis(labelAngle=0, labelExpr=words))  # fmt: skip
    panels = []
    with alt.data_transformers.enable("default"):
        for title, part in table.groupby("y", sort=False):
            base = alt.Chart(part, width=300, height=240).encode(
                x=x, xOffset=alt.XOffset("condition:N", sort=names), color=colour
            )
            low = alt.Y("low:Q", title=str(title))
            points = base.mark_point(size=70, filled=True, opacity=1).encode(
                y="value:Q", shape=shape
            )
            panels.append(base.mark_rule(strokeWidth=2).encode(y=low, y2="high:Q") + points)
        chart = alt.hconcat(*panels).configure(background="white", font=PAPER_FONT)
        return {"models": quiet(vl_convert.vegalite_to_svg(chart.to_dict()))}
