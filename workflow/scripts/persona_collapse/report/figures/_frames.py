"""What the figures' data have in common: names, titles, the headline, and places of labels."""

from __future__ import annotations

import pandas as pd


def words(name: str) -> str:
    """A persona's name as words."""
    return name.replace("_", " ")


def titled(rows: pd.DataFrame, design: pd.DataFrame) -> pd.DataFrame:
    """`rows` with a column `title` after their `condition`; empty where the design does not have it."""
    titles = design.drop_duplicates("condition").set_index("condition")["title"]
    rows = rows.copy()
    rows.insert(
        rows.columns.get_loc("condition") + 1,
        "title",
        rows["condition"].map(titles).fillna(""),
    )
    return rows


def labels(rows: pd.DataFrame) -> pd.Series:
    """What each row's condition is called: its name, title, and the source where it has several."""
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
    """`rows` sorted by condition, as they come but those of the base model (`bases`) first."""
    order = {c: i for i, c in enumerate(dict.fromkeys(rows["condition"]))}
    own = set(rows.loc[bases, "condition"])
    return rows.sort_values(
        "condition", key=lambda c: c.map(lambda n: (n not in own, order[n])), kind="stable"
    )


#: Where a name may stand, in pixels below its point: by it, and further off.
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
    """Where the names of points can stand: columns `lift` and `shift`, pixels below and right of the point.

    Names lie on no other name and no mark, and inside the drawing, as far as there is room. `x`, `y` and
    the `marks` (columns x, y) are fractions of the drawing, y from above; `width` and `height` are its
    pixels. Names are taken as 6 pixels per letter and 12 high. They stand above or below their points,
    to the right or left, a little aside, or else far off.
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
        crowded = next(iter(boxes), (NEAR[0], 0.0))  # none: its point is not a number
        found[i] = next(free, crowded)
        taken += [boxes[place] for place in boxes if place == found[i]]
    return pd.DataFrame.from_dict(found, orient="index", columns=["lift", "shift"])
