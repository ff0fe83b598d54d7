"""docs/faults.md lists exactly the faults that are tested, with their number of cases."""

import importlib.util
import math
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/faults.md").read_text()
CLOSING = "test_after_many_faults_at_once_the_whole_run_is_the_undisturbed_one"


def cases():
    """{test: number of its cases} of the injected faults."""
    spec = importlib.util.spec_from_file_location("faults", ROOT / "tests/workflow/test_faults.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {
        name: math.prod(
            len(mark.args[1])
            for mark in getattr(test, "pytestmark", [])
            if mark.name == "parametrize"
        )
        for name, test in vars(module).items()
        if name.startswith("test_") and name != CLOSING
    }


def test_the_table_holds_the_faults_that_are_tried():
    listed = {}
    for tried, name in re.findall(r"^\|[^|]*\| (\d+) \|.*\| `(\w+)` \|$", PAGE, re.M):
        listed[name] = listed.get(name, 0) + int(tried)
    assert listed == cases()
    assert f"**{sum(listed.values())} faults tried, nothing lost.**" in PAGE
