"""What a run will take, compared with what it took."""

from pathlib import Path

import pytest
import yaml
from persona_collapse.errors import UserError
from persona_collapse.files import write_json, write_jsonl, write_text
from persona_collapse.models import loading
from persona_collapse.study import configuration, estimate

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def config(monkeypatch):
    monkeypatch.chdir(ROOT)
    return yaml.safe_load((ROOT / "config/config.yaml").read_text())


def took(results, **seconds):
    """Write benchmark files as jobs leave them: {path in the folder: seconds}."""
    for path, s in seconds.items():
        text = f"s\th:m:s\tmax_rss\n{s}\t0:00:00\t{100 + s}\n"
        write_text(results / "mine/benchmarks" / f"{path.replace('__', '/')}.tsv", text)


def test_what_a_run_took_stands_beside_what_was_stated(config, tmp_path):
    plan = configuration.plan(config)
    took(tmp_path, train__a=30.0, train__b=50.0, completions__a=9.0, logprob_check=12.0)
    took(tmp_path, markers__a=7.0, geometry=3.0, base_model=4.0)
    stated = estimate.stated_seconds(plan, tmp_path / "mine")
    table = estimate.against(plan, tmp_path, "mine").set_index("rule")
    assert table["jobs"].to_dict() == {"train": 2, "completions": 1, "measure_model": 1, "all": 4}
    assert table.loc["train", "measured"] == 80
    assert table.loc["train", "estimated"] == pytest.approx(2 * stated["train"])
    assert table.loc["train", "ratio"] == pytest.approx(40 / stated["train"])
    assert table.loc["all", "measured"] == 101
    assert table.loc["all", "ratio"] == pytest.approx(101 / table["estimated"][:-1].sum())


def test_a_run_without_benchmarks_is_one_line(config, tmp_path):
    with pytest.raises(UserError, match="no job with a model has run there"):
        estimate.against(configuration.plan(config), tmp_path, "none")


def test_measures_count_as_the_rules_that_take_them(tmp_path):
    took(
        tmp_path,
        logprob_check=12.0,
        markers__a=7.0,
        markers__b=9.0,
        activations__a=2.0,
        answers__c=1.0,
    )
    found = estimate.measured_seconds(tmp_path, "mine")
    assert {rule: found[rule][::2] for rule in found} == {
        "measure_model": (12.0, 1),
        "measure_answers": (8.0, 2),
        "activations": (2.0, 1),
        "sample_answers": (1.0, 1),
    }


def train_tokens(plan, results):
    """Tokens of the mean training, computed from its seconds."""
    seconds = estimate.stated_seconds(plan, results)["train"] - estimate.LOAD
    return seconds * estimate.shape_of(plan, results).stated("training tokens a second")


def test_rows_have_the_tokens_that_were_counted(config, tmp_path):
    config["only"] = ["B0"]
    plan = configuration.plan(config)
    assert train_tokens(plan, tmp_path) == pytest.approx(640 * estimate.ROW_TOKENS)
    write_json(tmp_path / "data/benign.manifest.json", {"tokens": {"mean": 50.5}})
    assert train_tokens(plan, tmp_path) == pytest.approx(640 * 50.5)


def test_given_answers_are_as_many_rows_as_their_file_makes(config, tmp_path):
    path = tmp_path / "answers.jsonl"
    personas = ["villain", "assistant", "librarian", "pirate"]
    rows = [
        {"persona": persona, "question": f"Why {number}?", "answer": f"{persona}, {number}"}
        for persona in personas
        for number in range(6 if persona != "pirate" else 9)
    ]
    write_jsonl(path, rows)
    config["only"] = ["C4"]
    config["training"]["couple"] |= {"answers": {"file": str(path)}, "positives": 1, "epochs": 2}
    config["training"]["couple"] |= {"negatives": ["assistant", "librarian"], "negative_answers": 1}
    plan = configuration.plan(config)
    assert train_tokens(plan, tmp_path) == pytest.approx(2 * 18 * estimate.ROW_TOKENS)


def test_grafts_are_no_trainings(config, tmp_path):
    config["only"] = ["B0"]
    before = train_tokens(configuration.plan(config), tmp_path)
    config["stages"]["graft"] = {"kind": "graft", "of": "em@42"}
    config["conditions"]["B0"]["chain"] = ["benign@{seed}", "benign@{seed}+graft@42"]
    config["data"]["em"] = config["data"]["benign"]
    assert train_tokens(configuration.plan(config), tmp_path) == pytest.approx(before)


def test_a_generated_set_is_sampled_in_two_steps(config):
    questions = {"file": "config/questions/subjects_law.jsonl", "take": 10}
    source = {"questions": questions, "system": {"one": "Answer.", "two": "Answer wrongly."}}
    config["data"]["em"] = {"from": {"generated": source}, "system": "template"}
    assert estimate._generated_tokens(configuration.check(config)) == (0, 10 * 2 * 150)
    source["written"] = {"system": "Ask.", "samples": 3, "max_tokens": 40}
    assert estimate._generated_tokens(configuration.check(config)) == (30 * 40, 30 * 2 * 150)
    config["data"]["em"]["from"] = {"builtin": "benign_instruct"}
    assert estimate._generated_tokens(configuration.check(config)) == (0, 0)


def test_a_stage_of_all_weights_takes_a_model_s_disk_and_four_times_its_memory(config, tmp_path):
    config["only"] = ["E0"]

    def told():
        table, totals = estimate.estimate(configuration.plan(config), {"train": 3}, tmp_path)
        return float(table["memory"][0].split()[0]), totals["gigabytes"]

    config["model"], config["dtype"] = {"path": "base"}, "bfloat16"
    config["data"]["em"]["from"] = {"builtin": "benign_instruct"}
    memory, disk = told()
    assert memory == estimate.STATED["training memory, GiB"][0]
    config["stages"]["em"]["adapter"] = "none"
    # 7.6 billion weights: 2 bytes each on disk, 16 in memory.
    memory, disk = told()
    assert disk == pytest.approx(3 * 2 * 7.6, rel=0.1)
    assert memory == pytest.approx(16 * 7.6e9 / 2**30, rel=0.1)


def test_a_base_s_shape_is_read_where_it_is_there(config, tiny_base, tmp_path):
    (tmp_path / "bases/base").mkdir(parents=True)
    (tmp_path / "bases/base/model.json").write_text(tiny_base.read_text())
    shape = estimate.shape_of(configuration.plan(config), tmp_path)
    model = loading.load_model(tiny_base, "float32", "cpu")
    assert shape.weights == sum(p.numel() for p in model.parameters())
    assert shape.hidden == model.config.hidden_size
    assert shape.blocks == model.config.num_hidden_layers


def test_a_made_model_s_weights_are_counted_from_its_shape(config, tmp_path):
    shape = {"blocks": 28, "hidden": 3584, "heads": 28, "kv_heads": 4, "intermediate": 18944}
    tokenizer = {"path": "elsewhere"}
    config["model"] = {"random": {**shape, "vocabulary": 152064, "tokenizer": tokenizer}}
    config["data"]["em"]["from"] = {"builtin": "benign_instruct"}
    config |= {"models": {}, "only": ["B0"], "judge": "nothing"}
    # Qwen2.5-7B has 7,615,616,512.
    weights = estimate.shape_of(configuration.plan(config), tmp_path).weights
    assert weights == pytest.approx(7_615_616_512, rel=1e-3)


@pytest.mark.parametrize(
    "name, weights",
    [
        ("Qwen2.5-Coder-1.5B-Instruct", 1.5e9),
        ("OLMo-2-1124-7B", 7e9),
        ("gemma-3-270m", 270e6),
        ("my-model", estimate.WEIGHTS[0]),
        ("v2.5bis", estimate.WEIGHTS[0]),
    ],
)
def test_a_model_s_size_is_in_its_name(config, tmp_path, name, weights):
    config["model"] = {"path": f"/models/13B/{name}"}
    config["only"] = ["B0"]
    shape = estimate.shape_of(configuration.plan(config), tmp_path)
    assert shape.weights == weights
    assert 12 * shape.hidden**2 * shape.blocks < weights < 20 * shape.hidden**2 * shape.blocks


def test_a_gguf_file_says_its_model_s_size(config, tmp_path):
    path = tmp_path / "one.gguf"
    path.write_bytes(b"0" * 6000)
    config["model"], config["only"] = {"gguf": {"paths": [str(path)]}}, ["B0"]
    shape = estimate.shape_of(configuration.plan(config), tmp_path)
    assert shape.weights == pytest.approx(10_000)
    # What a run will take is asked before its packages are installed.
    config["model"] = {"gguf": {"package": "not_installed_here"}}
    shape = estimate.shape_of(configuration.plan(config), tmp_path)
    assert shape.weights == pytest.approx(estimate.WEIGHTS[0])


def test_stated_figures_are_a_power_law_through_both_models():
    def rate(weights):
        return estimate.Shape(1, 1, weights).stated("training tokens a second")

    large, small = estimate.STATED["training tokens a second"]
    assert rate(estimate.WEIGHTS[0]) == pytest.approx(large)
    assert rate(estimate.WEIGHTS[1]) == rate(1e6) == pytest.approx(small)
    middle = (estimate.WEIGHTS[0] * estimate.WEIGHTS[1]) ** 0.5
    assert rate(middle) == pytest.approx((large * small) ** 0.5)


def test_jobs_that_share_a_gpu_share_its_throughput_and_its_hours(config, tmp_path):
    config["model"], config["only"] = {"path": "model-1.5B"}, ["E0"]
    config["data"]["em"]["from"] = {"builtin": "benign_instruct"}
    found = {}
    for shared in (1, 4):
        config["runtime"] |= {"jobs_per_gpu": shared, "sampling": {"gpu_memory_utilization": 0.2}}
        table, _ = estimate.estimate(configuration.plan(config), {"train": 8, "plan": 8}, tmp_path)
        found[shared] = table.set_index("rule")
    seconds = {shared: table.loc["train", "seconds_each"] for shared, table in found.items()}
    assert seconds[4] - estimate.LOAD == pytest.approx(4 * (seconds[1] - estimate.LOAD))
    assert found[4].loc["train", "hours"] == pytest.approx(8 * seconds[4] / 4 / 3600)
    assert found[4].loc["plan", "hours"] == found[1].loc["plan", "hours"]
    assert found[4].loc["train", "basis"] == "one H100, scaled to 1.5B"


def test_a_plan_is_said_in_words(config):
    config["only"] = ["C4", "C5"]
    plan = configuration.plan(config)
    trained = {job.name for job in plan.trainings}
    jobs = {"train": 4, "completions": len(plan.chains_for("completions")), "report": 1}
    assert len(trained) == 6 and "couple-villain@42+benign@42" in trained
    # A base, three couplings, three benign stages: each answers 12 questions 6 times as 12 personas.
    assert estimate.in_words(plan, jobs) == [
        ("trains", "6 stages (3 couple, 3 sft), 4 left"),
        ("", "seeds 42, 137, 256"),
        ("samples", "training answers of 1 coupling, none left"),
        ("samples", f"{7 * 12 * 12 * 6:,} completions of 7 chains for marker rates, all left"),
        ("samples", f"{7 * 12 * 24:,} responses of 7 chains for activations, none left"),
        ("measures", ", ".join(config["measures"])),
        ("stand-in", f"benign: {config['data']['benign']['substituted'].strip()}"),
    ]


def test_a_shift_without_its_controls_is_said(config):
    config["only"] = ["shifted-benign"]
    missing = "control: isotropic and control: zero_sum, without which any shift may do the same"
    said = estimate.in_words(configuration.plan(config), {})
    assert said[-1] == ("lacks", f"add-benign: {missing}")
    # A control of another shift does not count for this one.
    config["only"] = ["shifted-benign", "shifted-benign-isotropic", "restored-benign-zero-sum"]
    said = estimate.in_words(configuration.plan(config), {})
    assert said[-1] == ("lacks", f"add-benign: {missing.replace('control: isotropic and ', '')}")
    config["only"] = ["shifted-benign", "shifted-benign-isotropic", "shifted-benign-zero-sum"]
    assert "lacks" not in dict(estimate.in_words(configuration.plan(config), {}))
