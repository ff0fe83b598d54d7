"""Real runs of the whole DAG on a tiny model."""

import json
import os

import pandas as pd
import pytest
from safetensors import safe_open

pytestmark = pytest.mark.slow

CHAINS = [
    "base",
    "couple-villain@42",
    "couple-villain@42+em@1",
    "couple-villain@42+em@2",
    "couple-villain@42+benign@1",
    "couple-villain@42+benign@2",
]


def test_every_file_of_the_contract_is_there(project):
    for chain in CHAINS:
        completions = pd.read_parquet(project.path(f"completions/{chain}.parquet"))
        assert len(completions) == 3 * 3 * 1
        wanted = ["model", "persona", "question_id", "sample", "text", "n_tokens", "finish_reason"]
        assert wanted == list(completions.columns[:7])
        assert set(completions["model"]) == {chain}
        markers = pd.read_csv(project.path(f"markers/{chain}.csv"))
        wanted = [
            "model",
            "persona",
            "n",
            "hits",
            "rate",
            "ci_low",
            "ci_high",
            "mean_tokens",
            "at_end",
        ]
        assert wanted == list(markers.columns[:9])
        with safe_open(project.path(f"activations/{chain}.safetensors"), "np") as dumped:
            for method in ("A", "B"):
                assert dumped.get_slice(method).get_shape() == [2, 3, 4, 32]
            assert json.loads(dumped.metadata()["personas"]) == [
                "assistant",
                "librarian",
                "villain",
            ]
    for chain in CHAINS[1:]:
        manifest = json.loads(project.path(f"models/{chain}/manifest.json").read_text())
        assert manifest["chain"] == chain
        assert manifest["steps"] == 3
        assert manifest["lora"]["scale"] == (8 / 4**0.5 if chain == CHAINS[1] else 2.0)
    for name in ("marker_rates", "marker_tests", "geometry", "leakage", "scorecard", "grid"):
        assert len(pd.read_csv(project.path(f"tables/{name}.csv"))) or name == "marker_tests"
    for name in ("em", "benign", "couple-villain"):
        assert project.path(f"data/{name}.manifest.json").is_file()
    figures = {p.stem for p in project.path("figures").glob("*.svg")}
    assert len(figures) >= 4
    for name in figures:
        assert project.path(f"figures/{name}.png").is_file()
        assert project.path(f"figures/{name}.csv").is_file()
    assert "<html" in project.path("report.html").read_text()


def test_adapters_load_in_peft_unchanged(project):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(project.path("base"))
    PeftModel.from_pretrained(base, project.path("models/couple-villain@42+em@1"))


def test_a_second_run_does_nothing(project):
    assert "Nothing to be done" in project.snakemake().stdout


def test_touching_one_condition_s_data_reruns_that_condition_and_its_tables(project):
    jobs, text = (
        project.planned("--forcerun", "data", "--", "completions_none") if False else (None, None)
    )
    path = project.path("data/benign.jsonl")
    rows = path.read_text().splitlines()
    before = path.read_text()
    path.write_text("\n".join(reversed(rows)) + "\n")
    try:
        jobs, text = project.planned()
        assert jobs["train"] == 2
        assert jobs["completions"] == jobs["responses"] == jobs["markers"] == 2
        assert jobs["activations"] == 2
        assert "em@1" not in "".join(
            line for line in text.splitlines() if line.strip().startswith("output:")
        )
        assert {"marker_tables", "geometry", "scorecard", "report"} <= set(jobs)
        assert not {"pretrain_demo", "sample_answers", "couple_data", "data"} & set(jobs)
    finally:
        path.write_text(before)


def test_deleting_one_completions_file_redoes_it_and_what_hangs_on_it(project):
    path = project.path("completions/couple-villain@42+em@1.parquet")
    before = path.read_bytes()
    path.unlink()
    jobs, _ = project.planned()
    assert jobs["completions"] == jobs["markers"] == 1
    assert "train" not in jobs and "activations" not in jobs and "responses" not in jobs
    project.snakemake()
    assert pd.read_parquet(path).equals(pd.read_parquet(__import__("io").BytesIO(before)))
    assert "Nothing to be done" in project.snakemake().stdout


def test_a_seed_in_the_config_adds_only_its_chains(project, tmp_path):
    overlay = tmp_path / "seeds.yaml"
    overlay.write_text(project.overlay.read_text().replace("seeds: [1, 2]", "seeds: [1, 2, 3]"))
    text = project.snakemake("-n", overlay=overlay).stdout
    from conftest import parse_jobs  # the one beside this file

    jobs = parse_jobs(text)
    assert jobs["train"] == 2 and jobs["completions"] == 2


def test_the_same_inputs_and_seed_give_the_same_adapter(project):
    path = project.path("models/couple-villain@42+em@1/adapter_model.safetensors")
    first = path.read_bytes()
    project.snakemake(
        "--forcerun",
        str(path.relative_to(project.folder)),
        "--",
        str(path.relative_to(project.folder)),
    )
    assert path.read_bytes() == first


def test_use_conda_is_the_same_dag(project, tmp_path):
    shim = tmp_path / "conda"
    shim.write_text(
        "#!/bin/sh\n"
        'case "$1" in\n'
        f'info) echo \'{{"conda_prefix": "{tmp_path}", "platform": "linux-64"}}\' ;;\n'
        "--version) echo conda 26.7.0 ;;\n"
        'config) echo \'{"get": {"channel_priority": "strict"}}\' ;;\n'
        "esac\n"
    )
    shim.chmod(0o755)
    os.environ["PATH"], path = f"{tmp_path}:{os.environ['PATH']}", os.environ["PATH"]
    try:
        with_conda, _ = project.planned("--forceall", "--use-conda")
    finally:
        os.environ["PATH"] = path
    without, _ = project.planned("--forceall")
    assert with_conda == without
