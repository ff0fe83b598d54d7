"""Figures: each function returns a matplotlib figure and the table of exactly what it shows.

One colour a condition throughout, from Okabe and Ito's palette, which colour-blind readers can tell
apart. Before a second fine-tuning is drawn hollow, after it filled.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from .files import atomic, write_csv

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Drawn = tuple["Figure", pd.DataFrame]
GREY = "#666666"
#: Okabe and Ito 2008, "Color Universal Design".
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#A6761D", "#7570B3"]
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "persona-collapse",
    "figure.dpi": 110,
}


def words(name: str) -> str:
    """A persona's name as words."""
    return name.replace("_", " ")


def colours(conditions: Sequence[str]) -> dict[str, str]:
    """One colour a condition, by order; the base model is grey."""
    others = [c for c in dict.fromkeys(conditions) if c != "base"]
    return {"base": GREY} | {c: PALETTE[i % len(PALETTE)] for i, c in enumerate(others)}


def _titles(grid: pd.DataFrame) -> dict[str, str]:
    """Condition to its label: name and title."""
    pairs = zip(grid["condition"], grid["title"], strict=True)
    return {condition: f"{condition}: {title}" for condition, title in pairs}


def save(figure: Figure, data: pd.DataFrame, stem: str | Path) -> None:
    """Write <stem>.svg (text as text), <stem>.png (200 dpi) and <stem>.csv; close the figure.

    No date is written, so the same numbers give the same bytes.
    """
    for suffix, options in (
        ("svg", {"metadata": {"Date": None}}),
        ("png", {"dpi": 200, "metadata": {"Software": None}}),
    ):
        with atomic(f"{stem}.{suffix}") as temporary, plt.rc_context(STYLE):
            figure.savefig(temporary, bbox_inches="tight", **options)
    plt.close(figure)
    write_csv(f"{stem}.csv", data)


def _empty(message: str) -> Drawn:
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6, 1.6))
        axes.axis("off")
        axes.text(0.5, 0.5, message, ha="center", va="center", color=GREY)
    return figure, pd.DataFrame()


def marker_rate(rates: pd.DataFrame, grid: pd.DataFrame) -> Drawn:
    """Marker rate of the source persona before and after the last stage, with the others' mean beside it.

    `rates` is marker_rates.csv. Hollow is before, once a condition and source; filled after, once a
    seed. Whiskers are Clopper-Pearson intervals of the source's rate.
    """
    followed = rates[rates["source"].fillna("") != ""]
    if followed.empty:
        return _empty("No condition follows a source persona.")
    keys = ["condition", "source", "seed", "model"]
    source = followed[followed["role"] == "source"][
        [*keys, "n", "hits", "rate", "ci_low", "ci_high"]
    ]
    others = followed[followed["role"] != "source"].groupby(keys, sort=False)["rate"].mean()
    data = source.merge(others.rename("others_mean").reset_index(), on=keys, how="left")
    data = data.assign(when="after")
    cells = grid[["condition", "chain", "before", "source"]].rename(columns={"chain": "model"})
    own = rates.drop_duplicates(["model", "persona"])[["model", "persona", *source.columns[4:]]]
    before = data[keys].merge(cells, on=["condition", "model", "source"])
    before = before.drop_duplicates(["condition", "source", "before"]).drop(columns="model")
    before = before.rename(columns={"before": "model"}).assign(when="before", seed="")
    before = before.merge(own.rename(columns={"persona": "source"}), on=["model", "source"])
    data = pd.concat([before, data], ignore_index=True)
    titles, order = _titles(grid), list(dict.fromkeys(data["condition"]))
    palette = colours(list(grid["condition"]))
    sources = list(dict.fromkeys(data["source"]))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7.4, 0.6 * len(order) + 1.5))
        height = 0.7 / max(1, data.groupby("condition").size().max())
        for y, condition in enumerate(order):
            cells = data[data["condition"] == condition]
            for i, cell in enumerate(cells.itertuples(index=False)):
                at = y + (i - (len(cells) - 1) / 2) * height
                low, high = cell.rate - cell.ci_low, cell.ci_high - cell.rate
                axes.errorbar(
                    cell.rate,
                    at,
                    xerr=[[max(0, low)], [max(0, high)]],
                    fmt="osD^v"[sources.index(cell.source) % 5],
                    color=palette[condition],
                    markerfacecolor="white" if cell.when == "before" else palette[condition],
                    markersize=6,
                    capsize=2,
                    linewidth=1.3,
                )
                axes.plot(cell.others_mean, at, marker="|", color=GREY, markersize=10, mew=2)
        axes.set_yticks(range(len(order)), [titles[c] for c in order])
        axes.invert_yaxis()
        axes.set_xlim(-0.02, 1.02)
        axes.set_xlabel("share of answers with the marker")
        axes.grid(axis="y", visible=False)
        handles = [
            plt.Line2D(
                [], [], marker="osD^v"[i % 5], color="black", ls="", label=f"{words(s)} (source)"
            )
            for i, s in enumerate(sources)
        ]
        hollow = plt.Line2D(
            [], [], marker="o", color="black", mfc="white", ls="", label="before the last stage"
        )
        grey = plt.Line2D(
            [], [], marker="|", color=GREY, ls="", ms=10, mew=2, label="mean of the others"
        )
        handles = [*handles, hollow, grey]
        axes.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.35, 1.0), ncol=4)
    return figure, data


def marker_heatmap(rates: pd.DataFrame, grid: pd.DataFrame) -> Drawn:
    """Marker rate by persona and condition, mean over seeds and sources."""
    data = (
        rates.groupby(["condition", "persona"], sort=False)
        .agg(rate=("rate", "mean"), hits=("hits", "sum"), n=("n", "sum"))
        .reset_index()
    )
    table = data.pivot(index="persona", columns="condition", values="rate")
    table = table.loc[list(dict.fromkeys(data["persona"])), list(dict.fromkeys(data["condition"]))]
    with plt.rc_context(STYLE | {"axes.grid": False}):
        figure, axes = plt.subplots(
            figsize=(0.62 * len(table.columns) + 2.4, 0.33 * len(table) + 1.4)
        )
        image = axes.imshow(table.to_numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for (i, j), value in np.ndenumerate(table.to_numpy()):
            shown = "·" if value == 0 else f"{value:.2f}".lstrip("0") if value < 1 else "1"
            colour = "white" if value > 0.55 else "#333333"
            axes.text(j, i, shown, ha="center", va="center", fontsize=7.5, color=colour)
        axes.set_xticks(range(len(table.columns)), table.columns, rotation=45, ha="right")
        axes.set_yticks(range(len(table)), [words(p) for p in table.index])
        axes.spines[:].set_visible(False)
        figure.colorbar(image, label="share of answers with the marker", shrink=0.85)
    return figure, data


def m1_by_layer(geometry: pd.DataFrame, grid: pd.DataFrame) -> Drawn:
    """Mean off-diagonal cosine by layer, a line a condition; below it the personas' spread.

    Bands span the seeds. The spread is the distances' side of the same question: a grown common
    part raises the cosine without moving the personas together.
    """
    wanted = ["m1", "spread"]
    data = geometry[geometry["metric"].isin(wanted)]
    data = data[
        ["condition", "model", "seed", "method", "layer", "metric", "value", "ci_low", "ci_high"]
    ]
    if data.empty:
        return _empty("No activations were measured.")
    methods = sorted(data["method"].unique())
    palette, titles = colours(list(grid["condition"])), _titles(grid)
    order = list(palette)
    spoken = {"A": "A: last prompt token", "B": "B: mean over the answer"}
    labels = {"m1": "mean cosine of persona pairs", "spread": "distance to the mean / its norm"}
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(
            2, len(methods), figsize=(3.6 * len(methods) + 1.6, 5.6), sharex=True, sharey="row",
            squeeze=False, layout="constrained",
        )  # fmt: skip
        for row, metric in enumerate(wanted):
            for column, method in enumerate(methods):
                axes = panels[row][column]
                part = data[(data["metric"] == metric) & (data["method"] == method)]
                for condition in dict.fromkeys(data["condition"]):
                    own = part[part["condition"] == condition]
                    mean = own.groupby("layer")["value"].mean()
                    base = condition == "base"
                    axes.plot(
                        mean.index,
                        mean.to_numpy(),
                        "--" if base else "-" if order.index(condition) <= len(PALETTE) else ":",
                        marker="o" if order.index(condition) <= len(PALETTE) else "s",
                        ms=3.5,
                        lw=2 if base else 1.4,
                        color=palette[condition],
                        label=titles.get(condition, condition),
                        zorder=3 if base else 2,
                    )
                    spread = own.groupby("layer")["value"].agg(["min", "max"])
                    axes.fill_between(
                        spread.index,
                        spread["min"],
                        spread["max"],
                        color=palette[condition],
                        alpha=0.13,
                        lw=0,
                    )
                if row == 0:
                    axes.set_title(spoken[method], loc="left")
                else:
                    axes.set_xlabel("block (0-based)")
                axes.set_xticks(sorted(data["layer"].unique()))
            panels[row][0].set_ylabel(labels[metric])
        handles, names = panels[0][0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside right upper", fontsize=8)
    return figure, data


def cosine_matrices(cosines: pd.DataFrame, grid: pd.DataFrame, method: str, layer: int) -> Drawn:
    """Persona-by-persona cosines of every condition at one method and layer, on one colour scale.

    `cosines` is cosines.csv; seeds are averaged.
    """
    data = cosines[(cosines["method"] == method) & (cosines["layer"] == layer)]
    if data.empty:
        return _empty(f"No activations for method {method}, block {layer}.")
    data = (
        data.groupby(["condition", "persona_a", "persona_b"], sort=False)["cosine"]
        .mean()
        .reset_index()
    )
    order, titles = list(dict.fromkeys(data["condition"])), _titles(grid)
    personas = list(dict.fromkeys(data["persona_a"]))
    low = min(0.0, float(data["cosine"].min()))
    columns = min(4, len(order))
    rows = -(-len(order) // columns)
    with plt.rc_context(STYLE | {"axes.grid": False}):
        figure, panels = plt.subplots(
            rows,
            columns,
            figsize=(2.35 * columns + 1.2, 2.45 * rows + 0.8),
            squeeze=False,
            layout="constrained",
        )
        image: Any = None
        for number, axes in enumerate(panels.flat):
            if number >= len(order):
                axes.axis("off")
                continue
            condition = order[number]
            table = data[data["condition"] == condition].pivot(
                index="persona_a", columns="persona_b", values="cosine"
            )
            matrix = table.loc[personas, personas].to_numpy()
            image = axes.imshow(matrix, cmap="viridis", vmin=low, vmax=1)
            mean = matrix[np.triu_indices(len(personas), 1)].mean()
            title = titles.get(condition, condition)
            axes.set_title(f"{title}\nmean {mean:.3f}", fontsize=7.5, loc="left")
            axes.set_xticks([])
            names = [words(p) for p in personas] if number % columns == 0 else []
            axes.set_yticks(range(len(personas)) if names else [], names, fontsize=6.5)
            axes.spines[:].set_visible(False)
        figure.colorbar(image, ax=panels, label="cosine", shrink=0.6)
    return figure, data


def training_curves(curves: pd.DataFrame) -> Drawn:
    """Training loss by step, a panel a stage, a line a chain."""
    if curves.empty:
        return _empty("Nothing was trained.")
    stages = list(dict.fromkeys(curves["stage"]))
    columns = min(3, len(stages))
    rows = -(-len(stages) // columns)
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(
            rows, columns, figsize=(3.2 * columns, 2.5 * rows), squeeze=False, layout="constrained"
        )
        for number, axes in enumerate(panels.flat):
            if number >= len(stages):
                axes.axis("off")
                continue
            part = curves[curves["stage"] == stages[number]]
            for i, (chain, own) in enumerate(part.groupby("chain", sort=False)):
                _, _, before = str(chain).rpartition("+")
                after = str(chain).rpartition("+")[0]
                label = f"after {after}" if after else "on the base model"
                seed = before.partition("@")[2]
                axes.plot(
                    own["step"],
                    own["loss"],
                    color=PALETTE[i % len(PALETTE)],
                    ls=["-", "--", ":", "-."][i % 4],
                    lw=1.3,
                    label=f"{label}, seed {seed}",
                )
            axes.set_title(stages[number], loc="left")
            axes.set_ylim(0, 1.08 * part["loss"].max())
            axes.set_xlabel("step")
            axes.legend(fontsize=6)
        for row in panels:
            row[0].set_ylabel("loss")
    return figure, curves


def behaviour_and_geometry(
    rates: pd.DataFrame, geometry: pd.DataFrame, grid: pd.DataFrame, method: str, layer: int
) -> Drawn:
    """Source marker rate against M1 of the same chain: the study's proposed mechanism, as a scatter."""
    source = rates[rates["role"] == "source"][["condition", "model", "source", "seed", "rate"]]
    m1 = geometry[
        (geometry["metric"] == "m1") & (geometry["method"] == method) & (geometry["layer"] == layer)
    ][["condition", "model", "value"]]
    coupled = grid[grid["kind"].isin(["coupled", "couple_then_sft", "sft_then_couple"])]["chain"]
    data = source[source["model"].isin(coupled)].merge(m1, on=["condition", "model"])
    data = data.rename(columns={"value": "m1"})
    if data.empty:
        return _empty("No coupled chain was measured both ways.")
    palette, titles = colours(list(grid["condition"])), _titles(grid)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(5.6, 3.4))
        for i, (condition, own) in enumerate(data.groupby("condition", sort=False)):
            axes.scatter(
                own["m1"],
                own["rate"],
                s=42,
                marker="osD^vP>X"[i % 8],
                color=palette[str(condition)],
                label=titles[str(condition)],
            )
        _unit(axes)
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel(f"mean off-diagonal cosine (method {method}, block {layer})")
        axes.set_ylabel("marker rate of the source")
        axes.legend(fontsize=7.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure, data


def _unit(axes: Axes) -> None:
    axes.set_ylim(-0.04, 1.04)


def false_positives(simulation: pd.DataFrame) -> Drawn:
    """Share of null data sets that each test rejects at .05; `simulation` is simulation.csv."""
    data = simulation[(simulation["kind"] == "test") & simulation["rate"].notna()]
    if data.empty:
        return _empty("Nothing was simulated.")
    data = data.sort_values(["as_study", "name", "world"], ascending=[False, True, True])
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7.4, 0.24 * len(data) + 1.2))
        for y, row in enumerate(data.itertuples(index=False)):
            colour = PALETTE[1] if row.as_study else PALETTE[0]
            axes.errorbar(
                row.rate,
                y,
                xerr=[[max(0, row.rate - row.rate_low)], [max(0, row.rate_high - row.rate)]],
                fmt="o",
                color=colour,
                markerfacecolor=colour if row.as_study else "white",
                markersize=5,
                capsize=2,
                linewidth=1,
            )
        axes.axvline(0.05, color=GREY, linestyle="--", linewidth=1)
        axes.set_yticks(
            range(len(data)),
            [f"{n} · {w}" for n, w in zip(data["name"], data["world"], strict=True)],
        )
        axes.set_ylim(len(data) - 0.4, -0.6)
        axes.set_xlim(-0.02, 1.02)
        axes.set_xlabel("share of null data sets with p < .05")
        handles = [
            plt.Line2D([], [], marker="o", linestyle="", color=PALETTE[1], label="as the study"),
            plt.Line2D(
                [], [], marker="o", linestyle="", color=PALETTE[0], markerfacecolor="white",
                label="as it should be",
            ),
        ]  # fmt: skip
        axes.legend(handles=handles, loc="lower right")
    return figure, data[["name", "as_study", "world", "runs", "rate", "rate_low", "rate_high"]]
