"""How well does a chain predict data that no stage was trained on?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..models import chat_template
from . import _passes, measure

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from ..models.runner import ModelRunner


COLUMNS = ["data", "own", "rows", "tokens", "loss", "ci_low", "ci_high"]


@measure("task_loss")
def task_loss(
    runner: ModelRunner,
    adapters: Sequence[Path],
    held_out: Mapping[str, Sequence[Mapping[str, Any]]] | None,
    data: Mapping[str, Mapping[str, Any]] | None,
    log: Callable[[str], None],
) -> pd.DataFrame:
    """One row per data set with held-out rows: mean loss per token with loss, in nats.

    `held_out` and `data` are None in a run that holds nothing out; its table has no rows.

    `own`: the chain's last stage was trained on the set's other rows. The 95 % interval is over rows: a
    ratio of sums, linearised (Cochran 1977, chapter 6), with Student's t.
    """
    import pandas as pd

    if held_out is None or data is None:
        return pd.DataFrame(columns=COLUMNS)
    rows = []
    with runner.chain(adapters) as model:
        for name, conversations in held_out.items():
            encoded = [
                chat_template.encode_row(
                    runner.tokenizer,
                    row["messages"],
                    supervise=data[name]["supervise"],
                    max_length=data[name]["max_length"],
                    system=data[name]["system"],
                    suppress_default_system=data[name]["suppress_default_system"],
                )
                for row in conversations
            ]
            chosen = [(row.input_ids, [label != -100 for label in row.labels]) for row in encoded]
            sums, counts = _passes.surprises(model, chosen, runner.tokenizer.pad_token_id)
            rows.append({"data": name, "own": data[name]["own"], **mean_per_token(sums, counts)})
            log(f"loss of {name}: {rows[-1]['loss']:.3f}")
    return pd.DataFrame(rows, columns=COLUMNS)


def mean_per_token(sums: np.ndarray, counts: np.ndarray) -> dict[str, float]:
    """Rows, tokens, mean loss per token and its interval; `sums` and `counts` [row]."""
    import numpy as np
    from scipy import stats

    rows, tokens = len(sums), int(counts.sum())
    loss = sums.sum() / tokens
    apart = np.sum((sums - loss * counts) ** 2) * rows / max(1, rows - 1)
    half = stats.t.ppf(0.975, rows - 1) * np.sqrt(apart) / tokens if rows > 1 else np.nan
    return {
        "rows": rows,
        "tokens": tokens,
        "loss": float(loss),
        "ci_low": float(loss - half),
        "ci_high": float(loss + half),
    }
