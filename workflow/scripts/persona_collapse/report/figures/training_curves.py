"""Training loss by step, one line per chain."""

import altair as alt
import pandas as pd

from ... import chains
from ._style import DASHES, PALETTE, Choices, letters, tip

TITLE = "Training loss"
READING = (
    "One line per chain that ends in this stage. Losses of different stages are on different data and "
    "cannot be compared."
)
SECTION = "training"
RANK = 1
TABLES = ("training_curves",)
PANELS = ("stage",)
EMPTY = "Nothing was trained."


def data(curves: pd.DataFrame) -> pd.DataFrame:
    """One row per chain and logged step; `line`: label of the chain among those of its stage."""
    if curves.empty:
        return curves
    spoken = {}
    for name in dict.fromkeys(curves["chain"]):
        chain = chains.parse(name)
        before = str(chains.Chain(chain.stages[:-1], chain.model))
        after = "on the base model" if before == chains.BASE else f"after {before}"
        stopped = f", stopped at step {chain.last.stop}" if chain.last.stop else ""
        spoken[name] = f"{after}, seed {chain.last.seed}{stopped}"
    columns = ["chain", "stage", "seed", "step", "loss"]
    return curves[columns].assign(line=curves["chain"].map(spoken))


def draw(rows: pd.DataFrame, choose: Choices) -> alt.Chart:
    """The stage to choose."""
    lines = list(dict.fromkeys(rows["line"]))
    # Without a domain, so that the legend lists only the lines of the chosen stage.
    dashes = [DASHES[(i + i // len(PALETTE)) % len(DASHES)] for i in range(len(lines))]
    stage = choose("stage", rows["stage"].unique(), "stage")
    return (
        alt.Chart(rows)
        .transform_filter(f"datum.stage == {stage}")
        .mark_line(strokeWidth=2)
        .encode(
            x="step:Q",
            y="loss:Q",
            color=alt.Color("line:N", title="trained on").scale(range=PALETTE),
            strokeDash=alt.StrokeDash("line:N", title="trained on").scale(range=dashes),
            tooltip=tip("chain", "step", "loss"),
        )
        .properties(height=200 if choose.paper else 260, usermeta=letters(lines))
    )
