"""The study's hypotheses on leakage: H1, H2 and H3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..chains import ASSISTANT, model_of
from ..statistics import (
    one_against_others,
    range_permutation_test,
    spearman_exact,
    spearman_floor,
)
from .correlations import partial_spearman

COLUMNS = [
    "hypothesis", "condition", "source", "induction", "cosine_to_assistant", "bystander_mean",
    "estimate", "n", "p", "p_floor", "note", "ci_low", "ci_high",
]  # fmt: skip

#: Number of conditions up to which H3's p is from all orders.
MOST_EXACT = 9


def hypotheses(
    design: pd.DataFrame,
    rates: pd.DataFrame,
    base_cosines: pd.DataFrame,
    conditions: Sequence[str],
    *,
    draws: int,
    seed: int,
    assistant: str = ASSISTANT,
) -> pd.DataFrame:
    """The study's H1, H2 and H3 on the bystanders' marker rates after different induction personas.

    H1, per condition: does the induction persona itself leak more than the other bystanders? H2: the
    range of the conditions' mean bystander rates, with labels permuted over personas. H3: Spearman
    correlation of those means with the induction persona's cosine with the assistant in the base model
    (`base_cosines`: chain, persona_a, persona_b, cosine), with p from all orders (from ten conditions on,
    from `draws` random ones) and, from four conditions on, Bonett and Wright's interval. A condition
    without an induction persona counts as the assistant, as in the study. Bystanders: all personas
    except the sources and the induction persona.
    """
    rows: list[dict[str, Any]] = []
    values: list[float] = []
    labels: list[str] = []
    means: list[tuple[float, float]] = []
    cosine = base_cosines.set_index(["chain", "persona_a", "persona_b"])["cosine"].to_dict()
    for condition in conditions:
        group = rates[rates["condition"] == condition]
        if group.empty:
            continue
        cells = design[design["condition"] == condition]
        induction, sources = cells["induction"].iloc[0] or assistant, set(cells["source"])
        by_persona = group.groupby("persona", sort=False)["rate"].mean()
        others = by_persona.drop([*sources, induction], errors="ignore")
        pair = model_of(cells["chain"].iloc[0]), induction, assistant
        near = 1.0 if induction == assistant else cosine.get(pair, np.nan)
        row: dict[str, Any] = {
            "condition": condition,
            "induction": induction,
            "source": ", ".join(dict.fromkeys(cells["source"])),
            "cosine_to_assistant": near,
            "bystander_mean": others.mean(),
            "hypothesis": "H1",
            "n": len(others) + (induction in by_persona),
        }
        if induction in by_persona:
            difference, p = one_against_others(by_persona[induction], others)
            row |= {"estimate": difference, "p": p, "p_floor": 1 / (len(others) + 1)}
            row["note"] = "one-sided: does it leak more?"
        else:
            row["note"] = f"{induction} is not among the evaluated personas"
        rows.append(row)
        values += list(others)
        labels += [condition] * len(others)
        means.append((near, float(others.mean())))
    if len(set(labels)) > 1:
        spread, p = range_permutation_test(values, labels, draws, seed)
        rows.append(
            {
                "hypothesis": "H2",
                "estimate": spread,
                "p": p,
                "p_floor": 1 / (draws + 1),
                "n": len(values),
                "note": "one training run per condition: variation between runs is not in this p",
            }
        )
    known = [pair for pair in means if not np.isnan(pair[0])]
    if len(known) >= 3:
        cosines, leaks = (np.asarray(side) for side in zip(*known, strict=True))
        row = {"hypothesis": "H3", "n": len(known)}
        if np.ptp(cosines) > 0 and np.ptp(leaks) > 0:
            found = partial_spearman(cosines, leaks, draws=draws, seed=seed)
            row |= {key: found[key] for key in ("p", "p_floor", "ci_low", "ci_high")}
            row["estimate"] = found["rho"]
            if len(known) <= MOST_EXACT:
                row["estimate"], row["p"] = spearman_exact(cosines, leaks)
                row["p_floor"] = spearman_floor(cosines, leaks)
            else:
                row["note"] = f"p from {draws} random orders"
        rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS)
