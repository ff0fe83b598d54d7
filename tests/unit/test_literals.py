"""Constants that are read without importing a file."""

import pytest
from persona_collapse import literals
from persona_collapse.analysis import claims
from persona_collapse.errors import UserError
from persona_collapse.report import page


def test_constants_are_those_of_the_imported_module():
    assert literals.constant("analysis.claims", "TABLES") == claims.TABLES
    assert literals.constant("report.page", "TABLES") == page.TABLES


def test_what_is_computed_has_no_value(tmp_path):
    path = tmp_path / "some.py"
    path.write_text("ONE = 1\nTWO = ONE + 1\nTEXT = 'a' 'b'\n")
    assert literals.constants(path) == {"ONE": 1, "TEXT": "ab"}
    with pytest.raises(UserError, match=r"page\.py: expected RESOURCES written out as a literal"):
        literals.constant("report.page", "RESOURCES")
