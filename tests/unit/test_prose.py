"""Words of the field, in pages, messages and comments: patterns that are easy to write and hard to read."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UNITS = "chain|condition|row|job|kind|persona|question|block|layer|token|hit|run|seed|GPU|figure"
AMOUNTS = "seconds|minutes|tokens|rows|lines|markers|answers|completions|vectors|columns|objects"
#: {what not to write: what to write}
WORDS = {
    r"(is|are) wanted": "expected X, got Y; do Z",
    r"stands? twice": "is there twice, is used twice",
    r"can(not)? be had": "could not be downloaded; is available",
    r"mend(s|ed)?": "fix",
    r"what hangs on": "everything downstream of",
    r"(is|are) made (again|anew)": "is rebuilt",
    r"anew": "again; recompute, retrain, reread",
    r"likewise": "too",
    r"shall": "must, should, will",
    r"nobody's": "no one's; say what is not there",
    r"kin": "name them",
    rf"(one|a|an) \w+ a ({UNITS})": "one X per Y",
    rf"(one|an?) \w+ (environment|line|row|panel|vector|file) a ({UNITS})": "one X per Y",
    rf"({AMOUNTS}) an? ({UNITS}|answer|line|gigabyte|test)": "X per Y",
    r"less (the|that|those)": "minus the",
    r"(?<=, )for (it|they|nothing|there)": "because",
}
BAD = re.compile(rf"\b({'|'.join(WORDS)})\b", re.IGNORECASE)
SUFFIXES = {".py", ".md", ".smk", ".j2", ".yaml", ".yml", ""}
#: Sentences that others wrote, or that a model is to read, and this file.
OTHERS = (
    "workflow/resources/",
    "config/questions/",
    "config/personas",
    "config/presets/",
    "tests/unit/test_prose",
    "LICENSE",
)


def pages():
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split("\n")
    kept = [n for n in names if n and not n.startswith(OTHERS) and Path(n).suffix in SUFFIXES]
    # Overlays of finished runs hold prompts as they were.
    return [n for n in kept if Path(n).name != "overlay.yaml" and (ROOT / n).is_file()]


def test_words_that_a_reader_must_translate_are_not_written():
    found = []
    for name in pages():
        for number, line in enumerate((ROOT / name).read_text().splitlines(), start=1):
            if match := BAD.search(line):
                found.append(f"{name}:{number}: {match.group()!r}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "line",
    [
        "a number is wanted",
        "one row a chain",
        "It is made again.",
        "Mend the text",
        "one conda environment a kind of job",
        "tokens a row",
        "C1 less the base",
        "closed, for it can run",
    ],
)
def test_the_patterns_find_what_they_are_for(line):
    assert BAD.search(line) and not BAD.search(
        "one row per chain is rebuilt; a rundown of jobs, no less"
    )
