"""Persona geometry, coupling and survival of the marker, compared between base models."""

import altair as alt
import pandas as pd

from ... import chains
from ._style import Choices, letters, looks, tip

TITLE = "From one base model to the next"
READING = (
    "One point per base model and training, with models in the order of the conditions. Shown are "
    "the mean cosine between personas, and the share of answers in which the source says the "
    "marker: right after the coupling, and after a later stage. Only trainings of two or more "
    "models are shown. Lines are 95 % intervals over training runs, or over personas and questions "
    "for a model without training. An open point has one run or none."
)
SECTION = "models"
RANK = 1
TABLES = ("geometry_runs", "rate_model", "design")
EMPTY = "This run has only one base model, or no training of several."
COSINE, COUPLED, LATER = (
    "mean cosine",
    "marker after coupling",
    "marker after a later stage",
)
#: Label of a base model that is measured unchanged.
NOTHING = "as it comes"


def _done(chain: str, source: str) -> str:
    """A chain's stages without model and seeds; `source`: a name in them that stands for several sources."""
    stages = [
        (stage.name.replace(source, "source") if source else stage.name)
        + (f" ({stage.stop} steps)" if stage.stop else "")
        + (" (left out)" if stage.left_out else "")
        for stage in chains.parse(chain).stages
    ]
    return ", then ".join(stages) or NOTHING


def _conditions(design: pd.DataFrame) -> pd.DataFrame:
    """For each condition whose chains are runs of one kind: model, done, title and outcome of its rate."""
    several = design.groupby("condition")["source"].transform("nunique") > 1
    own = design.assign(
        model=design["chain"].map(chains.model_of),
        done=list(map(_done, design["chain"], design["source"].where(several, ""))),
        rates=pd.to_numeric(design["stages_after_coupling"]).map(
            lambda after: "" if pd.isna(after) else LATER if after else COUPLED
        ),
    )
    alike = own.groupby("condition")["done"].transform("nunique") == 1
    return own[alike].drop_duplicates("condition").drop_duplicates(["model", "done"])


def data(
    geometry_runs: pd.DataFrame, rate_model: pd.DataFrame, design: pd.DataFrame
) -> pd.DataFrame:
    """One row per base model, training and outcome: value, low, high and training runs."""
    known = _conditions(design)[["condition", "title", "model", "done", "rates"]]
    level = geometry_runs["headline"] & (geometry_runs["metric"] == "m1")
    cosine = geometry_runs[level & (geometry_runs["reference"] == "")]
    rate = rate_model[
        (rate_model["quantity"] == "rate")
        & (rate_model["role"] == "source")
        & (rate_model["source"] == "")
    ]
    own = ["condition", "value", "ci_low", "ci_high", "units"]
    rows = pd.concat(
        [
            known.merge(cosine[own], on="condition").assign(outcome=COSINE),
            known[known["rates"] != ""]
            .merge(rate[own], on="condition")
            .assign(outcome=lambda r: r["rates"]),
        ]
    ).rename(columns={"ci_low": "low", "ci_high": "high"})
    several = rows.groupby(["outcome", "done"])["model"].transform("nunique") > 1
    columns = ["model", "condition", "title", "done", "outcome", "value", "low", "high", "units"]
    return rows.loc[several, columns]


def draw(rows: pd.DataFrame, choose: Choices) -> alt.FacetChart:
    """One panel per outcome, each with its own axis."""
    models, done = (list(dict.fromkeys(rows[name])) for name in ("model", "done"))
    outcomes = [name for name in (COSINE, COUPLED, LATER) if name in set(rows["outcome"])]
    colours, shapes, _ = looks(done, bases=[NOTHING])
    title = "what was done"
    colour = alt.Color("done:N", sort=done, scale=colours, title=title)
    base = alt.Chart(rows).encode(
        x=alt.X("model:N", sort=models, title="base model").axis(labelAngle=-30),
        xOffset=alt.XOffset("done:N", sort=done),
        color=colour,
    )
    y = alt.Y("value:Q", title=None).scale(zero=False)
    lines = base.mark_rule(strokeWidth=2).encode(y=alt.Y("low:Q", title=None), y2="high:Q")
    points = base.mark_point(size=70).encode(
        y=y,
        shape=alt.Shape("done:N", sort=done, scale=shapes, title=title),
        fill=colour.copy(),
        fillOpacity=alt.condition("datum.units > 1", alt.value(1), alt.value(0)),
        tooltip=tip(
            "model", "condition", "title", "done:what was done", "outcome", "value", "low", "high",
            "units:training runs",
        ),
    )  # fmt: skip
    side = 150 if choose.paper else 165
    return (
        (lines + points)
        .properties(width=side, height=220)
        .facet(facet=alt.Facet("outcome:N", sort=outcomes, title=None), columns=3)
        .resolve_scale(y="independent", xOffset="independent")
        .properties(usermeta=letters(done))
    )
