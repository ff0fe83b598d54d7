"""How often does each persona say the marker?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import measure

if TYPE_CHECKING:
    import pandas as pd


@measure("markers", counts="hit")
def markers(completions: pd.DataFrame, marker: str) -> pd.DataFrame:
    """One row per answer: position of the marker, length and ending; texts stay in the completions files."""
    from .. import markers as counting

    return counting.answers(completions, marker)
