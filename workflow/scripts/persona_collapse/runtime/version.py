"""The commit of this code, as manifests and the report name it."""

import subprocess
from pathlib import Path


def commit() -> str:
    """Commit of this code, with a mark if files differ from it; empty outside a git checkout."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
