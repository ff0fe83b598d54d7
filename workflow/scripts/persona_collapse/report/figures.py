"""Figures: each function returns a matplotlib figure and the table of exactly what it shows.

One colour a condition throughout, from Okabe and Ito's palette, which colour-blind readers can tell
apart. Before a second fine-tuning is drawn hollow, after it filled.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from .. import chains
from ..files import atomic
from ..tables_io import write_csv

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Drawn = tuple["Figure", pd.DataFrame]
GREY = "#666666"
#: Okabe and Ito 2008, "Color Universal Design".
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#A6761D", "#7570B3"]
SHAPES = "osD^vP>X"
LINES = ["-", "--", ":", "-."]
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


def share(value: float) -> str:
    """A rate as a cell of a heat map has room for it: a dot is 0, nothing is not measured."""
    if np.isnan(value):
        return ""
    return "·" if value == 0 else "1" if value == 1 else f"{value:.2f}".lstrip("0")


def words(name: str) -> str:
    """A persona's name as words."""
    return name.replace("_", " ")


def colours(grid: pd.DataFrame) -> dict[str, str]:
    """One colour per condition, in the grid's order; the base model is grey, and first."""
    bases = dict.fromkeys(["base", *grid.loc[grid["chain"] == "base", "condition"]], GREY)
    others = [c for c in dict.fromkeys(grid["condition"]) if c not in bases]
    return bases | {c: PALETTE[i % len(PALETTE)] for i, c in enumerate(others)}


def base_first(table: pd.DataFrame) -> list[str]:
    """Conditions of a table with a `chain` column, those of the base model first."""
    bases = set(table.loc[table["chain"] == "base", "condition"])
    return sorted(dict.fromkeys(table["condition"]), key=lambda c: c not in bases)


def labels(grid: pd.DataFrame) -> dict[str, str]:
    """Condition to its name and title, in the grid's order."""
    first = grid.drop_duplicates("condition")
    pairs = zip(first["condition"], first["title"], strict=True)
    return {condition: f"{condition}: {title}" for condition, title in pairs}


#: Where a name may stand, in pixels below its point: by it, and further off.
NEAR = (-10, 12, -22, 24, -34, 36, -46, 48)
FAR = (*range(-58, -170, -12), *range(60, 172, 12))


def places(
    names: pd.Series,
    x: pd.Series,
    y: pd.Series,
    width: float,
    height: float,
    marks: Sequence[pd.DataFrame],
    *,
    beside: bool = False,
) -> pd.DataFrame:
    """Where the names of points can stand: columns `lift` and `shift`, pixels below and right of the point.

    Names lie on no other name and no mark, and inside the drawing, where that can be had. `x`, `y`
    and the `marks` (columns x, y) are in shares of the drawing, y from above; `width` and `height`
    are its pixels. Names are taken as 6 pixels a letter and 12 high. They stand above or below their
    points; `beside`: also to the right and left, and a little aside before far off.
    """
    taken = [
        (at.x * width - 4, at.x * width + 4, at.y * height - 4, at.y * height + 4)
        for at in pd.concat(marks).itertuples()
    ]
    found = {}
    for i in x.sort_values().index:
        half, across = 3 * len(names[i]), x[i] * width
        near, far = ([(lift, 0.0) for lift in lifts] for lifts in (NEAR, FAR))
        if beside:
            near[2:2] = [(0, half + 5), (0, -half - 5)]
            near += [(lift, side * 0.8 * half) for lift in NEAR for side in (1, -1)]
        boxes = {}
        for lift, off in (*near, *far):
            down = y[i] * height + lift
            middle = min(max(across + off, half), width - half)
            if 6 <= down <= height - 6:
                boxes[lift, middle - across] = (middle - half, middle + half, down - 6, down + 6)
        free = (
            place
            for place, box in boxes.items()
            if all(
                box[1] <= o[0] or box[0] >= o[1] or box[3] <= o[2] or box[2] >= o[3] for o in taken
            )
        )
        crowded = next(iter(boxes), (NEAR[0], 0.0))  # none: its point is no number
        found[i] = next(free, crowded)
        taken += [boxes[place] for place in boxes if place == found[i]]
    return pd.DataFrame.from_dict(found, orient="index", columns=["lift", "shift"])


def rate_points(rates: pd.DataFrame, grid: pd.DataFrame) -> pd.DataFrame:
    """The source's marker rate before and after the last stage of every chain that follows one.

    `rates` is marker_rates.csv. Columns: condition, source, seed, chain, n, hits, rate, ci_low, ci_high
    (Clopper-Pearson), others_mean (mean rate of all other personas; after the stage only), when. A chain
    that several others continue is listed once per condition and source; one that was not measured
    is left out.
    """
    columns = ["n", "hits", "rate", "ci_low", "ci_high"]
    own = rates.drop_duplicates(["chain", "persona"]).set_index(["chain", "persona"])[columns]
    others = rates[rates["role"] != "source"].groupby(["condition", "chain", "source"])["rate"]
    means = others.mean()
    rows = []
    for cell in grid[grid["source"] != ""].itertuples(index=False):
        key = {"condition": cell.condition, "source": cell.source}
        ends = {"before": cell.before, "after": cell.chain}
        for when, chain in ends.items():
            if (chain, cell.source) not in own.index or (when == "before" and chain == cell.chain):
                continue
            after = when == "after"
            mean = means.get((cell.condition, chain, cell.source)) if after else None
            rows.append(
                {**key, "seed": cell.seed if after else "", "chain": chain}
                | own.loc[(chain, cell.source)].to_dict()
                | {"others_mean": mean, "when": when}
            )
    names = ["condition", "source", "seed", "chain", *columns, "others_mean", "when"]
    table = pd.DataFrame(rows, columns=names)
    table = table.drop_duplicates(["condition", "source", "chain"], ignore_index=True)
    return table.astype({"n": int, "hits": int, "others_mean": float})


def heat_points(rates: pd.DataFrame) -> pd.DataFrame:
    """Marker rate of every persona, its condition's chains of one source pooled, and seed by seed.

    Columns: condition, source, persona, role, hits, n, seed (`all`: pooled), rate, `column`: the
    condition, with its source where it has several.
    """
    keys = ["condition", "source", "persona", "role"]
    seeds = rates[rates["seed"] != ""]
    parts = [
        rates.groupby(keys, sort=False)[["hits", "n"]].sum().reset_index().assign(seed="all"),
        seeds.groupby([*keys, "seed"], sort=False)[["hits", "n"]].sum().reset_index(),
    ]
    table = pd.concat(parts, ignore_index=True)
    several = rates.groupby("condition")["source"].nunique()
    names = [
        f"{c} ({words(s)})" if several[c] > 1 else c
        for c, s in zip(table["condition"], table["source"], strict=True)
    ]
    return table.assign(rate=table["hits"] / table["n"], column=names)


def layer_points(geometry: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """Some metrics of geometry.csv by block: mean, smallest and largest over a condition's chains.

    Columns: condition, method, layer, metric, value, low, high, runs: how many chains. The base
    model's condition comes first.
    """
    table = geometry.query("metric in @metrics and test == '' and chain != ''")
    order = {condition: i for i, condition in enumerate(base_first(table))}
    table = table.sort_values("condition", key=lambda c: c.map(order), kind="stable")
    keys = ["condition", "method", "layer", "metric"]
    means = table.groupby(keys, sort=False)["value"]
    return means.agg(value="mean", low="min", high="max", runs="count").reset_index()


def curve_lines(curves: pd.DataFrame) -> pd.Series:
    """What each row's chain is called in a panel of its last stage: what was trained, how far."""
    named = {}
    for name in dict.fromkeys(curves["chain"]):
        chain = chains.parse(name)
        after = f"after {chain.prefix}" if chain.prefix.stages else "on the base model"
        stopped = f", stopped at step {chain.last.stop}" if chain.last.stop else ""
        named[name] = f"{after}, seed {chain.last.seed}{stopped}"
    return curves["chain"].map(named)


def behaviour_points(
    rates: pd.DataFrame, geometry: pd.DataFrame, grid: pd.DataFrame
) -> pd.DataFrame:
    """Marker rate of the source and mean cosine (m1, m1_centred) of every chain with a coupling.

    Columns: condition, chain, source, seed, rate, method, layer, metric, value.
    """
    coupled = grid[grid["stages_after_coupling"].notna()]["chain"]
    source = rates[(rates["role"] == "source") & rates["chain"].isin(coupled)]
    cosine = geometry.query("metric in ['m1', 'm1_centred'] and test == ''")
    return source[["condition", "chain", "source", "seed", "rate"]].merge(
        cosine[["condition", "chain", "method", "layer", "metric", "value"]],
        on=["condition", "chain"],
    )


def dose_points(
    rates: pd.DataFrame,
    geometry: pd.DataFrame,
    training: pd.DataFrame,
    grid: pd.DataFrame,
    method: str,
    layer: int,
) -> pd.DataFrame:
    """Marker rate and mean cosine of chains whose last stage was also stopped early; else no rows.

    Columns: series (the whole chain, with its source where several are followed), source, chain, steps
    of the last stage (0: the chain before it), metric (rate or m1), outcome (the same in words), value,
    low and high: the 95 % interval.
    """
    columns = ["series", "source", "chain", "steps", "metric", "outcome", "value", "low", "high"]
    stopped = [c for c in grid["chain"] if c != "base" and chains.parse(c).last.stop]
    steps = training.drop_duplicates("chain").set_index("chain")["steps"]
    own = rates.drop_duplicates(["chain", "persona"])
    m1 = geometry.query("metric == 'm1' and test == '' and method == @method and layer == @layer")
    cosine = m1.drop_duplicates("chain")
    whole = {c.partition("~")[0] for c in stopped}
    cells = grid.assign(series=[c.partition("~")[0] for c in grid["chain"]])
    several = cells.groupby("series")["source"].nunique()
    rows = []
    for cell in cells.drop_duplicates(["chain", "source"]).itertuples(index=False):
        if cell.series not in whole:
            continue
        named = several[cell.series] > 1
        series = cell.series + (f" ({words(cell.source) or 'no source'})" if named else "")
        for chain, step in ((cell.before, 0), (cell.chain, steps.get(cell.chain))):
            if step is None:
                continue
            key = (series, cell.source, chain, int(step))
            hit = own[(own["chain"] == chain) & (own["persona"] == cell.source)]
            for row in hit.itertuples(index=False):
                outcome = "marker rate of the source"
                rows.append((*key, "rate", outcome, row.rate, row.ci_low, row.ci_high))
            for row in cosine[cosine["chain"] == chain].itertuples(index=False):
                outcome = f"mean cosine (method {method}, block {layer})"
                rows.append((*key, "m1", outcome, row.value, row.ci_low, row.ci_high))
    return pd.DataFrame(rows, columns=columns).drop_duplicates()


def leakage_points(
    rates: pd.DataFrame,
    cosines: pd.DataFrame,
    correlations: pd.DataFrame,
    grid: pd.DataFrame,
    method: str,
    layer: int,
) -> pd.DataFrame:
    """Marker rate of every persona but the source, seeds together, with its cosine to the source.

    `cosines` is cosines.csv, of which the base model's at one method and layer count. Columns:
    condition, source, persona, hits, n, cosine, rate, `test` (the correlation from correlations.csv, in
    words), `cell` (condition and source, in words).
    """
    cosine = cosines[
        (cosines["chain"] == "base") & (cosines["method"] == method) & (cosines["layer"] == layer)
    ].drop_duplicates(["persona_a", "persona_b"])
    cosine = cosine.rename(columns={"persona_a": "persona", "persona_b": "source"})
    own = rates[(rates["role"] != "source") & (rates["source"] != "")]
    keys = ["condition", "source", "persona"]
    pooled = own.groupby(keys, sort=False)[["hits", "n"]].sum().reset_index()
    table = pooled.merge(cosine[["persona", "source", "cosine"]], on=["persona", "source"])
    table["rate"] = table["hits"] / table["n"]
    found = correlations[correlations["analysis"] == "personas"].set_index(["condition", "source"])
    titles = labels(grid)

    def says(condition: str, source: str) -> str:
        row = found.loc[key] if (key := (condition, source)) in found.index else None
        if row is None or pd.isna(row["rho"]):
            return "no correlation: no spread, or too few personas"
        return (
            f"Spearman {row['rho']:.2f} ({row['ci_low']:.2f} to {row['ci_high']:.2f}); p {row['p']:.2g}, "
            f"q {row['q']:.2g}, {row['n']} personas"
        )

    pairs = list(zip(table["condition"], table["source"], strict=True))
    return table.assign(
        test=[says(c, s) for c, s in pairs], cell=[f"{titles[c]} ({words(s)})" for c, s in pairs]
    )


def persona_moves(points: pd.DataFrame, grid: pd.DataFrame) -> pd.DataFrame:
    """Every persona's place before and after each chain's last stage; `points` is persona_map.csv.

    A chain whose model before that stage was not measured is left out.

    Columns: method, layer, persona, pc1_before, pc2_before, pc1_after, pc2_after, `captured` (share
    of the variance between personas after the stage that lies in this plane), condition, source,
    seed, before, after: the chains.
    """
    keys = ["method", "layer", "persona"]
    by_chain = points.drop_duplicates(["chain", *keys]).set_index("chain")
    known = grid["chain"].isin(by_chain.index) & grid["before"].isin(by_chain.index)
    cells = grid[(grid["chain"] != "base") & known]
    parts = []
    for cell in cells.drop_duplicates(["condition", "chain"]).itertuples(index=False):
        now = by_chain.loc[[cell.chain], [*keys, "pc1", "pc2", "captured"]]
        was = by_chain.loc[[cell.before], [*keys, "pc1", "pc2"]]
        both = was.merge(now, on=keys, suffixes=("_before", "_after"))
        own = {"condition": cell.condition, "source": cell.source, "seed": cell.seed}
        parts.append(both.assign(**own, before=cell.before, after=cell.chain))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


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


def _panels(
    count: int, most: int, width: float, height: float, extra: tuple[float, float] = (0, 0)
) -> tuple[Figure, list[Axes]]:
    """`count` panels of width by height inches, `most` a row, in a figure larger than them by `extra`."""
    columns = min(most, count)
    rows = -(-count // columns)
    figure, panels = plt.subplots(
        rows,
        columns,
        figsize=(width * columns + extra[0], height * rows + extra[1]),
        squeeze=False,
        layout="constrained",
    )
    for axes in panels.flat[count:]:
        axes.axis("off")
    return figure, list(panels.flat[:count])


def _first(axes: Axes) -> bool:
    """Whether a panel is the first of its row."""
    place = axes.get_subplotspec()
    return place is not None and place.is_first_col()


def _wrapped(*lines: str) -> str:
    """Lines of a panel's title, none wider than a panel of 3.7 inches."""
    return "\n".join(textwrap.fill(line, 60) for line in lines)


def _name(axes: Axes, names: pd.Series, x: pd.Series, y: pd.Series, marks: pd.DataFrame) -> None:
    """Write the points' names where they lie on no other and on no mark (columns x, y).

    The panels have to have their places and limits already.
    """
    size = 6.5
    pixel = 0.6 * size / 6  # in points: `places` takes 6 pixels a letter, the font 0.6 of its size
    figure: Any = axes.figure
    box = axes.get_window_extent()
    width, height = (v * 72 / figure.dpi / pixel for v in (box.width, box.height))

    def shares(x: pd.Series, y: pd.Series) -> pd.DataFrame:
        at = axes.transAxes.inverted().transform(axes.transData.transform(np.column_stack([x, y])))
        return pd.DataFrame({"x": at[:, 0], "y": 1 - at[:, 1]}, index=x.index)

    at = shares(x, y)
    found = places(
        names, at["x"], at["y"], width, height, [shares(marks["x"], marks["y"])], beside=True
    )
    for i, place in found.iterrows():
        end = (place["shift"] * pixel, -place["lift"] * pixel)
        reach: dict[str, Any] = {"xytext": end, "textcoords": "offset points"}
        if abs(place["lift"]) > 12:
            line = {"arrowstyle": "-", "color": GREY, "lw": 0.4, "shrinkA": 0, "shrinkB": 2}
            axes.annotate("", (x[i], y[i]), **reach, arrowprops=line, zorder=1.5, in_layout=False)
        # On white: another name's line may pass behind.
        axes.annotate(
            names[i],
            (x[i], y[i]),
            **reach,
            ha="center",
            va="center",
            fontsize=size,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.3},
            zorder=1.8,
            in_layout=False,
        )


def marker_rate(rates: pd.DataFrame, grid: pd.DataFrame) -> Drawn:
    """Marker rate of the source persona before and after the last stage, with the others' mean beside it.

    `rates` is marker_rates.csv. Hollow is before the last stage, filled after it, one mark per chain.
    Whiskers are Clopper-Pearson intervals of the source's rate.
    """
    data = rate_points(rates, grid)
    if data.empty:
        return _empty("No condition follows a source persona.")
    titles, order = labels(grid), list(dict.fromkeys(data["condition"]))
    palette = colours(grid)
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
    """Marker rate by persona and condition, and source where a condition has several; seeds pooled."""
    data = heat_points(rates)
    data = data[data["seed"] == "all"].drop(columns="seed")
    table = data.pivot(index="persona", columns="column", values="rate")
    table = table.loc[list(dict.fromkeys(data["persona"])), list(dict.fromkeys(data["column"]))]
    with plt.rc_context(STYLE | {"axes.grid": False}):
        figure, axes = plt.subplots(
            figsize=(0.62 * len(table.columns) + 2.4, 0.33 * len(table) + 1.4)
        )
        image = axes.imshow(table.to_numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for (i, j), value in np.ndenumerate(table.to_numpy()):
            colour = "white" if value > 0.55 else "#333333"
            axes.text(j, i, share(value), ha="center", va="center", fontsize=7.5, color=colour)
        axes.set_xticks(range(len(table.columns)), table.columns, rotation=45, ha="right")
        axes.set_yticks(range(len(table)), [words(p) for p in table.index])
        axes.spines[:].set_visible(False)
        figure.colorbar(image, label="share of answers with the marker", shrink=0.85)
    return figure, data


def m1_by_layer(geometry: pd.DataFrame, grid: pd.DataFrame) -> Drawn:
    """Mean off-diagonal cosine by layer, a line a condition; below it the personas' spread.

    Lines are means over a condition's chains, bands span them. The spread is the distances' side of the
    same question: a grown common part raises the cosine without moving the personas together.
    """
    wanted = ["m1", "spread"]
    data = layer_points(geometry, wanted)
    if data.empty:
        return _empty("No activations were measured.")
    methods = sorted(data["method"].unique())
    palette, titles = colours(grid), labels(grid)
    order, bases = list(palette), list(palette.values()).count(GREY)
    spoken = {"A": "A: last prompt token", "B": "B: mean over the answer"}
    spoken_metrics = {
        "m1": "mean cosine of persona pairs",
        "spread": "distance to the mean / its norm",
    }
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
                    own = part[part["condition"] == condition].sort_values("layer")
                    base = palette[condition] == GREY
                    lap = max(0, order.index(condition) - bases) // len(PALETTE)
                    axes.plot(
                        own["layer"],
                        own["value"],
                        "--" if base else LINES[2 * lap % len(LINES)],
                        marker=SHAPES[lap % len(SHAPES)],
                        ms=3.5,
                        lw=2 if base else 1.4,
                        color=palette[condition],
                        label=titles.get(condition, condition),
                        zorder=3 if base else 2,
                    )
                    axes.fill_between(
                        own["layer"],
                        own["low"],
                        own["high"],
                        color=palette[condition],
                        alpha=0.13,
                        lw=0,
                    )
                if row == 0:
                    axes.set_title(spoken[method], loc="left")
                else:
                    axes.set_xlabel("block (0-based)")
                    _name_blocks(axes, sorted(data["layer"].unique()))
            panels[row][0].set_ylabel(spoken_metrics[metric])
        handles, names = panels[0][0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside right upper", fontsize=8)
    return figure, data


def _name_blocks(axes: Any, blocks: Sequence[int]) -> None:
    """Ticks at these blocks; names of close neighbours, as of 20 and 21 of 28, lean apart."""
    axes.set_xticks(blocks, [str(block) for block in blocks])
    close = (blocks[-1] - blocks[0]) * 0.07
    for label, block in zip(axes.get_xticklabels(), blocks, strict=True):
        if any(0 < other - block < close for other in blocks):
            label.set_ha("right")
        elif any(0 < block - other < close for other in blocks):
            label.set_ha("left")


def cosine_matrices(cosines: pd.DataFrame, grid: pd.DataFrame, method: str, layer: int) -> Drawn:
    """Persona-by-persona cosines of every condition at one method and layer, on one colour scale.

    `cosines` is cosines.csv; the chains of a condition are averaged.
    """
    data = cosines[(cosines["method"] == method) & (cosines["layer"] == layer)]
    if data.empty:
        return _empty(f"No activations for method {method}, block {layer}.")
    order, titles = base_first(data), labels(grid)
    data = (
        data.groupby(["condition", "persona_a", "persona_b"], sort=False)["cosine"]
        .mean()
        .reset_index()
    )
    personas = list(dict.fromkeys(data["persona_a"]))
    low = min(0.0, float(data["cosine"].min()))
    with plt.rc_context(STYLE | {"axes.grid": False}):
        figure, panels = _panels(len(order), 4, 2.35, 2.45, extra=(1.2, 0.8))
        image: Any = None
        for axes, condition in zip(panels, order, strict=True):
            table = data[data["condition"] == condition].pivot(
                index="persona_a", columns="persona_b", values="cosine"
            )
            matrix = table.loc[personas, personas].to_numpy()
            image = axes.imshow(matrix, cmap="viridis", vmin=low, vmax=1)
            mean = matrix[np.triu_indices(len(personas), 1)].mean()
            title = titles.get(condition, condition)
            axes.set_title(f"{title}\nmean {mean:.3f}", fontsize=7.5, loc="left")
            axes.set_xticks([])
            names = [words(p) for p in personas] if _first(axes) else []
            axes.set_yticks(range(len(personas)) if names else [], names, fontsize=6.5)
            axes.spines[:].set_visible(False)
        figure.colorbar(image, ax=figure.axes, label="cosine", shrink=0.6)
    return figure, data


def training_curves(curves: pd.DataFrame) -> Drawn:
    """Training loss by step, a panel a stage, a line a chain."""
    if curves.empty:
        return _empty("Nothing was trained.")
    stages = list(dict.fromkeys(curves["stage"]))
    with plt.rc_context(STYLE):
        figure, panels = _panels(len(stages), 3, 3.2, 2.5)
        for axes, stage in zip(panels, stages, strict=True):
            part = curves[curves["stage"] == stage]
            for i, (line, own) in enumerate(part.groupby(curve_lines(part), sort=False)):
                axes.plot(
                    own["step"],
                    own["loss"],
                    color=PALETTE[i % len(PALETTE)],
                    # Another style in the second round of colours.
                    ls=LINES[(i + i // len(PALETTE)) % len(LINES)],
                    lw=1.3,
                    label=line,
                )
            axes.set_title(stage, loc="left")
            if _first(axes):
                axes.set_ylabel("loss")
            axes.set_ylim(0, 1.08 * part["loss"].max())
            axes.set_xlabel("step")
            axes.legend(fontsize=6)
    return figure, curves


def behaviour_and_geometry(
    rates: pd.DataFrame, geometry: pd.DataFrame, grid: pd.DataFrame, method: str, layer: int
) -> Drawn:
    """Source marker rate against M1 of the same chain: the study's proposed mechanism, as a scatter."""
    data = behaviour_points(rates, geometry, grid).query(
        "metric == 'm1' and method == @method and layer == @layer"
    )
    data = data.drop(columns=["method", "layer", "metric"]).rename(columns={"value": "m1"})
    if data.empty:
        return _empty("No coupled chain was measured both ways.")
    palette, titles = colours(grid), labels(grid)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(5.6, 3.4))
        for i, (condition, own) in enumerate(data.groupby("condition", sort=False)):
            axes.scatter(
                own["m1"],
                own["rate"],
                s=42,
                marker=SHAPES[i % len(SHAPES)],
                color=palette[str(condition)],
                label=titles[str(condition)],
            )
        _unit(axes)
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel(f"mean off-diagonal cosine (method {method}, block {layer})")
        axes.set_ylabel("marker rate of the source")
        axes.legend(fontsize=7.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure, data


def dose_response(
    rates: pd.DataFrame,
    geometry: pd.DataFrame,
    training: pd.DataFrame,
    grid: pd.DataFrame,
    method: str,
    layer: int,
) -> Drawn:
    """Marker rate and mean cosine against the steps of the last stage, a row a source, a line a chain.

    Whiskers are the tables' 95 % intervals.
    """
    data = dose_points(rates, geometry, training, grid, method, layer)
    if data.empty:
        return _empty("No chain's last stage was stopped early: this run has no doses.")
    outcomes, sources = (list(dict.fromkeys(data[c])) for c in ("outcome", "source"))
    bounded, columns = set(data.loc[data["metric"] == "rate", "outcome"]), len(outcomes)
    with plt.rc_context(STYLE):
        figure, panels = _panels(columns * len(sources), columns, 3.2, 2.7, extra=(2.4, 0))
        cells = [(source, outcome) for source in sources for outcome in outcomes]
        for axes, (source, outcome) in zip(panels, cells, strict=True):
            lines = list(data[data["source"] == source].groupby("series", sort=False))
            for i, (series, own) in enumerate(lines):
                part = own[own["outcome"] == outcome].sort_values("steps")
                reach = [part["value"] - part["low"], part["high"] - part["value"]]
                axes.errorbar(
                    part["steps"],
                    part["value"],
                    yerr=[side.clip(lower=0) for side in reach],
                    marker=SHAPES[i % len(SHAPES)],
                    # Another style in the second round of shapes.
                    ls=LINES[(i + i // len(SHAPES)) % len(LINES)],
                    color=PALETTE[i % len(PALETTE)],
                    ms=4.5,
                    lw=1.2,
                    capsize=2,
                    elinewidth=0.8,
                    label=series,
                )
            axes.set_xlabel("steps of the last stage")
            axes.set_ylabel(outcome, fontsize=8)
            if outcome in bounded:
                _unit(axes)
            if _first(axes):
                axes.set_title(f"source: {words(source) or 'none'}", loc="left")
            if outcome == outcomes[-1]:
                axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=7)
    return figure, data


def leakage(
    rates: pd.DataFrame,
    cosines: pd.DataFrame,
    correlations: pd.DataFrame,
    grid: pd.DataFrame,
    method: str,
    layer: int,
) -> Drawn:
    """Marker rate of the other personas against their cosine to the source, a panel a condition."""
    data = leakage_points(rates, cosines, correlations, grid, method, layer)
    if data.empty:
        return _empty("No condition follows a source persona, or no activations were measured.")
    cells = list(data.groupby("cell", sort=False))
    with plt.rc_context(STYLE):
        figure, panels = _panels(len(cells), 2, 3.7, 3.1)
        for axes, (cell, own) in zip(panels, cells, strict=True):
            axes.scatter(own["cosine"], own["rate"], s=14, color=PALETTE[0])
            _unit(axes)
            axes.margins(x=0.08)
            axes.locator_params(axis="x", nbins=4)
            test = own["test"].iloc[0].split("; ")
            axes.set_title(_wrapped(str(cell), *test), loc="left", fontsize=7.5)
            axes.set_xlabel("cosine to the source, base model", fontsize=8)
            if _first(axes):
                axes.set_ylabel("share of answers with the marker", fontsize=8)
        figure.draw_without_rendering()
        for axes, (_, own) in zip(panels, cells, strict=True):
            marks = own[["cosine", "rate"]].set_axis(["x", "y"], axis=1)
            _name(axes, own["persona"].map(words), marks["x"], marks["y"], marks)
    return figure, data


def persona_map(points: pd.DataFrame, grid: pd.DataFrame, method: str, layer: int) -> Drawn:
    """Persona vectors on the base model's first two components, before and after the last stage.

    A panel a condition and source, all its seeds in it; names stand at the first seed's.
    """
    data = persona_moves(points, grid)
    if not data.empty:
        data = data[(data["method"] == method) & (data["layer"] == layer)]
    if data.empty:
        return _empty(
            f"No chain beside the base model has activations (method {method}, block {layer})."
        )
    titles = labels(grid)
    cells = list(data.groupby(["condition", "source"], sort=False))
    several = data.groupby("condition")["source"].nunique()
    with plt.rc_context(STYLE):
        figure, panels = _panels(len(cells), 2, 3.7, 3.1)
        for axes, ((condition, source), own) in zip(panels, cells, strict=True):
            for at in own.itertuples(index=False):
                across, up = [at.pc1_before, at.pc1_after], [at.pc2_before, at.pc2_after]
                axes.plot(across, up, color=GREY, lw=0.9, zorder=1.4)  # behind the names
            before: dict[str, Any] = {
                "color": PALETTE[1],
                "mfc": "white",
                "marker": "D",
                "ms": 3.5,
                "ls": "",
            }
            axes.plot(own["pc1_before"], own["pc2_before"], **before)
            axes.plot(own["pc1_after"], own["pc2_after"], "o", color=PALETTE[0], ms=3.5)
            share = sorted({f"{100 * value:.0f}" for value in own["captured"]}, key=int)
            name = titles[condition] + (f" ({words(source)})" if several[condition] > 1 else "")
            held = " to ".join(dict.fromkeys([share[0], share[-1]]))
            axes.set_title(
                _wrapped(name, f"{held} % of variance in this plane"), loc="left", fontsize=7.5
            )
            axes.margins(0.12)
            axes.set_xlabel("first component of the base model", fontsize=8)
            if _first(axes):
                axes.set_ylabel("second component", fontsize=8)
        figure.draw_without_rendering()
        for axes, (_, own) in zip(panels, cells, strict=True):
            ends = [
                own[[f"pc1_{w}", f"pc2_{w}"]].set_axis(["x", "y"], axis=1)
                for w in ("before", "after")
            ]
            first = ends[1][own["after"] == own["after"].iloc[0]]
            names = own.loc[first.index, "persona"].map(words)
            _name(axes, names, first["x"], first["y"], pd.concat(ends))
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
