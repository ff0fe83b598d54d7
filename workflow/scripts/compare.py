"""Write results/compare/<a>-<b>.html: two finished runs side by side.

    python workflow/scripts/compare.py A B [--results DIR]

Reads the tables in results/A and results/B; runs no rule.
"""

import argparse
import sys
from pathlib import Path

from persona_collapse.errors import UserError
from persona_collapse.files import write_text
from persona_collapse.report import compare


def main():
    """Parse the arguments, compare, write, say where."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", metavar="RUN", help="name of a run in results/")
    parser.add_argument("--results", type=Path, default=Path("results"))
    given = parser.parse_args()
    try:
        if len(set(given.runs)) != 2 or len(given.runs) != 2:
            raise UserError('two different runs are wanted: make compare RUNS="a b"')
        runs = [compare.load(given.results, name) for name in given.runs]
    except UserError as error:
        sys.exit(f"persona-collapse: {error}")
    path = given.results / "compare" / f"{'-'.join(given.runs)}.html"
    write_text(path, compare.render(runs))
    print(path)


if __name__ == "__main__":
    main()
