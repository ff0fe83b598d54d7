"""The commit of this code, as manifests and the report name it."""

import subprocess
from pathlib import Path

#: Folder of the code: a file there that git does not know is code too, such as a measure of one's own.
CODE = Path(__file__).resolve().parents[2]


def commit() -> str:
    """Commit of this code, with `-dirty` if files differ from it or the code has files that are not in it.

    Empty outside a git checkout.
    """
    try:
        found = _git("describe", "--always", "--abbrev=40", "--dirty", "--exclude=*")
        unknown = found and _git("ls-files", "--others", "--exclude-standard")
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return f"{found}-dirty" if unknown and not found.endswith("-dirty") else found


def _git(*arguments: str) -> str:
    """What git says in the folder of the code; empty if it fails."""
    done = subprocess.run(["git", *arguments], cwd=CODE, capture_output=True, text=True, timeout=10)
    return done.stdout.strip() if done.returncode == 0 else ""
