"""Shared helpers for the figures' data: names, titles, the headline, and label placement."""

from __future__ import annotations

import pandas as pd


def words(name: str) -> str:
    """A persona's name as words."""
    return name.replace("_", " ")


def titled(rows: pd.DataFrame, design: pd.DataFrame) -> pd.DataFrame:
    """`rows` with a column `title` after `condition`; empty if the design does not have the condition."""
    titles = design.drop_duplicates("condition").set_index("condition")["title"]
    rows = rows.copy()
    rows.insert(
        rows.columns.get_loc("condition") + 1,
        "title",
        rows["condition"].map(titles).fillna(""),
    )
    return rows


def labels(rows: pd.DataFrame) -> pd.Series:
    """Label of each row's condition: name, title, and the source if it has several."""
    sources = rows.get("source", pd.Series("", index=rows.index))
    several = sources.groupby(rows["condition"]).nunique()
    return pd.Series(
        [
            c
            + (f": {t}" if t else "")
            + (f" ({words(s) or 'no source'})" if several[c] > 1 else "")
            for c, t, s in zip(rows["condition"], rows["title"], sources, strict=True)
        ],
        index=rows.index,
        dtype=object,
    )


def base_first(rows: pd.DataFrame, bases: pd.Series) -> pd.DataFrame:
    """`rows` sorted by condition in order of appearance, with those of the base model (`bases`) first."""
    order = {c: i for i, c in enumerate(dict.fromkeys(rows["condition"]))}
    own = set(rows.loc[bases, "condition"])
    return rows.sort_values(
        "condition", key=lambda c: c.map(lambda n: (n not in own, order[n])), kind="stable"
    )


#: Allowed positions of a name, in pixels below its point: near, and further away.
NEAR = (-10, 12, -22, 24, -34, 36, -46, 48)
FAR = (*range(-58, -170, -12), *range(60, 172, 12))


def places(
    names: pd.Series,
    x: pd.Series,
    y: pd.Series,
    width: float,
    height: float,
    marks: pd.DataFrame,
) -> pd.DataFrame:
    """Positions for the names of points: columns `lift` and `shift`, pixels below and right of the
    point.

    As far as there is room, names overlap no other name and no mark, and stay inside the drawing. `x`,
    `y` and the `marks` (columns x, y) are fractions of the drawing, y from the top; `width` and
    `height` are its pixels. Names are assumed to be 6 pixels wide per letter and 12 high. They are
    placed above or below their points, to the right or left, slightly offset, or else far away.
    """
    taken = [
        (at.x * width - 4, at.x * width + 4, at.y * height - 4, at.y * height + 4)
        for at in marks.itertuples()
    ]
    found = {}
    for i in x.sort_values().index:
        half, across = 3 * len(names[i]), x[i] * width
        aside = [(lift, side * 0.8 * half) for lift in NEAR for side in (1, -1)]
        straight = [(lift, 0.0) for lift in (*NEAR, *FAR)]
        beside = [(0, half + 5), (0, -half - 5)]
        boxes = {}
        for lift, off in (*straight[:2], *beside, *straight[2:8], *aside, *straight[8:]):
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
        crowded = next(iter(boxes), (NEAR[0], 0.0))  # no box: the point is NaN
        found[i] = next(free, crowded)
        taken += [boxes[place] for place in boxes if place == found[i]]
    return pd.DataFrame.from_dict(found, orient="index", columns=["lift", "shift"])
