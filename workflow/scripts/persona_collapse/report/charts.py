"""What `compare` asks of the figures, until it asks them itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from .figures import _render, catalogue
from .figures._render import Chart


def _chart(name: str, *tables: pd.DataFrame, **options: Any) -> Chart | None:
    figure = catalogue()[name]
    rows = _render.data(figure, dict(zip(figure.tables, tables, strict=True)))
    return _render.page(figure, rows, **options)


def marker_rate(rates: pd.DataFrame, design: pd.DataFrame) -> Chart | None:
    """The figure of that name, as a chart of a page."""
    return _chart("marker_rate", rates, design)


def m1(
    geometry: pd.DataFrame,
    design: pd.DataFrame,
    method: str,
    layer: int,
    domains: Mapping[str, tuple[float, float]] | None = None,
) -> Chart | None:
    """The figure of that name, as a chart of a page, on given axes."""
    return _chart("m1", geometry, design, domains=domains)
