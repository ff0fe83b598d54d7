"""Power of a run's design: the smallest p that it can give, and the effect that it detects with a power
of .8."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from ..statistics import fisher, fisher_power
from .simulation import Sizes

COLUMNS = ["test", "unit", "effect", "detectable", "n", "p_floor", "note"]


def power_table(
    sizes: Sizes, geometry: pd.DataFrame, *, draws: int, rate: float = 0.9
) -> pd.DataFrame:
    """Power of this run's design: smallest attainable p, and the effect detected with a power of .8.

    Fisher: exact power for a drop from `rate`.
    M1: from the median standard error over personas in `geometry` (m1, test `personas`).
    """
    n = sizes.questions * sizes.samples
    drops = [0.02 * step for step in range(1, int(rate / 0.02) + 1)]
    seen = [drop for drop in drops if fisher_power(rate - drop, n, rate, n) >= 0.8]
    rows: list[dict[str, Any]] = [
        {
            "test": "Fisher on completions",
            "unit": "completion",
            "n": n,
            "p_floor": fisher(0, n, n, n)[0],
            "effect": f"drop of the marker rate from {rate:g}",
            "detectable": min(seen, default=np.nan),
            "note": "completions as independent: at best",
        },
        {
            "test": "sign flips over questions",
            "unit": "question",
            "n": sizes.questions,
            "p_floor": max(2.0 ** (1 - sizes.questions), 1 / (draws + 1)),
        },
        {
            "test": "H1, rank of the induction persona",
            "unit": "persona",
            "n": sizes.personas - 1,
            "p_floor": 1 / (sizes.personas - 1),
            "note": "cannot reach .05 with fewer than 20 personas" if sizes.personas < 21 else "",
        },
        {
            "test": "H3, Spearman over five conditions",
            "unit": "condition",
            "n": 5,
            "p_floor": 2 / 120,
            "note": "only a perfect order is below .05",
        },
    ]
    effects = geometry[(geometry["test"] == "personas") & geometry["delta_low"].notna()]
    if len(effects) and sizes.personas > 2:
        t = stats.t.ppf([0.975, 0.8], sizes.personas - 1)
        half = ((effects["delta_high"] - effects["delta_low"]) / 2).median()
        rows.append(
            {
                "test": "sign flips over persona effects (M1)",
                "unit": "persona",
                "n": sizes.personas,
                "p_floor": max(2.0 ** (1 - sizes.personas), 1 / (draws + 1)),
                "effect": "change of M1",
                "detectable": half / t[0] * t.sum(),
                "note": "median over chains, methods and blocks of this run",
            }
        )
    return pd.DataFrame(rows, columns=COLUMNS)
