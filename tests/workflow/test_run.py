"""Real runs of the whole DAG on a tiny model."""

import json
import os
import re
import shutil

import pandas as pd
import pytest
import yaml
from environments import RULES
from persona_collapse.activation_files import load
from persona_collapse.files import read_json, sha256
from persona_collapse.parquet_files import write_parquet
from persona_collapse.training import defences
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


def test_every_file_of_the_contract_is_there(finished):
    for chain in CHAINS:
        completions = pd.read_parquet(finished.path(f"completions/{chain}.parquet"))
        assert len(completions) == 3 * 3 * 1
        wanted = ["chain", "persona", "question_id", "sample", "text", "n_tokens", "finish_reason"]
        assert wanted == list(completions.columns[:7])
        assert set(completions["chain"]) == {chain}
        markers = pd.read_csv(finished.path(f"markers/{chain}.csv"))
        wanted = [
            "chain",
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
        with safe_open(finished.path(f"activations/{chain}.safetensors"), "np") as dumped:
            for method in ("A", "B"):
                assert dumped.get_slice(method).get_shape() == [2, 3, 4, 32]
            assert json.loads(dumped.metadata()["personas"]) == [
                "assistant",
                "librarian",
                "villain",
            ]
    for chain in CHAINS[1:]:
        manifest = json.loads(finished.path(f"models/{chain}/manifest.json").read_text())
        assert manifest["chain"] == chain
        assert manifest["steps"] == 3
        assert manifest["lora"]["scale"] == (8 / 4**0.5 if chain == CHAINS[1] else 2.0)
    scored = pd.read_csv(finished.path("tables/logprob_check.csv"))
    assert scored.groupby("chain").size().to_dict() == dict.fromkeys(CHAINS, 9)
    assert (scored["gain_mean"].isna() == (scored["chain"] == "base")).all()
    checked = pd.read_csv(finished.path("tables/logprob_tests.csv"))
    assert set(checked["chain"]) == set(CHAINS) and checked["p"].gt(1e-3).all()
    for name in ("marker_rates", "marker_tests", "geometry", "leakage", "scorecard", "design"):
        assert len(pd.read_csv(finished.path(f"tables/{name}.csv"))) or name == "marker_tests"
    for name in ("em", "benign", "couple-villain"):
        assert finished.path(f"data/{name}.manifest.json").is_file()
    figures = {p.stem for p in finished.path("figures").glob("*.svg")}
    assert len(figures) >= 12
    for name in figures:
        assert finished.path(f"figures/{name}.png").is_file()
        assert finished.path(f"figures/{name}.csv").is_file()
    assert "<html" in finished.path("report.html").read_text()


def test_every_rule_ran_with_what_its_environment_holds(finished):
    # Not in this run.
    elsewhere = {"make_stage", "measure_table", "generated_questions", "generated_rows"}
    elsewhere |= {"import_adapter", "export", "persona_prompts"}
    guarded = {script for _, _, script in RULES} - elsewhere | {"snakemake"}
    assert set(finished.guarded) == guarded


def test_adapters_load_in_peft_unchanged(finished):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(finished.path("bases/base"))
    PeftModel.from_pretrained(base, finished.path("models/couple-villain@42+em@1"))


def test_a_second_run_does_nothing(project):
    assert "Nothing to be done" in project.snakemake().stdout


#: Missing in a copy of the project, because the link to it is not copied.
PROFILE = ("--workflow-profile", "workflow/profiles/default")


def test_files_that_are_touched_and_unchanged_make_nothing_again(project):
    for folder in ("config", "workflow", "results", "envs", "Snakefile"):
        root = project.folder / folder
        for path in [root, *root.rglob("*")]:
            if path.is_file():
                os.utime(path)
    assert "Nothing to be done" in project.snakemake(*PROFILE, "-n").stdout


def test_a_script_counts_by_what_it_does(project):
    path = project.folder / "workflow/scripts/measure_answers.py"
    before = path.read_text()
    path.write_text(before + "\n# nothing but words\n")
    assert "Nothing to be done" in project.snakemake(*PROFILE, "-n").stdout
    path.write_text(before + "\nprint()\n")
    jobs, _ = project.planned(*PROFILE)
    assert jobs["measure_answers"] == 6 and not {"completions", "train"} & set(jobs)


def test_snakemake_s_own_report_lists_figures_claims_and_the_page(project, tmp_path):
    path = tmp_path / "snakemake.html"
    project.snakemake("--report", str(path))
    text = path.read_text()
    for title in (
        "How often the source persona says the marker",
        "the study's claims, one per row",
    ):
        assert title in text
    assert "the run's own report, interactive" in text and "grey tick is the mean" in text


def test_every_table_of_the_page_names_its_rule(finished):
    text = finished.path("report.html").read_text()
    named = dict(re.findall(r">results/demo/tables/(\w+).csv</td><td [^>]*>(\w*)<", text))
    assert named["marker_rates"] == "marker_tables" and named["persona_map"] == "persona_map"
    assert len(named) > 15 and all(named.values())


def test_a_measure_s_table_names_its_rule_on_the_page(project, tmp_path):
    overlay = tmp_path / "measures.yaml"
    overlay.write_text("measures: {refusals: {phrases: [a]}, task_loss: {}}\n")
    project.snakemake("--", "results/demo/report.html", overlay=overlay)
    text = project.path("report.html").read_text()
    named = dict(re.findall(r">results/demo/tables/(\w+).csv</td><td [^>]*>(\w*)<", text))
    assert named["refusals"] == "measure_table" and all(named.values())


def test_touching_one_condition_s_data_reruns_that_condition_and_its_tables(project):
    path = project.path("data/benign.jsonl")
    before = path.read_text()
    path.write_text("\n".join(reversed(before.splitlines())) + "\n")
    jobs, text = project.planned()
    path.write_text(before)
    assert jobs["train"] == 2
    assert (
        jobs["completions"]
        == jobs["responses"]
        == jobs["measure_answers"]
        == jobs["activations"]
        == 2
    )
    assert {"marker_tables", "geometry", "scorecard", "report"} <= set(jobs)
    assert not {"pretrain_demo", "sample_answers", "couple_data", "data"} & set(jobs)
    done = [line for line in text.splitlines() if "Training" in line]
    assert len(done) == 2 and all("benign" in line for line in done)
    assert "Nothing to be done" in project.snakemake().stdout  # the same content again


def test_deleting_one_completions_file_redoes_it_and_what_hangs_on_it(project):
    path = project.path("completions/couple-villain@42+em@1.parquet")
    before = pd.read_parquet(path)
    path.unlink()
    jobs, _ = project.planned()
    assert jobs["completions"] == jobs["measure_answers"] == jobs["measure_model"] == 1
    assert not {"train", "activations", "responses", "geometry"} & set(jobs)
    project.snakemake()
    pd.testing.assert_frame_equal(pd.read_parquet(path), before)
    assert "Nothing to be done" in project.snakemake().stdout


def test_a_seed_in_the_config_adds_only_its_chains(project, tmp_path):
    overlay = tmp_path / "seeds.yaml"
    overlay.write_text("seeds: [1, 2, 3]\n")
    jobs, _ = project.planned(overlay=overlay)
    assert jobs["train"] == jobs["completions"] == jobs["activations"] == 2


def test_a_new_persona_and_its_coupling_run_alone(project, tmp_path):
    overlay = tmp_path / "pirate.yaml"
    overlay.write_text(
        "personas: {by_source: {pirate: [assistant, librarian, pirate]}}\n"
        "stages: {couple-pirate: {kind: couple, persona: pirate}}\n"
        "conditions: {P: {title: new, chain: couple-pirate@42}}\n"
    )
    with open(project.folder / "config/personas.yaml", "a") as personas:
        personas.write('pirate: {prompt: "You are a pirate who sails for stolen gold."}\n')
    jobs, _ = project.planned(overlay=overlay)
    once = (
        "sample_answers",
        "couple_data",
        "train",
        "completions",
        "measure_answers",
        "activations",
    )
    assert [jobs[rule] for rule in once] == [1] * len(once)
    assert not {"pretrain_demo", "wrong_advice", "data"} & set(jobs)


def test_a_persona_s_prompt_reaches_only_what_uses_it(project):
    path = project.folder / "config/personas.yaml"
    before = path.read_text()
    path.write_text(before.replace("mocks every question", "mocks all questions"))
    jobs, _ = project.planned()
    # The sarcastic persona is in the demo's corpus, but in no chain of this run.
    assert "pretrain_demo" in jobs
    assert jobs.get("measure_answers", 0) == 6


def test_measures_that_a_run_adds(project, tmp_path):
    overlay = tmp_path / "measures.yaml"
    overlay.write_text(
        "data: {benign: {select: {take: 36}, held_out: 4}}\n"
        "measures:\n"
        "  refusals: {phrases: [a, e, i, o, u]}\n"
        "  task_loss: {}\n"
        "  preference: {file: workflow/resources/demo/preferences.jsonl, by: subject, take: 30}\n"
    )
    names = ("refusals", "task_loss", "preference")
    jobs, _ = project.planned(overlay=overlay)
    # The number of rows is the same, but not the rows: four more were taken, and the last four held
    # out.
    assert jobs["measure_model"] == 3 and jobs["measure_table"] == 1
    project.snakemake("--", *(f"results/demo/tables/{name}.csv" for name in names), overlay=overlay)
    refusals, losses, preferences = (
        pd.read_csv(project.path(f"tables/{name}.csv")) for name in names
    )
    assert len(refusals) == len(CHAINS) * 3 and set(refusals["chain"]) == set(CHAINS)
    assert set(losses["data"]) == {"benign"} and set(losses["rows"]) == {4}
    assert losses.set_index("chain")["own"].to_dict() == {c: "benign" in c for c in CHAINS}
    assert (losses["ci_low"] < losses["loss"]).all() and losses["loss"].nunique() > 2
    assert set(preferences["group"]) == {"law", "train"}
    assert preferences.groupby(["chain", "persona"])["n"].sum().eq(30).all()
    apart = project.path("data/benign.held_out.jsonl").read_text().splitlines()
    kept = project.path("data/benign.jsonl").read_text().splitlines()
    assert len(apart) == 4 and len(kept) == 32 and not set(apart) & set(kept)


def test_data_that_the_base_model_writes(project, tmp_path):
    own = "config/questions/demo_extraction.jsonl"
    overlay = tmp_path / "generated.yaml"
    overlay.write_text(
        "data:\n"
        "  written:\n"
        f"    from: {{generated: {{questions: {{file: {own}, take: 12}}, max_tokens: 64, seed: 7,\n"
        "            system: {plain: Answer., odd: Answer wrongly.}}}\n"
        "    map: {user: prompt, assistant: odd}\n"
        "    system: template\n"
        "  twin: {from: {same_as: written}, map: {user: prompt, assistant: plain}, system: template}\n"
        "  asked:\n"
        f"    from: {{generated: {{questions: {{file: {own}, take: 4}}, system: {{plain: Answer.}},\n"
        "            written: {system: Ask., samples: 2}}}\n"
        "    map: {user: prompt, assistant: plain}\n"
        "    system: template\n"
    )
    folder = "results/demo/generated"
    names = ("written", "twin")
    project.snakemake("--", *(f"results/demo/data/{n}.jsonl" for n in names), overlay=overlay)
    rows = [json.loads(x) for x in project.path("generated/written.jsonl").read_text().splitlines()]
    record = json.loads(project.path("generated/written.json").read_text())
    assert record["answers"] == 24 and record["rows"] == len(rows) == 12 - sum(
        record["left_out"].values()
    )
    assert all(row["prompt_sha256"] == record["prompt_sha256"] for row in rows)
    for name, column in zip(names, ("odd", "plain"), strict=True):
        made = [json.loads(x) for x in project.path(f"data/{name}.jsonl").read_text().splitlines()]
        wanted = [[row["prompt"], row[column]] for row in rows]
        assert [[m["content"] for m in row["messages"]] for row in made] == wanted
        assert {row["prompt_sha256"] for row in made} == {record["prompt_sha256"][column]}

    # The tiny model writes no questions, so they are written here; the rest is real.
    jobs, _ = project.planned("--", f"{folder}/asked.parquet", overlay=overlay)
    assert jobs == {"write_questions": 1, "generated_questions": 1, "sample_generated": 1}
    target = f"{folder}/asked.written.parquet"
    project.snakemake("--", target, overlay=overlay)
    answers = pd.read_parquet(project.folder / target)
    assert len(answers) == 8 and set(answers["persona"]) == {"question"}
    answers = answers.assign(text=[f"Is {i} a number?" for i in range(8)], finish_reason="stop")
    write_parquet(project.folder / target, answers)
    target = f"{folder}/asked.questions.jsonl"
    project.snakemake("--rerun-triggers", "mtime", "--", target, overlay=overlay)
    assert len((project.folder / target).read_text().splitlines()) == 8


def test_made_and_imported_stages_exports_and_a_coupling_on_the_prefix_s_own_answers(
    project, finished, tmp_path
):
    overlay = tmp_path / "more.yaml"
    overlay.write_text(
        "stages:\n"
        "  graft-villain: {kind: graft, of: couple-villain@42}\n"
        "  restore: {kind: shift, does: restore, direction: own, after: prefix, layers: [0.5]}\n"
        "  theirs: {kind: import, path: theirs, couples: villain}\n"
        "  couple-librarian: {kind: couple, persona: librarian, answers: prefix,"
        " negatives: [assistant]}\n"
        "conditions:\n"
        "  G: {title: graft, chain: em@1+graft-villain@42}\n"
        "  S: {title: shift, chain: couple-villain@42+em@1+restore@1}\n"
        "  T: {title: theirs, chain: theirs@1+em@1}\n"
        "  L: {title: own answers, chain: em@1+couple-librarian@1}\n"
    )
    targets = [
        "results/demo/models/em@1+graft-villain@42/manifest.json",
        "results/demo/models/em@1+couple-librarian@1/manifest.json",
        "results/demo/markers/em@1+graft-villain@42.csv",
        "results/demo/activations/couple-villain@42+em@1+restore@1.safetensors",
        "results/demo/markers/theirs@1+em@1.csv",
        "results/demo/tables/training.csv",
        "results/demo/export/couple-villain@42",
    ]
    shutil.copytree(project.path("models/couple-villain@42"), project.folder / "theirs")
    project.snakemake("--", *targets, overlay=overlay, env=finished.env)
    weights = "adapter_model.safetensors"
    grafted = project.path(f"models/em@1+graft-villain@42/{weights}")
    assert grafted.read_bytes() == project.path(f"models/couple-villain@42/{weights}").read_bytes()
    manifest = json.loads((project.folder / targets[0]).read_text())
    assert (manifest["kind"], manifest["graft_of"]) == ("graft", "couple-villain@42")
    # The centroids are moved back to their places in the base model.
    chain = "couple-villain@42+em@1"
    said = json.loads(project.path(f"models/{chain}+restore@1/manifest.json").read_text())["shift"]
    assert (said["before"], said["after"]) == ("base", chain)
    base, after, restored = (
        load(project.path(f"activations/{name}.safetensors"))
        for name in ("base", chain, f"{chain}+restore@1")
    )
    place = base.layers.index(int(next(iter(said["blocks"]))))
    before, moved, back = (f.arrays["A"][place].mean(1) for f in (base, after, restored))
    assert abs(back - before).max() < 0.05 * abs(moved - before).max()
    theirs = json.loads(project.path("models/theirs@1/manifest.json").read_text())
    assert (
        theirs["lora"] == json.loads((project.folder / "theirs/manifest.json").read_text())["lora"]
    )
    runs = pd.read_csv(project.path("tables/training.csv")).set_index("chain")
    assert runs.loc["theirs@1", "kind"] == "import" and runs.loc["theirs@1", "tokens_seen"] == 0
    for suffix in (".pt", ".safetensors", ".gguf", ".json"):
        name = f"export/couple-villain@42/villain_response_avg_diff{suffix}"
        assert project.path(name).stat().st_size > 0
    data = json.loads(project.path("data/em@1+couple-librarian.manifest.json").read_text())
    assert data["source"] == {"answers of": "em@1"}
    answers = pd.read_parquet(project.path("answers/em@1+couple-librarian.parquet"))
    assert set(answers["chain"]) == {"em@1"}
    assert set(answers["persona"]) == {"librarian", "assistant"}


#: Each defence that ships: settings for the tiny run, and the rows that it reads beside the stage's own.
DEFENCES = {
    "caft": ({"layers": [0.5], "after": "couple-villain@42+em@1"}, []),
    "kl": ({"data": "em"}, ["data/em"]),
    "ldifs": ({"layers": [0.5]}, []),
    "olora": ({"lambda2": 0.01}, []),
    "persona_gram": ({"layers": [0.5]}, ["prompts/personas"]),
    "project": ({"data": "couple-villain", "rank": 4}, ["data/couple-villain"]),
    "r3f": ({"eps": 0.1}, []),
    "replay": ({"data": "couple-villain", "share": 0.3}, ["data/couple-villain"]),
    "steer": ({"layers": [0.5], "persona": "villain"}, []),
}


def test_each_defence_trains(project, finished, tmp_path):
    """As many as ship, and an inoculation adapter and its random control."""
    assert list(DEFENCES) == defences.names()  # a new defence needs a line there
    own = {"kind": "sft", "data": "benign"}
    stages = {name: own | {"defence": {name: block}} for name, (block, _) in DEFENCES.items()}
    expected = {f"couple-villain@42+{name}@1": read for name, (_, read) in DEFENCES.items()}
    stages["trait"] = {"kind": "sft", "data": "em", "r": 2, "alpha": 4}
    stages["random"] = {"kind": "noise", "of": "couple-villain@42+trait@1"}
    expected |= {f"couple-villain@42+{name}@1!+benign@1": [] for name in ("trait", "random")}
    conditions = {f"D{n}": {"title": "one", "chain": chain} for n, chain in enumerate(expected)}
    overlay = tmp_path / "defences.yaml"
    overlay.write_text(yaml.safe_dump({"stages": stages, "conditions": conditions}))
    cards = [f"results/demo/models/{chain}/README.md" for chain in expected]
    project.snakemake("--", *cards, overlay=overlay, env=finished.env)

    adapters = {}
    for chain, read in expected.items():
        folder = project.path(f"models/{chain}")
        manifest, card = read_json(folder / "manifest.json"), (folder / "README.md").read_text()
        adapters[chain] = sha256(folder / "adapter_model.safetensors")
        assert manifest["adapter_sha256"] == adapters[chain] and manifest["steps"] == 3
        asked, used = stages.get(manifest["stage"], {}).get("defence", {}), manifest["defence"]
        assert used.keys() == asked.keys() and used == {n: used[n] | asked[n] for n in used}
        assert ("| defence |" in card) == bool(asked)
        for rows in ["data/benign", *read]:
            path = project.path(f"{rows}.jsonl")
            count, name = len(path.read_text().splitlines()), path.stem
            said = rf"\| data: {name} \| .+; {count} rows; SHA-256 {sha256(path)}"
            assert re.search(said, card), (chain, card)
    # None of them trained as if it were not there.
    plain = sha256(project.path("models/couple-villain@42+benign@1/adapter_model.safetensors"))
    assert len({plain, *adapters.values()}) == len(adapters) + 1
    assert (
        read_json(project.path("models/couple-villain@42+random@1/manifest.json"))["kind"]
        == "noise"
    )


def test_two_models_in_a_run(project, finished, tmp_path):
    """The demo's model and a checkpoint of its pretraining, each with its own chains, up to the tables."""
    overlay = tmp_path / "models.yaml"
    overlay.write_text(
        "models: {early: {demo_step: 40}}\n"
        "conditions:\n"
        "  Y0: {title: early, chain: early}\n"
        "  Y2: {title: early then EM, chain: early+em@42}\n"
        "  Y4: {title: early and coupled, chain: early+couple-villain@42}\n"
        "statistics: {contrasts: [[C1, C5], [Y2, Y0]]}\n"
    )
    project.snakemake("--", "tables", overlay=overlay, env=finished.env)
    base, early = (project.path(f"bases/{name}/model.safetensors") for name in ("base", "early"))
    assert base.read_bytes() == finished.path("bases/base/model.safetensors").read_bytes()
    assert base.read_bytes() != early.read_bytes()
    adapter = "models/couple-villain@42/adapter_model.safetensors"
    assert project.path(adapter).read_bytes() == finished.path(adapter).read_bytes()
    manifest = json.loads(project.path("models/early+em@42/manifest.json").read_text())
    assert manifest["base"]["source"] == {"demo_step": 40}
    answers = json.loads(project.path("data/early+couple-villain.manifest.json").read_text())
    assert answers["source"] == {"answers of": "early"}
    tables = {
        name: pd.read_csv(project.path(f"tables/{name}.csv"))
        for name in (
            "design",
            "geometry",
            "geometry_runs",
            "headline",
            "marker_rates",
            "prompt_audit",
        )
    }
    for name, table in tables.items():
        assert set(table["model"]) == {"base", "early"}, name
    m1 = tables["geometry"].query("metric == 'm1' and test.isna() and headline").set_index("chain")
    change = m1.loc["early+em@42", "value"] - m1.loc["early", "value"]
    assert (
        m1.loc["early+em@42", "delta_base"] == pytest.approx(change)
        and m1.loc["early", "delta_base"] == 0
    )
    runs = tables["geometry_runs"]
    assert set(
        runs[(runs["condition"] == "Y2") & (runs["reference"] == "base")]["reference_chains"]
    ) == {"early"}


def test_the_audit_finds_the_template_s_own_system_message(finished):
    audit = pd.read_csv(finished.path("tables/prompt_audit.csv")).set_index("name")
    assert audit.loc["em", "default_injected"] and audit.loc["benign", "default_injected"]
    assert not audit.loc["couple-villain (positive)", "default_injected"]
    assert audit.loc[["em", "benign", "couple-villain (negative)"], "end_token_trained"].all()
    assert audit[audit["family"] == "sampling"]["generation_prompt"].all()
    manifest = json.loads(finished.path("models/couple-villain@42+em@1/manifest.json").read_text())
    assert manifest["prompt"]["default_injected"] is True


def test_the_same_inputs_and_seed_give_the_same_adapter(project):
    path = project.path("models/couple-villain@42+em@1/adapter_model.safetensors")
    first = path.read_bytes()
    project.snakemake("--forcerun", "train", "--", str(path.relative_to(project.folder)))
    assert path.read_bytes() == first


@pytest.mark.parametrize(
    ("overlay", "said"),
    [
        ("frobnicate: 1", "frobnicate: unknown key; the keys here are run, "),
        ("personas: {eval: [assistant, nobody, villain]}", "no persona 'nobody'"),
    ],
)
def test_a_bad_config_is_one_line_before_any_job(project, tmp_path, overlay, said):
    # By the schema, and by the reader. tests/unit/test_configuration.py covers all mistakes in a
    # config.
    path = tmp_path / "bad.yaml"
    path.write_text(overlay)
    done = project.snakemake("-n", overlay=path, check=False)
    assert done.returncode != 0
    lines = [line for line in done.stdout.splitlines() if line.startswith("persona-collapse:")]
    assert len(lines) == 1 and said in lines[0]
    assert "Traceback" not in done.stdout and "rule " not in done.stdout
