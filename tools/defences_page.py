"""The tables of docs/defences.md, from what tools/models.py keeps of runs with defended second stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import models as kept_runs
import pandas as pd
from cause_page import claims_table
from interval_plot import intervals
from markdown_tables import cell, raw_table, shown
from models import BEHIND, BLOCKS, SCORECARD, Kept, Model
from models_page import blocks_of_second_stages, conditions_table, mean_over_runs
from persona_collapse.analysis.frontier import OFF, ON
from persona_collapse.report.figures import _render, catalogue, frontier

NAME = "defences"
#: What the page needs of a run's tables.
KEPT = {
    **BLOCKS,
    **BEHIND,
    "frontier": Kept((
        "condition", "title", "runs", "units", "data", "defence", "setting", "undefended", "outcome",
        "value", "ci_low", "ci_high", "difference", "difference_low", "difference_high", "verdict", "note",
    )),
    "training_curves": Kept(("chain", "stage", "kind", "step", "task_loss", "penalty"), "step == step.max()"),
    "scorecard": Kept(
        SCORECARD, "claim == 'prevention-preserves' or claim.str.startswith('collapse-explains')"
    ),
}  # fmt: skip
#: Outcomes of the table with their digits: what the stage has learnt, and what is left of the persona.
DIGITS = {"held_out_loss": 3, "rate": 2, "marker_logprob": 1, "m1": 3}
NAMES = frontier.OUTCOMES | {"held_out_loss": "held-out loss"}
#: Outcomes whose verdicts are shown.
JUDGED = {"rate": "on the frontier, by the rate", "m1": "by the mean cosine"}


def _loss(model: Model, condition: str) -> str:
    """Mean over runs of the training loss of the last steps, without the defence's penalty."""
    names = model.tables["design"].query("condition == @condition")["chain"]
    curves = model.tables["training_curves"]
    return mean_over_runs(curves[curves["chain"].isin(names)], "task_loss").text(2)


def _outcomes(models: Sequence[Model]) -> list[str]:
    """Outcomes that a run measured after a defence, in the order of the table."""
    found = pd.concat([m.tables["frontier"] for m in models])
    defended = found[found["defence"].notna() & (found["defence"] != "")]
    return [name for name in DIGITS if name in set(defended["outcome"])]


def _conditions(model: Model) -> Iterator[tuple[str, pd.DataFrame]]:
    """A model's conditions with the rows of the frontier, those without a defence first."""
    yield from model.tables["frontier"].groupby("condition", sort=False)


def outcomes_table(models: Sequence[Model]) -> str:
    """What each defence leaves of the marker and the geometry, and the difference to the stage without it."""
    outcomes, rows = _outcomes(models), []
    for model in models:
        for name, own in _conditions(model):
            first = own.iloc[0]
            made = [cell(model.name), cell(f"{name}: {first['title']}"), cell(first["setting"] or ""),
                    f"{first['runs']:.0f}", _loss(model, name)]  # fmt: skip
            for outcome in outcomes:
                row = own[own["outcome"] == outcome]
                values = ["", ""]
                if len(row):
                    digits, r = DIGITS[outcome], row.iloc[0]
                    values[0] = shown(r["value"], r["ci_low"], r["ci_high"], digits)
                    if pd.notna(r["difference"]):
                        low, high = r["difference_low"], r["difference_high"]
                        values[1] = shown(r["difference"], low, high, digits)
                made += values
            verdicts = own.set_index("outcome")["verdict"].fillna("")
            rows.append(made + [_judged(verdicts.get(name, "")) for name in JUDGED])
    head = ["run", "condition", "setting", "training runs", "training loss"]
    for outcome in outcomes:
        head += [NAMES[outcome], "minus without"]
    head += JUDGED.values()
    return "\n".join(raw_table(head, rows))


def _judged(verdict: str) -> str:
    """A verdict about the frontier in a table whose column names the frontier."""
    return {ON: "yes", OFF: "no"}.get(verdict, verdict)


def measured_table(models: Sequence[Model]) -> str:
    """All conditions of the runs whose rates and geometry are kept."""
    return conditions_table([model for model in models if "rate_model" in model.tables])


TABLES: dict[str, Callable[[Sequence[Model]], str]] = {
    "runs": kept_runs.runs_table,
    "outcomes": outcomes_table,
    "blocks": blocks_of_second_stages,
    "conditions": measured_table,
    "claims": claims_table,
}


def _before(model: Model) -> pd.DataFrame:
    """The source's answers of the couplings that the undefended stages follow; no rows where not kept."""
    design, answers = model.tables["design"], model.tables.get("answer_stats")
    if answers is None:
        return pd.DataFrame()
    bare = design[design["condition"].isin(model.tables["frontier"]["undefended"])]
    own = answers[answers["chain"].isin(bare["before"]) & (answers["role"] == "source")]
    return own.drop_duplicates(["chain", "source"])


def figures(models: Sequence[Model]) -> dict[str, str]:
    """SVGs by name: the source's marker rate by defence, and the frontier of the first run that has one."""
    rows = []
    for model in models:
        for _, own in _conditions(model):
            for row in own[own["outcome"] == "rate"].itertuples():
                rows.append({
                    "panel": model.name, "line": row.title,
                    "group": "with a defence" if row.defence else "without",
                    "value": row.value, "low": row.ci_low, "high": row.ci_high,
                })  # fmt: skip
        if len(before := _before(model)):
            found = mean_over_runs(before, "rate")
            rows.append({
                "panel": model.name, "line": "coupling alone", "group": "without",
                "value": found.value, "low": found.low, "high": found.high,
            })  # fmt: skip
    table = pd.DataFrame(rows).sort_values(["panel", "value"], kind="stable")
    drawn = {NAME: intervals(table, "source says the marker", list(dict.fromkeys(table["line"])))}
    figure = catalogue()["frontier"]
    for model in models:
        found = _render.data(figure, model.tables)
        few = found[found["kept"].isin([frontier.OUTCOMES["rate"], frontier.OUTCOMES["m1"]])]
        if len(few):
            # Differences where the run has any: they are first.
            few = few[few["shown"] == few["shown"].iloc[0]]
            drawn["defences_frontier"] = _render.paper_svg(_render.paper(figure, few))
            break
    return drawn
