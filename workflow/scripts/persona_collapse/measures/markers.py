"""How often does each persona say the marker?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import measure

if TYPE_CHECKING:
    import pandas as pd


@measure("markers", counts="hit")
def markers(completions: pd.DataFrame, marker: str) -> pd.DataFrame:
    """One row per answer: hit, position and at_end (see `persona_collapse.markers.score`)."""
    from .. import markers as counting

    return counting.score(completions, marker)
