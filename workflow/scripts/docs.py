"""Write the pages of docs/ that are made from other files: `make docs`."""

from persona_collapse import documentation

if __name__ == "__main__":
    for name, page in documentation.PAGES.items():
        (documentation.ROOT / "docs" / name).write_text(page(), encoding="utf-8")
