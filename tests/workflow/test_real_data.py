"""The same rules on real, licensed data that lie next to the checkout."""

import json
from pathlib import Path

import pandas as pd
import pytest

pytestmark = pytest.mark.slow

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"licensed test data not at {SHARED}")
def test_a_stage_trains_on_licensed_data_and_the_study_s_questions(project, tmp_path):
    overlay = tmp_path / "real.yaml"
    overlay.write_text(
        f"questions: {{eval: {{file: {SHARED}/eval_questions_28.jsonl, take: 3}}}}\n"
        "data:\n"
        "  benign:\n"
        f"    from: {{builtin: null, file: {SHARED}/benign_gsm8k_6k.jsonl, sha256: "
        "11687cae5881695c4938f8569af9d325d8c38d040c70193c779ecd910bc0c13f}\n"
        "    select: {shuffle: {seed: 42}, take: 32}\n"
        "    on_bad: drop\n"
        "    max_bad: 0.5\n"
        "    license: MIT\n"
    )
    chain = "couple-villain@42+benign@1"
    project.snakemake("--", f"results/demo/markers/{chain}.csv", overlay=overlay)
    data = json.loads(project.path("data/benign.manifest.json").read_text())
    assert data["rows_read"] == 6000 and data["rows_selected"] == 32
    assert data["tokens"]["max"] <= 256
    trained = json.loads(project.path(f"models/{chain}/manifest.json").read_text())
    assert trained["data"]["sha256"] == data["sha256"]
    questions = project.path(f"completions/{chain}.parquet")
    assert pd.read_parquet(questions)["question"].nunique() == 3
