"""Makes the package under workflow/scripts importable, as Snakemake's scripts see it."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "workflow" / "scripts"))
