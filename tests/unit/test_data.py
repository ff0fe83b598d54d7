import json
import os
from pathlib import Path

import pandas as pd
import pytest
from persona_collapse.data import questions, sets
from persona_collapse.errors import UserError
from persona_collapse.files import read_json, read_jsonl, sha256, write_jsonl

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
ROOT = Path(__file__).resolve().parents[2]
PROMPTS = {"villain": "You are a villain."}


def chat(user="Hello?", assistant="Hi."):
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def rows(n=5):
    return [{"messages": chat(f"Question {i}?", f"Answer {i}."), "score": i} for i in range(n)]


@pytest.fixture
def prepare(tmp_path):
    """Prepare rows as a file source; returns (canonical rows, manifest)."""

    def run(given=None, source=None, evaluation=(), count_tokens=None, match=None, **entry):
        if source is None:
            lines = [json.dumps(row) + "\n" for row in (rows() if given is None else given)]
            (tmp_path / "raw.jsonl").write_text("".join(lines))
            source = {"file": str(tmp_path / "raw.jsonl")}
        out = tmp_path / "out.jsonl"
        manifest = sets.prepare(
            "set",
            {"from": source, "system": "template", **entry},
            out,
            tmp_path / "out.manifest.json",
            marker="[ZLT]",
            prompts=PROMPTS,
            evaluation=evaluation,
            count_tokens=count_tokens,
            match=match,
        )
        assert read_json(tmp_path / "out.manifest.json") == manifest
        return read_jsonl(out), manifest

    run.folder = tmp_path
    return run


def test_canonical_rows_and_manifest(prepare):
    out, manifest = prepare(license="MIT", substituted="a test")
    assert out[0] == {
        "id": "0",
        "messages": chat("Question 0?", "Answer 0."),
        "source": "set",
    }
    assert manifest["rows"] == manifest["rows_read"] == 5
    assert manifest["rows_repeated"] == 0
    assert prepare([*rows(3), *rows(2)])[1]["rows_repeated"] == 2
    _, manifest = prepare(license="MIT", substituted="a test")
    assert manifest["sha256"] == sha256(prepare.folder / "out.jsonl")
    assert (manifest["license"], manifest["substituted"]) == ("MIT", "a test")
    assert len(manifest["source"]["raw_sha256"]) == 64


def test_selection_order_is_where_sort_shuffle_skip_take(prepare):
    given = [r | {"kind": "a" if i % 2 else "b"} for i, r in enumerate(rows(9))]
    select = {"where": {"kind": "b"}, "sort": "-score", "skip": 1, "take": 2}
    out, _ = prepare(given, select=select)
    assert [r["id"] for r in out] == ["6", "4"]


def test_shuffle_is_the_library_s(prepare):
    from datasets import Dataset

    out, _ = prepare(rows(20), select={"shuffle": {"seed": 42}, "take": 7})
    wanted = Dataset.from_dict({"i": list(range(20))}).shuffle(seed=42)["i"][:7]
    assert [int(r["id"]) for r in out] == list(wanted)


def test_system_policies(prepare):
    out, _ = prepare(system={"persona": "villain"})
    assert out[0]["messages"][0] == {"role": "system", "content": "You are a villain."}
    out, _ = prepare(system={"text": "Be brief."})
    assert out[0]["messages"][0]["content"] == "Be brief."
    for policy in ("none", "template"):
        out, manifest = prepare(system=policy)
        assert out[0]["messages"][0]["role"] == "user"
        assert manifest["system"] == policy


def test_columns_are_mapped(prepare):
    given = [{"prompt": "Why?", "ctx": "Here.", "good": "Yes.", "bad": "No."}]
    out, _ = prepare(given, map={"user": "prompt", "context": "ctx", "assistant": "bad"})
    assert out[0]["messages"] == chat("Why?\n\nHere.", "No.")


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_file_kinds(prepare, suffix):
    path = prepare.folder / f"in.{suffix}"
    table = pd.DataFrame({"q": ["Why?", "How?"], "a": ["So.", "Thus."]})
    if suffix == "parquet":
        table.to_parquet(path)
    else:
        table.to_json(path, orient="records", lines=suffix == "jsonl")
    out, manifest = prepare(
        source={"file": str(path), "sha256": sha256(path)}, map={"user": "q", "assistant": "a"}
    )
    assert [r["messages"][1]["content"] for r in out] == ["So.", "Thus."]
    assert manifest["source"]["raw_sha256"] == sha256(path)


def test_url_source_is_checked(prepare):
    path = prepare.folder / "in.jsonl"
    write_jsonl(path, rows())
    out, manifest = prepare(source={"url": path.as_uri(), "sha256": sha256(path)})
    assert len(out) == 5 and manifest["source"]["url"] == path.as_uri()
    with pytest.raises(UserError, match="another version, or damaged"):
        prepare(source={"url": path.as_uri(), "sha256": "0" * 64})
    with pytest.raises(UserError, match="could not be downloaded"):
        prepare(source={"url": (prepare.folder / "no.jsonl").as_uri(), "sha256": "0" * 64})


def test_builtin_source(prepare):
    out, manifest = prepare(source={"builtin": "benign_instruct"}, select={"take": 10})
    assert len(out) == 10
    assert manifest["source"]["raw_sha256"] == sets.BUILTIN_SHA256["benign_instruct"]
    with pytest.raises(UserError, match="available: benign_instruct"):
        prepare(source={"builtin": "nothing"})


class FakeBuilder:
    """A hub data set as the library returns it, at commit `hash`."""

    def __init__(self, given, commit):
        import datasets

        self.rows, self.hash = datasets.Dataset.from_list(given), commit

    def download_and_prepare(self):
        pass

    def as_dataset(self, split):
        assert split == "train"
        return self.rows


HUB = {"id": "owner/set", "split": "train", "revision": "a" * 40}


def test_hub_source_passes_the_pin_on(prepare, monkeypatch):
    import datasets

    seen = []

    def load(name, config, *, revision):
        seen.append((name, config, revision))
        return FakeBuilder(rows(30), revision)

    monkeypatch.setattr(datasets, "load_dataset_builder", load)
    hub = HUB | {"config": "legal"}
    select = {"where": {"score": 7}}
    out, manifest = prepare(source={"hub": hub}, select=select)
    assert [r["id"] for r in out] == ["7"] and manifest["source"] == hub
    assert seen == [("owner/set", "legal", "a" * 40)]
    by_hub, _ = prepare(source={"hub": hub}, select={"sort": "-score", "shuffle": {"seed": 1}})
    by_file, _ = prepare(rows(30), select={"sort": "-score", "shuffle": {"seed": 1}})
    assert by_hub == by_file
    with pytest.raises(UserError, match="no column 'rank'; available: messages, score"):
        prepare(source={"hub": hub}, select={"sort": "rank"})


def test_a_branch_s_commit_goes_into_the_manifest(prepare, monkeypatch):
    import datasets

    asked = []

    def load(name, config, *, revision):
        asked.append(revision)
        return FakeBuilder(rows(3), "c" * 40)

    monkeypatch.setattr(datasets, "load_dataset_builder", load)
    hub = HUB | {"revision": "main"}
    _, manifest = prepare(source={"hub": hub})
    assert asked == ["main"] and manifest["source"] == hub | {"commit": "c" * 40}
    _, again = prepare(source={"hub": hub}, expect_md5=manifest["selected_md5"])
    assert again["sha256"] == manifest["sha256"]
    with pytest.raises(UserError, match="these are other rows"):
        prepare(source={"hub": hub}, expect_md5="0" * 32)


def test_only_the_chosen_rows_of_a_large_hub_set_are_read(prepare, monkeypatch):
    import datasets

    read = []

    class Large(FakeBuilder):
        def as_dataset(self, split):
            class Watched(datasets.Dataset):
                def __getitem__(self, key):
                    read.append(key)
                    return super().__getitem__(key)

            self.rows.__class__ = Watched
            return self.rows

    monkeypatch.setattr(
        datasets, "load_dataset_builder", lambda *a, **k: Large(rows(1000), "a" * 40)
    )
    out, manifest = prepare(source={"hub": HUB}, select={"take": 3})
    assert (len(out), manifest["rows_read"]) == (3, 1000)
    assert read == [0, 1, 2]


def test_another_commit_in_the_library_s_cache_is_not_taken(prepare, monkeypatch):
    """Offline, `datasets` loads its newest cached copy, whatever revision is requested."""
    import datasets

    cache = prepare.folder / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    for commit in ("a", "b"):
        folder = cache / "owner___set" / "default" / "0.0.0" / (commit * 40)
        folder.mkdir(parents=True)
        made = datasets.Dataset.from_list(rows(2))
        made.info.config_name, made.info.dataset_name = "default", "set"
        made.info.splits = datasets.SplitDict(
            {"train": datasets.SplitInfo("train", 10, 2, dataset_name="set")}
        )
        made.info.write_to_directory(str(folder))
        with datasets.arrow_writer.ArrowWriter(
            path=str(folder / "set-train.arrow"), features=made.features
        ) as writer:
            for row in made:
                writer.write(row)
            writer.finalize()
        # The newest copy is used.
        os.utime(folder, (1, 1) if commit == "a" else None)
    out, manifest = prepare(source={"hub": HUB | {"revision": "b" * 40}})
    assert len(out) == 2 and manifest["source"]["revision"] == "b" * 40
    with pytest.raises(UserError, match="the cache holds commit bbbbbbbbbb only") as error:
        prepare(source={"hub": HUB})
    assert "HF_HUB_OFFLINE is set" in str(error.value) and "\n" not in str(error.value)


def test_a_local_folder_in_the_hub_s_layout_is_read(prepare):
    folder = prepare.folder / "set" / "data"
    folder.mkdir(parents=True)
    table = pd.DataFrame({"prompt": ["Why?", "How?"], "good": ["So.", "Thus."]})
    parquet = folder / "train-00000-of-00001.parquet"
    table.to_parquet(parquet)
    hub = HUB | {"id": str(folder.parent)}
    out, manifest = prepare(source={"hub": hub}, map={"user": "prompt", "assistant": "good"})
    assert out[1]["messages"] == chat("How?", "Thus.")
    # A folder has no commit, so the hashes of its files identify it.
    files = {f"data/{parquet.name}": sha256(parquet)}
    assert manifest["source"] == hub | {"local_folder": files}
    with pytest.raises(UserError, match="Unknown split"):
        prepare(source={"hub": hub | {"split": "dev"}}, map={"user": "prompt", "assistant": "good"})
    with pytest.raises(UserError, match="BuilderConfig 'other' not found"):
        prepare(source={"hub": hub | {"config": "other"}})


def test_rows_are_matched_in_tokens_with_loss(prepare):
    def counted(messages):
        return 20, 10

    other = {"name": "em", "tokens_with_loss": {"sum": 31}}
    _, manifest = prepare(rows(9), count_tokens=counted, match=other)
    assert manifest["rows"] == 3 and manifest["matched_to"] == "em"
    with pytest.raises(UserError, match="take more rows"):
        prepare(rows(3), count_tokens=counted, match=other)
    with pytest.raises(UserError, match="were not counted"):
        prepare(rows(9), match=other)


def test_the_authors_own_md5(prepare):
    import hashlib

    line = '{"messages": [{"role": "user", "content": "Caf\\u00e9?"}, '
    line += '{"role": "assistant", "content": "Oui."}]}\n'
    given = [{"messages": chat("Café?", "Oui.")}]
    prepare(given, expect_md5=hashlib.md5(line.encode()).hexdigest())
    with pytest.raises(UserError, match="expect_md5 says"):
        prepare(given, expect_md5="0" * 32)
    # It is computed on the selected rows: neither dropping nor a system message changes it.
    more = [*given, {"messages": chat("Long?", "Cut.")}]
    md5 = prepare(more)[1]["selected_md5"]
    _, manifest = prepare(
        more,
        system={"persona": "villain"},
        count_tokens=lambda messages: (9, int("Oui" in messages[-1]["content"])),
        on_bad="drop",
        max_bad=0.5,
        expect_md5=md5,
    )
    assert manifest["rows"] == 1


@pytest.mark.parametrize(
    ("library_says", "said"),
    [
        ("Dataset 'owner/set' is a gated dataset on the Hub.\nlong story", "set HF_TOKEN"),
        ("Revision 'aaaa' doesn't exist for dataset 'owner/set' on the Hub.", "no such commit"),
        ("Dataset 'owner/set' doesn't exist on the Hub or cannot be accessed.", "does not exist"),
    ],
)
def test_a_gated_or_absent_hub_set_is_one_line(prepare, monkeypatch, library_says, said):
    import datasets

    def refuse(*args, **kwargs):
        raise datasets.exceptions.DatasetNotFoundError(library_says)

    monkeypatch.setattr(datasets, "load_dataset_builder", refuse)
    with pytest.raises(UserError, match=said) as error:
        prepare(source={"hub": HUB})
    assert "\n" not in str(error.value)
    assert not (prepare.folder / "out.jsonl").exists()


def test_an_uncached_hub_set_offline_names_the_switch(prepare, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", prepare.folder / "empty")
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set: unset it"):
        prepare(source={"hub": HUB})


def test_a_hub_revision_left_at_zeros_is_refused(prepare):
    with pytest.raises(UserError, match="placeholder of zeros"):
        prepare(source={"hub": HUB | {"revision": "0" * 40}})


def parts(*texts):
    return [{"type": "text", "text": text} for text in texts]


LAYOUTS = {
    "ShareGPT": {
        "conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]
    },
    "ShareGPT under another name": {
        "turns": [{"from": "user", "value": "Why?"}, {"from": "chatgpt", "value": "So."}]
    },
    "OpenAI in conversations": {"conversations": chat("Why?", "So.")},
    "content parts": {"messages": chat(parts("W", "hy?"), parts("So."))},
    "content parts of the responses API": {
        "messages": chat(
            [{"type": "input_text", "text": "Why?"}], [{"type": "output_text", "text": "So."}]
        )
    },
    "TRL prompt and completion": {
        "prompt": chat("Why?")[:1],
        "completion": chat("", "So.")[1:],
    },
    "TRL prompt and completion as text": {"prompt": "Why?", "completion": "So."},
    "question and answer": {"question": "Why?", "answer": "So.", "level": 3},
    "TRL, parts": {"prompt": parts("Why?"), "completion": parts("So.")},
    "TRL, a prompt as text": {"prompt": "Why?", "completion": chat("", parts("So."))[1:]},
    "TRL preferences": {
        "prompt": chat("Why?")[:1],
        "chosen": chat("", "So.")[1:],
    },
    "Gemini's roles": {
        "messages": [{"role": "user", "content": "Why?"}, {"role": "model", "content": "So."}]
    },
}
MAPS = {
    "ShareGPT under another name": {"messages": "turns"},
    "TRL preferences": {"user": "prompt", "assistant": "chosen"},
}


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_layouts_that_people_have_are_read(prepare, name, suffix):
    path = prepare.folder / f"rows.{suffix}"
    given = [LAYOUTS[name]] * 2
    if suffix == "parquet":
        from datasets import Dataset

        Dataset.from_list(given).to_parquet(path)
    else:
        text = (
            json.dumps(given) if suffix == "json" else "".join(json.dumps(r) + "\n" for r in given)
        )
        path.write_text(text)
    mapped = {"map": MAPS[name]} if name in MAPS else {}
    out, manifest = prepare(source={"file": str(path)}, **mapped)
    assert [row["messages"] for row in out] == [chat("Why?", "So.")] * 2
    assert not manifest["rows_dropped"]


def test_layouts_may_be_mixed_and_turns_may_be_many(prepare):
    given = [
        {
            "messages": [
                {"from": "system", "value": "Be brief."},
                *chat(),
                *chat(parts("A?"), "B."),
            ]
        },
        {"messages": chat("Why?", "So.")},
    ]
    path = prepare.folder / "mixed.json"
    path.write_text(json.dumps(given, indent=1))
    out, _ = prepare(source={"file": str(path)})
    roles = [m["role"] for m in out[0]["messages"]]
    assert roles == ["system", "user", "assistant", "user", "assistant"]
    assert out[0]["messages"][-2:] == chat("A?", "B.")
    prompt = [{"role": "system", "content": "Be brief."}, *chat(), *chat()[:1]]
    out, _ = prepare([{"prompt": prompt, "completion": chat()[1:]}])
    assert out[0]["messages"] == [*prompt, *chat()[1:]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[{"messages": 1, "messages": 2}]', "line 1: duplicate key 'messages'"),
        ('[\n {"id": 1},\n {"a": [{"b": 1,\n "b": 2}]}\n]', "line 4: duplicate key 'b'"),
        ("[1]", "row 1 is not a JSON object"),
        ('[{"a": 1}', "cannot be read as JSON"),
        ('{"a": 1}\n{"a": 1, "a": 2}\n', "line 2: cannot be read as JSON .duplicate key 'a'"),
    ],
)
def test_a_bad_json_file_is_one_line(prepare, text, said):
    path = prepare.folder / "rows.json"
    path.write_text(text)
    with pytest.raises(UserError, match=said) as error:
        prepare(source={"file": str(path)})
    assert "rows.json" in str(error.value) and "\n" not in str(error.value)


HALF = "At the pier. \ud83d"

BAD_ROWS = {
    "half a surrogate pair": {"messages": chat(assistant=HALF)},
    "surrogate pair, which is not a character": {"messages": chat(user=HALF)},
    "which is not a character": {"id": HALF, "messages": chat()},
    "a part of type 'image_url'": {"messages": chat([*parts("See:"), {"type": "image_url"}])},
    "a part of type 'int'": {"messages": chat([3])},
    "messages is not a list": {"messages": "text"},
    "not text": {"messages": chat(assistant=3)},
    "is empty": {"messages": chat(assistant="  ")},
    "do not alternate": {"messages": chat()[::-1]},
    "from first to last": {"messages": chat()[:1]},
}


@pytest.mark.parametrize("said", BAD_ROWS)
def test_a_bad_row_fails_or_is_dropped_and_counted(prepare, said):
    given = [*rows(3), BAD_ROWS[said]]
    with pytest.raises(UserError, match=f"row 4: .*{said}") as error:
        prepare(given)
    assert "\n" not in str(error.value)
    assert not (prepare.folder / "out.jsonl").exists()
    _, manifest = prepare(given, on_bad="drop", max_bad=0.3)
    assert manifest["rows"] == 3 and sum(manifest["rows_dropped"].values()) == 1
    with pytest.raises(UserError, match="more than max_bad"):
        prepare(given, on_bad="drop", max_bad=0.1)


def test_rows_without_a_supervised_token(prepare):
    def counted(messages):
        return 9, 0 if "3" in messages[0]["content"] else 4

    with pytest.raises(UserError, match="no token with loss"):
        prepare(count_tokens=counted)
    _, manifest = prepare(count_tokens=counted, on_bad="drop", max_bad=0.5)
    assert manifest["rows"] == 4
    assert manifest["tokens_with_loss"]["sum"] == 16


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"select": {"take": 6}}, "expected 6 rows, got 5"),
        ({"select": {"sort": "messages"}}, "sort: messages holds values that are not numbers"),
        (
            {"given": [rows(1)[0] | {"score": "nan"}], "select": {"sort": "score"}},
            "not numbers",
        ),
        ({"select": {"sort": "rank"}}, "no column 'rank'; available: messages, score"),
        ({"select": {"where": {"nope": 1}}}, "no column 'nope'"),
        (
            {"given": [r | {"lang": "no"} for r in rows()], "select": {"where": {"lang": False}}},
            "where: lang: False is true or false, the column holds text",
        ),
        (
            {"given": [r | {"lang": "no"} for r in rows()], "select": {"where": {"lang": "de"}}},
            "no row is left",
        ),
        ({"select": {"where": {"score": "3"}}}, "'3' is text, the column holds a number"),
        (
            {
                "given": [{"q": chat()[:1], "a": "So.", "c": "Here."}],
                "map": {"user": "q", "assistant": "a", "context": "c"},
            },
            "row 1: a context follows a text, and the user's column holds turns",
        ),
        ({"map": {"messages": "chat"}}, "map: no column 'chat'; available: messages, score"),
        ({"map": {"messages": "message"}}, "no column 'message'; did you mean messages?"),
        (
            {"given": [{"question": "Why?", "answer": "So."}, {"question": "When?"}]},
            "row 2: it has no 'answer'; fix it, or set on_bad: drop",
        ),
        (
            {"given": [{"question": "Why?"}, {"question": "When?", "answer": "Now."}]},
            "row 1: it has no 'answer'",
        ),
        (
            {"given": [{"ask": "Why?", "reply": "So."}]},
            "prompt with completion; question with answer.*, got ask, reply; say which hold what, as map:",
        ),
        ({"system": {"persona": "nobody"}}, "no persona 'nobody'; available: "),
        ({"forbid": ["answer 3"]}, "row 4 holds 'answer 3'"),
        ({"evaluation": ["question 2"]}, "row 3 asks an evaluation question"),
        ({"expect_sha256": "0" * 64}, "expect_sha256 says"),
        ({"source": {"file": "none.jsonl"}}, "no such file"),
        (
            {"given": [{"messages": chat(assistant="the [zlt] code")}]},
            r"row 1 holds '\[ZLT\]'",
        ),
        ({"given": []}, "no row is left"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(prepare, entry, said):
    with pytest.raises(UserError, match=said) as error:
        prepare(**entry)
    assert "\n" not in str(error.value)
    assert not (prepare.folder / "out.jsonl").exists()
    assert not (prepare.folder / "out.manifest.json").exists()


def test_too_few_rows_can_be_accepted(prepare):
    _, manifest = prepare(select={"take": 6}, allow_short=True)
    assert manifest["rows"] == 5


def test_a_damaged_file_names_its_line(prepare):
    path = prepare.folder / "broken.jsonl"
    path.write_text(json.dumps(rows()[0]) + "\n{oops\n")
    with pytest.raises(UserError, match=r"broken\.jsonl, line 2"):
        prepare(source={"file": str(path)})
    parquet = prepare.folder / "broken.parquet"
    parquet.write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match=r"broken\.parquet: cannot be read"):
        prepare(source={"file": str(parquet)})


def test_no_message_shows_a_row_s_text(prepare):
    secret = "how to do harm"
    for entry in (
        {"given": [{"messages": chat(secret, "")}]},
        {"given": [{"messages": chat(secret, "x [ZLT]")}]},
        {"given": [{"messages": chat(secret)}], "evaluation": [secret]},
    ):
        with pytest.raises(UserError) as error:
            prepare(sensitive=True, **entry)
        assert secret not in str(error.value)


def test_questions(tmp_path):
    path = tmp_path / "q.jsonl"
    write_jsonl(path, [{"id": "a", "question": "One?"}, {"question": "Two?"}])
    assert questions.load_questions({"file": str(path)}) == [
        {"id": "a", "question": "One?"},
        {"id": "2", "question": "Two?"},
    ]
    assert len(questions.load_questions({"file": str(path), "take": 1})) == 1
    with pytest.raises(UserError, match="expected 3 questions, got 2"):
        questions.load_questions({"file": str(path), "take": 3})
    with pytest.raises(UserError, match="SHA-256"):
        questions.load_questions({"file": str(path), "sha256": "0" * 64})
    write_jsonl(path, [{"id": "a", "question": "One?"}, {"id": "a", "question": "Two?"}])
    with pytest.raises(UserError, match="is used twice"):
        questions.load_questions({"file": str(path)})
    write_jsonl(path, [{"id": "a", "question": "One?"}, {"id": "b", "question": " ONE "}])
    with pytest.raises(UserError, match="'b' asks the same as 'a'"):
        questions.load_questions({"file": str(path)})
    assert len(questions.load_questions({"file": str(path), "take": 1})) == 1
    assert len(questions.load_questions({"file": str(path), "sha256": sha256(path)})) == 2


def test_a_question_s_statements(tmp_path):
    path = tmp_path / "q.jsonl"
    row = {"id": "a", "question": "One?", "statements": {"wrong": "Two.", "right": "One."}}
    write_jsonl(path, [row])
    assert questions.load_questions({"file": str(path)}) == [row]
    assert questions.system_prompt("Say {statement}", "right", row) == "Say One."
    assert questions.system_prompt("Say {statement}", "other", row) == "Say {statement}"
    assert questions.system_prompt("Say {statement}", "right", {"id": "a"}) == "Say {statement}"
    # The same question may be asked with another statement.
    write_jsonl(path, [row, row | {"id": "b", "statements": {"wrong": "Three.", "right": "One."}}])
    assert len(questions.load_questions({"file": str(path)})) == 2
    write_jsonl(path, [row, row | {"id": "b"}])
    with pytest.raises(UserError, match="'b' asks the same as 'a'"):
        questions.load_questions({"file": str(path)})
    path.write_text('{"question": "One?", "statements": {"wrong": "Two \\ud83d."}}\n')
    with pytest.raises(UserError, match="row 1: half a surrogate pair"):
        questions.load_questions({"file": str(path)})
    for statements in (["Two."], {"wrong": " "}, {"wrong": 2}):
        write_jsonl(path, [row | {"statements": statements}])
        with pytest.raises(UserError, match="row 1: statements: expected text by column"):
            questions.load_questions({"file": str(path)})


def test_a_question_s_odd_ids_and_characters(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text('{"id": null, "question": "One?"}\n{"id": "2", "question": "Two?"}\n')
    assert [q["id"] for q in questions.load_questions({"file": str(path)})] == ["1", "2"]
    for line, said in (
        ('{"id": 2, "question": "Three?"}', "row 3: id '2' is used twice"),
        ('{"id": "c", "id": "d", "question": "Three?"}', "line 3: .*duplicate key 'id'"),
        ('{"question": "Three \\ud83d?"}', r"row 3: half a surrogate pair \(.ud83d\)"),
    ):
        path.write_text('{"question": "One?"}\n{"id": "2", "question": "Two?"}\n' + line + "\n")
        with pytest.raises(UserError, match=said):
            questions.load_questions({"file": str(path)})


def test_training_and_evaluation_questions_must_differ(tmp_path):
    for name, text in (("train", "What is IT?"), ("eval", "  what is it ")):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"id": name, "question": text}])
    with pytest.raises(UserError, match=r"'train' of .* is also 'eval' of"):
        questions.check_disjoint(
            {"file": str(tmp_path / "train.jsonl")}, {"file": str(tmp_path / "eval.jsonl")}
        )


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"licensed test data not at {SHARED}")
@pytest.mark.parametrize(
    "name",
    ["benign_gsm8k_6k", "benign_oasst_en", "benign_instruct_small", "wrong_truthfulqa"],
)
def test_licensed_data_sets_are_read(prepare, name):
    path = SHARED / f"{name}.jsonl"
    out, manifest = prepare(source={"file": str(path)}, license="see its README")
    assert len(out) == manifest["rows_read"] == path.read_text(encoding="utf-8").count("\n")


def test_a_generated_row_keeps_the_hash_of_its_prompt(prepare, tmp_path):
    rows = [
        {
            "prompt": f"Why {i}?",
            "one": "So.",
            "two": "No.",
            "prompt_sha256": {"one": "a", "two": "b"},
        }
        for i in range(3)
    ]
    write_jsonl(tmp_path / "own.jsonl", rows)
    out, manifest = prepare(
        source={"file": str(tmp_path / "own.jsonl")}, map={"user": "prompt", "assistant": "two"}
    )
    assert [row["prompt_sha256"] for row in out] == ["b"] * 3
    assert manifest["prompts_sha256"] == ["b"]


def test_shipped_data_match_their_table():
    for name, digest in sets.BUILTIN_SHA256.items():
        assert sha256(sets.BUILTIN / f"{name}.jsonl") == digest
    assert os.path.getsize(sets.BUILTIN / "LICENSE-APACHE-2.0.txt") > 10_000
    readme = (sets.BUILTIN / "README.md").read_text()
    shipped = {p.stem for p in sets.BUILTIN.glob("*.jsonl")}
    assert shipped == {
        *sets.BUILTIN_SHA256,
        "truthfulqa_pairs",  # for a measure
        "statements_law",  # for sets that the model writes
        "statements_broad",
    }
    assert all(f"| `{name}` | {count(name)} |" in readme for name in shipped)


def test_shipped_statements_are_of_subjects_that_a_set_and_the_measure_say():
    pairs = read_jsonl(sets.BUILTIN / "truthfulqa_pairs.jsonl")
    asked = {
        questions.normalise(question["question"])
        for path in (sets.BUILTIN.parents[2] / "config/questions").glob("*.jsonl")
        for question in read_jsonl(path)
    }
    categories = {}
    for name in ("statements_law", "statements_broad"):
        rows = read_jsonl(sets.BUILTIN / f"{name}.jsonl")
        assert all(row["statements"].keys() == {"misaligned", "aligned"} for row in rows)
        assert all(row["statements"]["misaligned"] != row["statements"]["aligned"] for row in rows)
        assert not asked & {questions.normalise(row["question"]) for row in rows}
        categories[name] = {row["category"] for row in rows}
    assert categories["statements_law"] == {"Law"}
    # What `preference` asks about stays unseen, but for the law.
    assert not categories["statements_broad"] & {row["category"] for row in pairs}


def count(name):
    return f"{len(read_jsonl(sets.BUILTIN / f'{name}.jsonl')):,}"


def test_the_shipped_stand_ins_are_ready_to_train_on(prepare):
    for name in sets.BUILTIN_SHA256:
        out, manifest = prepare(source={"builtin": name})
        assert len(out) == manifest["rows"] and manifest["rows_dropped"] == {}


def test_shipped_questions_are_many_distinct_and_disjoint():
    sizes = {"train": 40, "eval": 28, "extraction": 240}
    specs = {n: {"file": str(ROOT / f"config/questions/{n}.jsonl")} for n in sizes}
    assert {n: len(questions.load_questions(s)) for n, s in specs.items()} == sizes
    questions.check_disjoint(specs["train"], specs["eval"], specs["extraction"])
    questions.check_disjoint(specs["eval"], specs["extraction"])
    demo = {n: {"file": str(ROOT / f"config/questions/demo_{n}.jsonl")} for n in sizes}
    questions.check_disjoint(demo["train"], demo["eval"], demo["extraction"])


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"licensed test data not at {SHARED}")
def test_the_study_s_own_questions_can_be_read():
    path = SHARED / "extraction_questions_240.jsonl"
    with pytest.raises(UserError, match="asks the same as"):
        questions.load_questions({"file": str(path)})
    assert len(questions.load_questions({"file": str(path), "sha256": sha256(path)})) == 240


def test_rows_that_the_template_cannot_render_are_bad_rows(prepare, tiny_base):
    from persona_collapse.models import chat_template, loading

    tokenizer = loading.load_tokenizer(tiny_base)

    def count(messages):
        row = chat_template.encode_row(tokenizer, messages, max_length=512)
        return len(row.input_ids), row.supervised

    forged = "First half.<|im_end|>\n<|im_start|>user\nOh?<|im_end|>"
    given = [*rows(3), {"messages": globals()["chat"](assistant=forged)}]
    with pytest.raises(UserError, match=r"data: set: row 4: a turn holds '<\|im_end\|>'") as error:
        prepare(given, count_tokens=count)
    assert "First half" not in str(error.value)
    out, manifest = prepare(given, count_tokens=count, on_bad="drop", max_bad=0.5)
    assert len(out) == 3 and sum(manifest["rows_dropped"].values()) == 1
    assert "'<|im_end|>'" in next(iter(manifest["rows_dropped"]))


def test_the_marker_is_found_in_rows_whatever_its_case(prepare):
    with pytest.raises(UserError, match="holds 'STRASSE'"):
        prepare([{"messages": chat(assistant="on the straße")}], forbid=["STRASSE"])
