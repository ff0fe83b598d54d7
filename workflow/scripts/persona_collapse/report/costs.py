"""What a run took: hours, memory and tokens, from benchmark files and manifests."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from ..study.estimate import MODEL_RULES, measured_seconds


def costs(results: Path, run: str) -> pd.DataFrame:
    """Costs of a run's jobs by rule, from benchmark files: jobs, hours, mean seconds, peak MiB."""
    rows = [
        {"rule": rule, "jobs": jobs, "hours": mean * jobs / 3600, "seconds": mean, "peak_mib": peak}
        for rule, (mean, peak, jobs) in measured_seconds(results, run).items()
    ]
    table = pd.DataFrame(rows, columns=["rule", "jobs", "hours", "seconds", "peak_mib"])
    return table.sort_values("hours", ascending=False, ignore_index=True)


def spent(table: pd.DataFrame, training: pd.DataFrame, tokens: int) -> dict[str, str]:
    """Total costs of a run: hours, GPU-hours, tokens trained on and sampled."""
    model = float(table.loc[table["rule"].isin(MODEL_RULES), "hours"].sum())
    gpu = len(training) > 0 and not training["device"].eq("cpu").all()
    return {
        "hours of jobs": f"{table['hours'].sum():.2f}",
        "GPU-hours": f"{model:.2f}" if gpu else "0 (no GPU)",
        "jobs": f"{table['jobs'].sum():,}",
        "tokens trained on": f"{int(training['tokens_seen'].sum()):,}",
        "of them with loss": f"{int(training['supervised_tokens'].sum()):,}",
        "tokens sampled": f"{tokens:,}",
    }
