"""Contrasts of mean cosines between conditions: tests of a difference and of equivalence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from .. import geometry as geo
from ..statistics import Families, adjust, sign_flip_test, sign_flip_units, tost_units
from .geometry_runs import in_cosines
from .views import Headline, Load, mark_headline, measuring, views

COLUMNS = [
    "condition", "reference", "chain", "reference_chain", "source", "seed", "method", "layer",
    "headline", "metric", "estimate", "ci_low", "ci_high", "n", "p", "p_floor", "q", "family",
    "p_pairs", "margin", "p_equivalent",
]  # fmt: skip


def contrasts_table(
    design: pd.DataFrame,
    load: Load,
    headline: Headline,
    contrasts: Sequence[tuple[str, str]],
    *,
    margin: float | Mapping[tuple[str, int], float],
    draws: int,
    seed: int,
    families: Families = (),
) -> pd.DataFrame:
    """M1 of one condition minus another's, with tests of a difference and of equivalence.

    `contrasts`: (condition, reference); see `_pairs` for which chains are compared. `margin`:
    equivalence margin of M1, or by method and block that of log(1 - M1). `p`: sign flips over the
    personas' effects. `p_pairs`: over pairs, as in the study. `p_equivalent`: the larger p of two
    one-sided t tests over personas; small if the difference is within the margin. Interval: jackknife
    over personas. All of these are about these two chains; `geometry_runs` accounts for retraining. q
    is Benjamini-Hochberg within `families`. Contrasts whose conditions are not in the design are left
    out.
    """
    pairs = [pair for contrast in contrasts for pair in _pairs(design, *contrast)]
    compared = {pair[key] for pair in pairs for key in ("chain", "reference_chain")}
    vectors: dict[str, dict[tuple[str, int], np.ndarray]] = {}
    for view in views(design[design["chain"].isin(compared)], load):
        vectors.setdefault(view.chain, {})[view.cell] = view.vectors
    rows = []
    for pair in pairs:
        if pair["chain"] == pair["reference_chain"]:
            continue
        for cell, after in vectors[pair["chain"]].items():
            before = vectors[pair["reference_chain"]].get(cell)
            if before is None:
                continue  # a model with other blocks
            effects = geo.persona_effects(after, before)
            if len(effects) < 3:
                continue
            low, high = geo.jackknife_interval(effects)
            p, floor = sign_flip_units(effects, draws, seed)
            most = (
                in_cosines(margin[cell], geo.mean_offdiagonal_cosine(before))
                if isinstance(margin, Mapping)
                else margin
            )
            p_pairs = sign_flip_test(geo.pair_cosines(after), geo.pair_cosines(before), draws, seed)
            rows.append(
                pair
                | dict(zip(("method", "layer"), cell, strict=True))
                | {"metric": "m1", "estimate": effects.mean(), "ci_low": low, "ci_high": high}
                | {"n": len(effects), "p": p, "p_floor": floor, "p_pairs": p_pairs}
                | {"margin": most, "p_equivalent": tost_units(effects, most)}
            )
    table = mark_headline(pd.DataFrame(rows, columns=COLUMNS), headline)
    return adjust(table, families).reindex(columns=COLUMNS)


def _pairs(design: pd.DataFrame, condition: str, reference: str) -> Iterator[dict[str, str]]:
    """Pairs of chains of two conditions to compare, as the table's keys.

    Chains are paired by source and seed. If the reference does not follow that source, its chains of
    any source are used. If one side has a single chain, it is compared with all chains of the other.
    """
    measured = measuring(design, "activations")
    cells, references = (
        measured[measured["condition"] == name].drop_duplicates("chain")
        for name in (condition, reference)
    )
    for cell in cells.itertuples(index=False):
        siblings = cells[cells["source"] == cell.source]
        others = references
        if cell.source in set(others["source"]):
            others = others[others["source"] == cell.source]
        same = others[others["seed"] == cell.seed]
        if same.empty and 1 in (len(siblings), len(others)):
            same = others
        for other in same.itertuples(index=False):
            yield {
                "condition": condition,
                "reference": reference,
                "chain": cell.chain,
                "reference_chain": other.chain,
                "source": cell.source,
                "seed": cell.seed if len(others) == 1 else other.seed,
            }
