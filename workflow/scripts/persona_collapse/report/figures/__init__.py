"""The figures, one file each: text, numbers and drawing, for the page and for papers.

A file of this folder whose name does not start with an underscore is a figure. Its constants describe
it:

    TITLE, READING   heading, and how to read it
    TABLES           tables of the run that it is made from
    SECTION, RANK    place on the page: the section's id, and the position in it (default: last)
    PANELS           selects of the page that become panels, one per choice, in papers (default: none)
    MOST_ROWS        largest number of rows on the page (default: 12,000); it then shows fewer chains
                     and says so
    EMPTY            text of the file for papers if the run has no such data

and two functions do the work:

    data(*tables) -> DataFrame   the numbers, one tidy frame: also the figure's .csv
    draw(rows, choose) -> Chart  the drawing in Altair; `choose` is `_style.Choices`

A drawing's `usermeta` may hold what the layout cannot know: `letters`, length of the longest name in
its legend; `beside`, length of the longest name next to its panels; `above`, the field of names that go
above their rows in a narrow layout.

The constants are read from the file's syntax tree, because Snakemake needs them and has no Altair.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...literals import constants

#: Ids of the page's sections with figures.
SECTIONS = ("findings", "behaviour", "geometry", "link", "models", "trust", "training")


@dataclass(frozen=True)
class Figure:
    """The constants of a figure's file."""

    name: str
    title: str
    reading: str
    tables: tuple[str, ...]
    section: str
    rank: int = 99
    panels: tuple[str, ...] = ()
    most_rows: int = 12_000
    empty: str = "This run has nothing to show here."

    @property
    def module(self) -> Any:
        """The figure's module, with `data` and `draw`."""
        return importlib.import_module(f"{__name__}.{self.name}")


def _read(path: Path) -> Figure:
    given = {key.lower(): value for key, value in constants(path).items()}
    known = {key: given[key] for key in Figure.__dataclass_fields__ if key in given}
    missing = [key.upper() for key in ("title", "reading", "tables", "section") if key not in known]
    if missing:
        raise UserError(f"{path}: a figure needs {', '.join(missing)}, written out as a literal")
    for key in ("tables", "panels"):
        if not isinstance(known.get(key, ()), tuple):
            raise UserError(f'{path}: expected {key.upper()} to be a tuple, ("a_table",)')
    if known["section"] not in SECTIONS:
        raise UserError(f"{path}: expected SECTION to be one of {', '.join(SECTIONS)}")
    return Figure(**known | {"name": path.stem})


def catalogue() -> dict[str, Figure]:
    """Every figure by its name, in the page's order within a section."""
    files = sorted(path for folder in __path__ for path in Path(folder).glob("[!_]*.py"))
    return {f.name: f for f in sorted(map(_read, files), key=lambda f: f.rank)}
