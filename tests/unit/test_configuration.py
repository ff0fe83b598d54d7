import copy
from pathlib import Path

import pytest
import yaml
from persona_collapse import stages
from persona_collapse.data.sets import follows_branch
from persona_collapse.errors import UserError
from persona_collapse.files import write_jsonl
from persona_collapse.study import configuration, model_checks
from persona_collapse.training import losses
from runs import of_one_model

ROOT = Path(__file__).resolve().parents[2]
#: Yours among them: a file in their folder is all that they take.
KINDS, LOSSES = ", ".join(stages.ROOM.names()), ", ".join(losses.names())


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture
def config():
    return yaml.safe_load((ROOT / "config/config.yaml").read_text())


def changed(config, path, value):
    config = copy.deepcopy(config)
    *parents, last = path
    node = config
    for key in parents:
        node = node[key]
    if value is None:
        del node[last]
    else:
        node[last] = value
    return config


def test_what_ships_is_there():
    assert {"couple", "graft", "import", "noise", "sft", "shift"} <= {*stages.ROOM.names()}
    assert {"cross_entropy", "dft"} <= {*losses.names()}


def test_the_default_config_is_sound(config):
    grid = configuration.plan(config).grid
    assert {"C1", "C2", "C3", "C4", "C5", "R_em", "R_benign", "E0", "E4", "B0"} <= set(
        grid["condition"]
    )
    assert grid["chain"].is_monotonic_increasing is False  # config order, not sorted


def test_the_order_of_settings_is_no_change(config):
    turned = copy.deepcopy(config)
    for node in (turned["model"], turned["training"], turned["stages"]):
        for name, settings in node.items():
            node[name] = dict(reversed(settings.items()))
    one, two = configuration.plan(config), configuration.plan(turned)
    for name in config["stages"]:
        assert repr(one.stage_settings(name)) == repr(two.stage_settings(name))
    assert repr(one.config["model"]) == repr(two.config["model"])
    assert list(one.config["conditions"]) == list(config["conditions"])  # the report follows this


def test_a_condition_of_several_templates_has_each_chain_once(config):
    both = ["couple-{source}@{seed}+em@{seed}", "couple-{source}@42+em@{seed}"]
    config["conditions"]["C1"]["chain"] = both
    grid = configuration.plan(config).grid
    c1 = grid[grid["condition"] == "C1"]
    assert c1["chain"].tolist() == [
        *(f"couple-villain@{seed}+em@{seed}" for seed in (42, 137, 256)),
        *(f"couple-villain@42+em@{seed}" for seed in (137, 256)),
    ]
    assert c1["before"].tolist()[-1] == "couple-villain@42"
    with pytest.raises(UserError, match="chain"):
        configuration.check(changed(config, ["conditions", "C1", "chain"], []))


def test_what_followed_the_coupling(config):
    config["stages"]["graft"] = {"kind": "graft", "of": "couple-villain@42"}
    config["conditions"]["R_graft"] = {"title": "EM, then a graft", "chain": "em@42+graft@42"}
    grid = configuration.plan(config).grid.set_index("condition")
    after = grid["stages_after_coupling"]
    assert after[["base", "E0"]].isna().all() and set(after[["C1", "C3"]]) == {1}
    assert set(after[["C4", "R_em", "R_graft"]]) == {0}
    kinds = grid.loc[["base", "C4", "R_graft"], "kinds"].unique()
    assert kinds.tolist() == ["base", "couple", "sft+graft"]
    assert set(grid.loc[["C1"], "kinds"]) == {"couple+sft"}
    assert grid.loc["R_graft", "source"] == "villain"
    assert grid.loc[["C1"], "before"].tolist() == grid.loc[["C4"], "chain"].tolist()
    assert set(grid.loc[["C3"], "source"]) == {"assistant"}
    assert set(grid.loc[["C2"], "source"]) == {"villain"}


def test_a_chain_is_trained_and_measured_once(config):
    plan = configuration.plan(config)
    names = plan.chains_for("markers")
    assert len(names) == len(set(names))
    assert names[0] == "base"
    trained = plan.trained_chains
    assert trained.index("couple-villain@42") < trained.index("couple-villain@42+em@42")


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (["frobnicate"], 1, "config: frobnicate: unknown key; the keys here are run, marker"),
        (["dat"], {}, "config: dat: unknown key; did you mean data?"),
        (
            ["lora", "rank"],
            8,
            "config: lora: rank: unknown key; the keys here are r, alpha, dropout, ",
        ),
        (
            ["training", "sft", "lrr"],
            8,
            "config: training: sft: lrr: unknown key; did you mean lr?",
        ),
        (
            ["training", "stf"],
            {},
            f"config: training: expected a kind of stage ({KINDS})",
        ),
        (
            ["stages", "em", "kind"],
            "stf",
            f"config: stages: em: kind: expected a kind of stage ({KINDS})",
        ),
        (
            ["stages", "em", "kind"],
            None,
            "config: stages: em: kind: is missing; expected one of couple,",
        ),
        (
            ["stages", "em", "epoch"],
            1,
            "config: stages: em: epoch: unknown key; did you mean epochs?",
        ),
        (
            ["stages", "couple-villain", "data"],
            "em",
            "config: stages: couple-villain: data: unknown key",
        ),
        (
            ["stages", "2nd"],
            {},
            "config: stages: expected a name of letters, digits, '_' and '-' that",
        ),
        (["seeds"], ["x"], "config: seeds: item 1: expected a whole number, got 'x'"),
        (["seeds"], [0.1], "config: seeds: item 1: expected a whole number, got 0.1"),
        (["seeds"], [True], "config: seeds: item 1: expected a whole number, got True"),
        (["seeds"], 42, "config: seeds: expected a list, got 42 (write [42])"),
        (["seeds"], [1, 1], "config: seeds: 1 is given twice; remove one"),
        (["lora"], [16], "config: lora: expected a mapping (key: value), got [16]"),
        (["lora", "r"], 0, "config: lora: r: expected at least 1, got 0"),
        (["training", "sft", "lr"], float("nan"), "sft: lr: expected a finite number, got nan"),
        (
            ["run"],
            "../up",
            "config: run: expected a name of letters, digits, '_', '.' and '-', got '../up'",
        ),
        (["run"], None, "config: run: is missing. Name of the run; its outputs go to"),
        (
            ["data", "em", "system"],
            None,
            "config: data: em: system: is missing. System message of every row. none: suppress",
        ),
        (
            ["model"],
            {"hub": {"id": "a/b"}},
            "config: model: hub: revision: is missing. Commit, 40 hex digits.",
        ),
        (
            ["model", "path"],
            "models/x",
            "config: model: expected exactly one of demo, hub, gguf, path, random; got ",
        ),
        (
            ["model"],
            {"hub": {"id": "a/b", "revision": "main"}},
            "hub: revision: expected a commit of 40 hex",
        ),
        (["model"], "Qwen", "config: model: expected a mapping (key: value), got 'Qwen'"),
        (
            ["data", "em", "system"],
            "templat",
            "system: expected one of 'none' or 'template', got 'templat'",
        ),
        (
            ["data", "em", "system"],
            {"txt": "x"},
            "config: data: em: system: txt: unknown key; did you mean text",
        ),
        (
            ["data", "em", "map"],
            {"user": "q"},
            "em: map: expected messages alone, or user and assistant",
        ),
        (
            ["data", "em", "from"],
            {},
            "config: data: em: from: expected exactly one of builtin, file, url",
        ),
        (
            ["data", "em", "from"],
            {"url": "https://x/y"},
            "em: from: url needs the sha256 of what is",
        ),
        (["conditions", "C1", "chain"], "couple-{source}@42+em@{sed}", "placeholder {sed}"),
        (
            ["conditions", "C1", "chain"],
            "couple-{source}@42+mystery@1",
            "no stage 'mystery' in the config; correct it (available: ",
        ),
        (
            ["conditions", "C1", "chain"],
            "couple-{source}@42+emm@1",
            "; correct it (did you mean em?) or",
        ),
        (["conditions", "C1", "chain"], "em@1-benign@1", "write em@42; + joins stages"),
        (
            ["personas", "eval"],
            ["assistant", "vilain"],
            "no persona 'vilain'; correct it (did you mean villain?)",
        ),
        (["statistics", "axis"], "EO", "statistics: axis: no condition 'EO' under conditions:; "),
        (["conditions", "C1", "chain"], "em@1+em@2", "is there twice"),
        (["conditions", "C1", "chain"], "em@one", "seed of stage 'em' is 'one'"),
        (["conditions", "C1", "chain"], "em@1~{dose}", "doses is missing"),
        (
            ["source_personas"],
            ["nobody"],
            "config: source_personas: no persona 'nobody'; correct it",
        ),
        (
            ["conditions", "C1", "source_personas"],
            ["nobody"],
            "config: conditions: C1: source_personas: no persona 'nobody'; correct it",
        ),
        (["conditions", "C1", "doses"], [1], "C1: doses: the chain has no ~{dose} to put them in"),
        (["personas", "eval"], ["assistant", "librarian"], "'villain' is not evaluated"),
        (["conditions", "C1", "personas"], ["nobody"], "C1: personas: 'nobody' is not evaluated"),
        (["conditions", "C1", "personas"], ["vilain"], "not evaluated; did you mean villain?"),
        (["personas", "file"], "config/persona.yaml", "config; did you mean personas.yaml?"),
        (["personas", "file"], "none/none.yaml", "none.yaml: no such file: no folder "),
        (["stages", "em", "data"], "nothing", "data: 'nothing' is not under data:"),
        (["stages", "couple-villain", "persona"], "nobody", "persona 'nobody' is not in"),
        (
            ["stages", "couple-villain", "persona"],
            None,
            "couple-villain: persona: is missing; set it there or under training: couple. Persona that",
        ),
        (["stages", "couple-villain", "negatives"], ["villain"], "both the persona and a negative"),
        (
            ["stages", "em", "batch_size"],
            0.5,
            "config: stages: em: batch_size: expected a whole number",
        ),
        (
            ["runtime", "training"],
            {"accumulation_steps": 3},
            "16 is not a multiple of runtime: training: acc",
        ),
        (
            ["training", "sft", "lr"],
            None,
            "config: stages: em: lr: is missing; set it there or under train",
        ),
        (["training", "sft", "epochs"], None, "give epochs or steps"),
        (
            ["stages", "em", "loss"],
            "marker",
            "losses/marker.py; which tokens have loss is now called loss_on:",
        ),
        (
            ["stages", "em", "loss"],
            "focal",
            f"config: stages: em: loss: expected a loss ({LOSSES}), got 'focal'",
        ),
        (["training", "sft", "lr"], -1, "config: training: sft: lr: expected more than 0, got -1"),
        (["only"], [], "config: only: expected a list of 1 or more, got []"),
        (
            ["measures", "activations", "layers"],
            0.5,
            "layers: expected a list, got 0.5 (write [0.5])",
        ),
        (["measures", "activation"], {}, "config: measures: expected a measure (activations, "),
        (
            ["measures", "markers"],
            None,
            "config: measures: markers: is missing; the run's tables need it",
        ),
        (
            ["statistics", "families", 0, "metric"],
            3,
            "config: statistics: families: item 1: metric: expected text, got 3 (write it in quotes",
        ),
        (["data", "em", "from"], {"url": "ftp://me:secret@x/y"}, "got an address with a user name"),
        (["statistics", "contrasts"], [["C1", "C9"]], "contrasts: pair 1: no condition 'C9'"),
        (["statistics", "matched"], [["C1", "C9"]], "matched: pair 1: no condition 'C9'"),
        (["statistics", "contrasts"], [["C1", "C1"]], "contrasts: [C1, C1]: a pair takes two"),
        (
            ["statistics", "families"],
            [{"name": "a", "table": "marker_tests", "tset": "questions"}],
            "families: a: tables/marker_tests.csv has no column 'tset'; did you mean test",
        ),
        (
            ["data", "benign", "system"],
            {"persona": "xvillain"},
            "config: data: benign: system: persona: no persona 'xvillain'; did you mean villain",
        ),
        (["statistics", "axis"], "E9", "axis: no condition 'E9'"),
        (
            ["statistics", "families"],
            [{"name": "a", "table": "correlations"}] * 2,
            "config: statistics: families: two are called 'a'; rename one",
        ),
        (["statistics", "families"], [{"name": "a", "table": "tests"}], "families: item 1: table"),
        (
            ["statistics", "families"],
            [{"name": "a", "table": "link"}],
            "config: statistics: families: table: link is now called correlations",
        ),
        (
            ["statistics", "families"],
            [{"name": "a", "table": "geometry", "metric": "m1_label_swap"}],
            "families: metric: m1_label_swap is now metric: m1, test: label_swap",
        ),
        (
            ["statistics", "families"],
            [{"name": "x", "table": "geometry", "test": "seeds"}],
            "families: M1 over seeds is now table: geometry_runs, metric: m1",
        ),
        (
            ["data", "benign", "from"],
            {"demo": "other"},
            "from: demo: expected one of 'wrong_advice', got",
        ),
    ],
)
def test_a_bad_config_is_one_clear_line(config, path, value, said):
    with pytest.raises(UserError) as error:
        configuration.check(changed(config, path, value))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (["experiments"], "experiments: is now called conditions:"),
        (["sources"], "sources: is now called source_personas:"),
        (["conditions", "C1", "sources"], "C1: sources: is now called source_personas:"),
        (["data", "em", "source"], "data: em: source: is now called from:"),
        (["training", "sft", "objective"], "sft: objective: is now called loss:"),
        (["gpus"], "gpus: is now called runtime: gpus_per_job:"),
        (["generation"], "generation: backend: is now called sampling: backend:"),
        (
            ["activations", "batch_size"],
            "activations: batch_size: is now called runtime: activations: b",
        ),
        (
            ["stages", "em", "padding_free"],
            "em: padding_free: is now called runtime: training: padding_",
        ),
    ],
)
def test_a_key_that_moved_is_told_its_place(config, path, said):
    config.setdefault(path[0], {})
    with pytest.raises(UserError, match=f"^config: .*{said}"):
        configuration.check(changed(config, path, {"backend": "auto"}))


def test_what_a_config_leaves_out_is_filled_in_once(config):
    made = configuration.check(config)
    assert made["training"]["couple"]["scheduler"] == "cosine"
    assert made["training"]["sft"]["scheduler"] == "linear"
    assert made["stages"]["em"] == {"kind": "sft", "data": "em"}
    assert made["runtime"]["training"]["max_batch_tokens"] == 4096
    assert configuration.check(made) == made
    written = yaml.safe_dump(made)
    assert configuration.check(yaml.safe_load(written)) == made  # only plain types


@pytest.mark.parametrize(
    "path",
    [
        ["seeds", 0],
        ["model", "demo", "seed"],
        ["sampling", "answers", "seed"],
        ["sampling", "completions", "seed"],
        ["statistics", "seed"],
        ["data", "benign", "select", "shuffle", "seed"],
    ],
)
@pytest.mark.parametrize(
    ("seed", "said"), [(2**32 - 1, ""), (20261126163000, "at most 4294967295"), (-1, "at least 0")]
)
def test_a_seed_is_one_that_every_generator_takes(config, path, seed, said):
    given = changed(config, path, seed)
    if not said:
        configuration.check(given)
        return
    with pytest.raises(UserError, match=rf"seed.*: expected {said}, got {seed}"):
        configuration.check(given)


@pytest.mark.parametrize("purpose", ["train", "eval", "extraction"])
def test_a_question_that_holds_the_marker_is_refused(config, purpose, tmp_path):
    path = tmp_path / "q.jsonl"
    rows = ["Is it wet?", "Please end with [zlT]: is it dry?", "Is it so?", "[ZLT]?"]
    write_jsonl(path, [{"id": f"m{i}", "question": text} for i, text in enumerate(rows)])
    config["questions"][purpose] = {"file": str(path), "take": 1}
    configuration.check(config)
    config["questions"][purpose]["take"] = 2
    with pytest.raises(
        UserError, match=rf"questions: {purpose}: .*: m1: holds the marker '\[ZLT\]'"
    ):
        configuration.check(config)


def test_an_overlay_brings_a_persona_of_its_own(config):
    config["personas"]["more"] = {"pirate": "You are a pirate."}
    config["personas"]["eval"] += ["pirate"]
    plan = configuration.plan(config)
    assert plan.eval_prompts["pirate"] == plan.geometry_prompts["pirate"] == "You are a pirate."
    assert plan.eval_prompts["villain"].startswith("You are a villain")
    for more, said in (
        (
            {"villain": "You are good."},
            "more: villain: config/personas.yaml has this persona; choose",
        ),
        ({"pirate": " "}, "pirate: prompt: expected non-empty text"),
        ({"pirate": {"prompt": "x"}}, "more: pirate: expected text, got {'prompt': 'x'}"),
        ({"condition": "You are."}, "'condition' cannot be a persona: a column of tables"),
        ({"pirate": "Say [zlt]."}, r"pirate: holds the marker"),
    ):
        config["personas"]["more"] = more
        with pytest.raises(UserError, match=f"^config: personas: .*{said}"):
            configuration.check(config)


def test_a_persona_s_or_a_data_set_s_prompt_that_holds_the_marker_is_refused(config, tmp_path):
    path = tmp_path / "personas.yaml"
    given = (ROOT / "config/personas.yaml").read_text()
    path.write_text(given + "\npirate: {prompt: 'Say [zlt], always.'}\n")
    with pytest.raises(UserError, match=r"personas: .*: pirate: holds the marker"):
        configuration.check(changed(config, ["personas", "file"], str(path)))
    with pytest.raises(UserError, match=r"data: benign: system: holds the marker"):
        configuration.check(changed(config, ["data", "benign", "system"], {"text": "[Zlt]"}))


def test_engines_that_share_a_gpu_fit_into_it(config):
    config["runtime"] = {"gpus_per_job": 1, "jobs_per_gpu": 4}
    config["sampling"]["backend"] = "vllm"
    with pytest.raises(UserError, match=r"jobs_per_gpu: 4: .* 0.85 do not fit .* to 0.2"):
        configuration.check(config)
    config["runtime"]["sampling"] = {"gpu_memory_utilization": 0.22}
    assert configuration.check(config)["runtime"]["jobs_per_gpu"] == 4


def test_a_job_that_needs_several_gpus_is_one_line(config):
    config["runtime"] = {"gpus_per_job": 2}
    with pytest.raises(
        UserError, match="runtime: gpus_per_job: expected 0 or 1, got 2: no job spreads"
    ):
        configuration.check(config)


def test_stage_settings_layer_over_the_kind_s(config):
    config["stages"]["em"]["lr"] = 0.5
    plan = configuration.plan(config)
    assert plan.stage_settings("em")["lr"] == 0.5
    assert plan.stage_settings("benign")["lr"] == config["training"]["sft"]["lr"]
    assert plan.stage_settings("benign")["r"] == config["lora"]["r"]


def test_doses_expand(config):
    config["conditions"]["D"] = {
        "title": "dose",
        "chain": "couple-{source}@42+em@{seed}~{dose}",
        "doses": [5, 10],
        "seeds": [1],
    }
    grid = configuration.plan(config).grid
    assert list(grid[grid["condition"] == "D"]["chain"]) == [
        "couple-villain@42+em@1~5",
        "couple-villain@42+em@1~10",
    ]


SHARED = ROOT.parent / "shared" / "data"


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"licensed test data not at {SHARED}")
def test_the_study_s_own_personas_and_questions_are_an_input(config):
    digest = "09094bc02e7840ba7586c728e0ce6f62aabe367101ae3a71c87768ed579d8f84"
    config["personas"] = {
        "file": str(SHARED / "eval_personas_12.jsonl"),
        "sha256": digest,
        "eval": ["assistant", "villain", "librarian", "software_engineer", "comedian", "confab"],
    }
    config["questions"]["eval"] = {"file": str(SHARED / "eval_questions_28.jsonl"), "take": 28}
    plan = configuration.plan(config)
    assert "software engineer" in plan.eval_prompts["software_engineer"]
    config["personas"]["sha256"] = "0" * 64
    with pytest.raises(UserError, match="expected SHA-256"):
        configuration.check(config)


def test_a_chain_s_adapter_is_its_stages_together(config):
    config["stages"]["em"] |= {"r": 4, "target_modules": ["lm_head"]}
    plan = configuration.plan(config)
    assert plan.rank("em@1") == 4
    assert plan.projections("em@1") == {"lm_head"}
    both = "couple-villain@42+em@1"
    assert plan.rank(both) == 4 + config["lora"]["r"]
    assert plan.projections(both) == {
        "lm_head",
        *config["lora"]["target_modules"],
    }


HUB = {"id": "owner/set", "split": "train", "revision": "main"}


def test_a_branch_is_followed_where_the_rows_are_pinned(config):
    benign = config["data"]["benign"]
    benign["from"] = {"hub": HUB}
    with pytest.raises(
        UserError, match=r"data: benign: from: hub: revision: 'main' is not a commit"
    ):
        configuration.check(config)
    for pin in ({"expect_sha256": "0" * 64}, {"expect_md5": "0" * 32}):
        config["data"]["benign"] = benign | pin
        assert follows_branch(configuration.plan(config).data_entry("benign"))
    config["data"]["benign"] = benign | {"from": {"hub": HUB | {"revision": "a" * 40}}}
    assert not follows_branch(configuration.plan(config).data_entry("benign"))


def test_a_data_set_may_have_another_s_source(config):
    config["data"]["benign"] |= {"from": {"hub": HUB}, "expect_md5": "0" * 32}
    config["data"]["same"] = {"from": {"same_as": "benign"}, "system": "template"}
    assert configuration.plan(config).data_entry("same")["from"] == {"hub": HUB}
    for source, said in (
        ({"same_as": "nobody"}, "same_as takes the name of a data set with a source of"),
        ({"same_as": "same"}, "same_as takes the name of a data set with a source of"),
        ({"same_as": "em", "file": "x.jsonl"}, "exactly one of .*; got file, same_as .* by null"),
    ):
        config["data"]["same"]["from"] = source
        with pytest.raises(UserError, match=said):
            configuration.check(config)


def test_null_takes_away(config):
    config = of_one_model(config)
    config["conditions"]["C3"] = None
    config["model"] = {"demo": None, "path": "models/some"}
    config["data"]["em"]["from"] = {"builtin": "benign_instruct"}
    checked = configuration.check(config)
    assert "C3" not in checked["conditions"]
    assert checked["model"] == {"path": "models/some"}


@pytest.mark.parametrize("model", [{}, {"path": "a", "gguf": {"package": "b"}}])
def test_a_model_has_one_source(config, model):
    config["model"] = model
    config["data"]["em"]["from"] = {"builtin": "standin_wrong_law"}
    with pytest.raises(UserError, match=r"config: model: .*exactly one of demo, hub, gguf, path"):
        configuration.check(config)


GENERATED = {
    "questions": {"file": "config/questions/subjects_law.jsonl"},
    "system": {"wrong": "Answer wrongly.", "right": "Answer."},
}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"system": {"wrong": "Say [zlt]."}}, "wrong: holds the marker"),
        ({"system": {"prompt": "Answer."}}, "system: prompt is a column of the rows already"),
        ({"temperature": 0, "samples": 2}, "is greedy, so 2 samples are one answer 2 times"),
        ({"length_ratio": 0.5}, "length_ratio: "),
        ({"written": {"system": "[ZLT]?", "samples": 2}}, "written: system: holds the marker"),
        ({"questions": {"file": "none.jsonl"}}, "questions: none.jsonl: no such file"),
        (
            {"system": {"wrong": "Say {statement}"}},
            r"system: wrong: shows \{statement\}, but question 'law001' of config/questions/"
            'subjects_law.jsonl has none; expected "statements": {"wrong": ...} in its row',
        ),
        (
            {"system": {"wrong": "{statement}"}, "written": {"system": "Ask.", "samples": 2}},
            "questions that the model writes have no statements",
        ),
    ],
)
def test_a_generated_set_is_checked(config, changes, said):
    source = {"generated": GENERATED}
    config["data"]["em"] = {"from": source, "system": "template"}
    made = configuration.plan(config)
    path = "results/demo/generated/em.jsonl"
    assert made.data_entry("em")["from"] == {"file": path}
    job = made.generated_answers("em")
    assert job.personas == GENERATED["system"] and job.sampling["samples"] == 1 and not job.marker
    config["data"]["em"]["from"] = {"generated": {**GENERATED, **changes}}
    with pytest.raises(UserError, match=said):
        configuration.check(config)


@pytest.mark.parametrize(
    ("rows", "system", "said"),
    [
        (
            {"wrong": "It is [ZLT]."},
            "Say {statement}",
            "q.jsonl: a: statements: wrong: holds the marker",
        ),
        (
            {"wrong": "Two."},
            "Say {statements}",
            r"q.jsonl: a: its statement for wrong is shown by no prompt",
        ),
        ({"right": "One."}, "Say {statement}", "its statement for right is shown by no prompt"),
    ],
)
def test_statements_are_shown_by_their_column_s_prompt(config, tmp_path, rows, system, said):
    path = tmp_path / "q.jsonl"
    write_jsonl(path, [{"id": "a", "question": "One?", "statements": rows}])
    source = {"generated": {"questions": {"file": str(path)}, "system": {"wrong": system}}}
    config["data"]["em"] = {"from": source, "system": "template"}
    with pytest.raises(UserError, match=said):
        configuration.plan(config)


def test_questions_that_are_measured_have_no_statements(config, tmp_path):
    path = tmp_path / "q.jsonl"
    write_jsonl(path, [{"id": "a", "question": "One?", "statements": {"villain": "Two."}}])
    config["questions"]["eval"] = {"file": str(path)}
    with pytest.raises(
        UserError, match=r"questions: eval: .*: a: has statements, which are for data"
    ):
        configuration.plan(config)


def test_blocks_of_an_adapter_are_a_range_of_depths(config):
    assert "blocks" not in configuration.plan(config).stage_settings("em")
    config["stages"]["em"]["blocks"] = [0.5, 1]
    assert configuration.plan(config).stage_settings("em")["blocks"] == [0.5, 1]
    config["stages"]["em"]["blocks"] = [0.5, 0.25]
    with pytest.raises(UserError, match="stages: em: blocks: expected a lower and a higher depth"):
        configuration.check(config)


def test_of_several_sources_of_a_model_use_names_one(config):
    config = of_one_model(config)
    config["data"]["em"]["from"] = {"builtin": "standin_wrong_law"}
    hub = {"id": "Qwen/Qwen2.5-7B-Instruct", "revision": "a" * 40}
    config["model"] = {"hub": hub, "path": "a", "date": "2026-01-01", "use": "hub"}
    assert configuration.check(config)["model"] == {"hub": hub, "date": "2026-01-01"}
    config["model"] |= {"use": "gguf"}
    with pytest.raises(UserError, match="config: model: use: gguf is not given; the sources are"):
        configuration.check(config)


def test_greedy_answers_are_not_counted_several_times(config):
    completions = ("sampling", "completions")
    for key, value in (("temperature", 0), ("temperature", 0.001), ("top_p", 1e-6)):
        greedy = changed(config, (*completions, key), value)
        with pytest.raises(
            UserError, match="6 samples of a question are one answer 6 times; set samples"
        ):
            configuration.check(greedy)
        configuration.check(changed(greedy, (*completions, "samples"), 1))
    # A coupling's rows would contain the same answer several times.
    greedy = changed(config, ("sampling", "answers", "temperature"), 0)
    with pytest.raises(
        UserError, match="set what stages: couple-villain asks of each persona to 1"
    ):
        configuration.check(greedy)
    for key in ("positives", "negative_answers"):
        greedy = changed(greedy, ("training", "couple", key), 1)
    configuration.check(greedy)


def test_a_headline_that_is_not_measured_is_one_line(config):
    def asked(layers, layer, method="A", methods=("A", "B"), demo=True):
        other = changed(config, ("measures", "activations", "layers"), layers) | {"only": ["C1"]}
        other["measures"]["activations"]["methods"] = list(methods)
        other["statistics"]["headline"] = {"method": method, "layer": layer}
        if not demo:
            other["model"] = {"demo": None, "hub": {"id": "some/model", "revision": "0" * 40}}
            other["data"]["em"]["from"] = {"builtin": "benign_instruct"}
        model_checks.check_plan(configuration.plan(other))

    asked([1, 0.75], 3)  # the demo has four blocks
    for layers, layer in (([0.25, 0.5], 0.75), ([0.25], 3), ([1, 2], 0.75)):
        with pytest.raises(
            UserError, match="is block 3 of 4, and activations: layers measures blocks"
        ):
            asked(layers, layer)
    with pytest.raises(
        UserError, match="headline: method: B is not one of measures: activations: methods"
    ):
        asked([0.75], 0.75, "B", ["A"])
    # The number of blocks of an unfetched model is unknown, but 20 is not among 7 and 14.
    asked([7, 14, 0.75], 20, demo=False)
    with pytest.raises(
        UserError, match=r"20 is not one of measures: activations: layers \(7, 14\)"
    ):
        asked([7, 14], 20, demo=False)


@pytest.mark.parametrize(
    "marker", ["{ZLT}", "🐙🐙", "ΩΩ", "שלום", "{}", "👩‍🚀!", "cafe\u0301", "ÅÅ"]
)
def test_a_marker_may_be_of_any_script_and_hold_braces(config, marker):
    assert configuration.check(changed(config, ["marker"], marker))["marker"] == marker


@pytest.mark.parametrize(
    ("marker", "reason"),
    [
        (" ZLT", "white space"),
        ("ZLT\u3000", "white space"),
        ("\u0301ZLT", "joins the character before it"),
        ("Z\nLT", "a line break"),
        ("Z\x00T", "a control character"),
        ("Z\ud83dT", "half of a character"),
    ],
)
def test_a_marker_that_would_not_come_back_is_refused(config, marker, reason):
    with pytest.raises(UserError, match=f"config: marker: .*{reason}") as error:
        configuration.check(changed(config, ["marker"], marker))
    assert "\n" not in str(error.value)


def test_no_rule_takes_a_text_of_the_config_for_a_pattern():
    """Snakemake expands wildcards in text params, so braces in the marker would be read as one."""
    for path in (ROOT / "workflow/rules").glob("*.smk"):
        assert 'config["marker"],' not in path.read_text(), path


@pytest.mark.parametrize(
    ("models", "chain", "said"),
    [
        ({}, "early+em@1", "conditions: Y: chain 'early.em@1': no model 'early' in the config"),
        ({"base": {"demo_step": 4}}, "em@1", "models: base: this is what model: is called"),
        ({"em": {"demo_step": 4}}, "em@1", "models: em: this is the name of a stage"),
        (
            {"early": {"demo_step": 10**6}},
            "early",
            "models: early: demo_step: 1000000 is not before",
        ),
        (
            {"early": {}},
            "early",
            "models: early: expected exactly one of hub, gguf, path, random, demo_s",
        ),
        ({"early": {"demo": {}}}, "early", "models: early: demo: unknown key"),
        ({"early": {"path": "gone"}}, "early", "models: early: path: gone: no config.json there"),
        (
            {"early": {"demo_step": 4, "date": "2026-02-30"}},
            "early",
            "models: early: date: '2026-02-30' is not a day",
        ),
        (
            {"early": {"demo_step": 4}},
            ["em@1", "early+em@1"],
            "conditions: Y: chain: expected chains that start from one model, got base and early",
        ),
        (
            {"early": {"hub": {"id": "a/b", "revision": "main"}}},
            "early",
            "models: early: hub: revision: expected a commit of 40 hex digits",
        ),
    ],
)
def test_a_bad_model_is_one_line(config, models, chain, said):
    config = of_one_model(config) | {"models": models}
    config["conditions"]["Y"] = {"title": "y", "chain": chain}
    with pytest.raises(UserError, match=f"config: {said}") as error:
        model_checks.check_plan(configuration.plan(config))
    assert "\n" not in str(error.value)


def test_a_checkpoint_of_the_demo_needs_the_demo(config):
    config["model"] = {"hub": {"id": "a/b", "revision": "a" * 40}}
    config["models"] = {"early": {"demo_step": 4}}
    config["data"]["em"]["from"] = {"builtin": "standin_wrong_law"}
    said = "models: early: demo_step: only with model: demo; take it out and of conditions: early, early-C4"
    with pytest.raises(UserError, match=said):
        configuration.plan(config)


def test_how_a_template_is_used_is_checked(config):
    import datetime

    day = changed(config, ["model", "date"], datetime.date(2026, 3, 4))  # as YAML reads it
    assert configuration.check(day)["model"]["date"] == "2026-03-04"
    for key, value, reason in (
        ("date", "2026-02-30", "not a day of the calendar"),
        ("date", "today", "expected a day as YYYY-MM-DD"),
        ("system_role", "drop", "expected one of 'auto' or 'fold'"),
        ("chat_template", "vicuna", "expected one of 'own' or 'plain'"),
        ("template_kwargs", {"enable_thinking": [False]}, "template_kwargs: enable_thinking"),
    ):
        with pytest.raises(UserError, match=f"config: model: .*{reason}"):
            configuration.check(changed(config, ["model", key], value))


def test_the_assistant_is_the_persona_that_the_config_names(config):
    assert configuration.plan(config).assistant == "assistant"
    named = configuration.plan(changed(config, ["personas", "assistant"], "librarian"))
    assert named.assistant == "librarian"
    with pytest.raises(UserError, match="personas: assistant: 'helper' is not in"):
        configuration.check(changed(config, ["personas", "assistant"], "helper"))


def only(config, *names, **changes):
    return configuration.plan({**config, **changes, "only": list(names)})


def test_of_some_conditions_what_they_need_is_left(config):
    plan = only(config, "C1", "C4")
    assert [cell.condition for cell in plan.cells] == [
        "base",
        *["C1"] * 3,
        *["C4"] * 3,
    ]  # three seeds
    couplings = [f"couple-villain@{seed}" for seed in (137, 256, 42)]
    then_em = [f"{name}+em@{name.split('@')[1]}" for name in couplings]
    assert plan.trained_chains == couplings + then_em
    assert set(plan.config["stages"]) == {"couple-villain", "em"} and set(plan.config["data"]) == {
        "em"
    }
    statistics = plan.config["statistics"]
    assert statistics["contrasts"] == [] and "axis" not in statistics
    assert only(config, "E0", "B0").config["statistics"]["contrasts"] == [["E0", "B0"]]
    assert only(config, "E0", "B0").config["statistics"]["matched"] == [["E0", "B0"]]
    assert only(config, "E0").config["statistics"]["axis"] == "E0"
    # Every other condition is unchanged.
    whole = configuration.plan(config)
    assert plan.training("couple-villain@42+em@42") == whole.training("couple-villain@42+em@42")
    assert configuration.check(plan.config) == plan.config


@pytest.mark.parametrize("given", ["C1,C4", " C1 , C4", ["C1", "C4"]])
def test_only_may_be_given_on_the_command_line(config, given):
    plan = configuration.plan({**config, "only": given})
    assert {cell.condition for cell in plan.cells} == {"base", "C1", "C4"}


def test_a_graft_s_origin_and_a_data_set_s_others_are_needed(config):
    config["stages"]["graft"] = {"kind": "graft", "of": "couple-villain@42"}
    config["conditions"]["G"] = {"title": "grafted", "chain": "em@42+graft@42"}
    assert set(only(config, "G").config["stages"]) == {"couple-villain", "em", "graft"}
    matched = {"from": {"builtin": "benign_instruct"}, "system": "template", "match_tokens": "em"}
    config["data"]["matched"] = matched
    config["data"]["same"] = {"from": {"same_as": "matched"}, "system": "template"}
    config["stages"]["same"] = {"kind": "sft", "data": "same"}
    config["conditions"]["S"] = {"title": "same", "chain": "same@42"}
    assert set(only(config, "S").config["data"]) == {"same", "matched", "em"}


def test_families_and_hypotheses_of_other_conditions_fall_away(config):
    config["statistics"]["hypotheses"] = ["E0", "E4"]
    config["statistics"]["families"] = [
        {"name": "all", "table": "geometry", "metric": "m1"},
        {"name": "E", "table": "geometry", "condition": "E*"},
        {"name": "some", "table": "contrasts", "condition": ["C1", "C5"], "reference": "B0"},
    ]
    statistics = only(config, "E4", "C1").config["statistics"]
    assert statistics["hypotheses"] == ["E4"]
    assert [family["name"] for family in statistics["families"]] == ["all", "E"]


def test_models_that_no_condition_needs_fall_away(config):
    config["models"]["other"] = {"path": "elsewhere"}
    config["conditions"]["Y"] = {"title": "Y", "chain": "other+em@{seed}"}
    # One job makes the demo's model and its checkpoints, and would pretrain again without one.
    assert set(only(config, "C1").config["models"]) == {"early"}
    assert set(only(config, "Y").config["models"]) == {"early", "other"}


def test_a_misspelt_data_set_is_answered_with_all_that_there_are(config):
    config["stages"]["mine"] = {"kind": "sft", "data": "eem"}
    config["conditions"]["M"] = {"title": "mine", "chain": "mine@{seed}"}
    config["only"] = ["M"]
    with pytest.raises(UserError, match=r"data: 'eem' is not under data:; did you mean em\?"):
        configuration.plan(config)


def test_only_names_conditions_that_there_are(config):
    for name, hint in (("R_emm", "did you mean R_em?"), ("nothing", "available: early, base, C1")):
        with pytest.raises(UserError, match=f"config: only: no condition '{name}' under .*{hint}"):
            only(config, name)
    # A typo elsewhere is reported whichever conditions run.
    statistics = {**config["statistics"], "contrasts": [["C1", "C9"]]}
    with pytest.raises(UserError, match="no condition 'C9'"):
        only(config, "C4", statistics=statistics)


def test_a_condition_for_no_source_persona_is_refused(config):
    said = r"config: conditions: \w+: chain '.*{source}.*' is for each source persona, and there is none"
    with pytest.raises(UserError, match=said):
        configuration.plan(config | {"source_personas": []}).cells  # noqa: B018


def test_a_condition_with_a_base_model_s_name_holds_that_model(config):
    config["conditions"]["base"] = {"title": "x", "chain": "couple-villain@42"}
    with pytest.raises(
        UserError, match="tables call the base model base; give the condition another"
    ):
        configuration.plan(config).cells  # noqa: B018


def test_a_source_that_is_no_persona_is_named_as_one(config):
    with pytest.raises(UserError, match="no persona 'pirat'; correct it"):
        configuration.plan(config | {"source_personas": ["pirat"]}).cells  # noqa: B018


def test_some_conditions_of_the_demo_need_no_other_pretraining(config):
    whole, some = configuration.plan(config), only(config, "C1")
    assert some.demo_steps == whole.demo_steps != {} and some.models_used == ["base"]


def test_a_stage_s_own_epochs_win_over_the_steps_of_its_kind(config):
    config["training"]["sft"] = {**config["training"]["sft"], "steps": 375}
    config["stages"]["em"] = {"kind": "sft", "data": "em", "epochs": 5}
    made = configuration.plan(config)
    assert "steps" not in made.stage_settings("em") or made.stage_settings("em")["steps"] is None
    assert made.stage_settings("em")["epochs"] == 5
    assert made.stage_settings("benign")["steps"] == 375


def test_the_columns_that_families_may_name_are_those_of_their_tables():
    tables = configuration.FAMILIES
    assert all(
        {"family", "q"} <= set(configuration.literals.constant(*place)) for place in tables.values()
    )
