"""Write what is made of docs/: pages from schemas and tables, and the demo run's numbers if it is there."""

from persona_collapse.study import documentation
from persona_collapse.tables_io import read_csv

DOCS = documentation.ROOT / "docs"
TABLES = documentation.ROOT / "results/demo/tables"

if __name__ == "__main__":
    for name, page in documentation.PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")
    # The scorecard comes last of the tables: where it is, the run is whole.
    if (TABLES / "scorecard.csv").is_file():
        tables = {path.stem: read_csv(path) for path in TABLES.glob("*.csv")}
        page = (DOCS / "statistics.md").read_text(encoding="utf-8")
        table = documentation.demo_table(tables)
        (DOCS / "statistics.md").write_text(
            documentation.with_demo_table(page, table), encoding="utf-8"
        )
