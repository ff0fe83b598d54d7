import hashlib
import importlib
import multiprocessing
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from persona_collapse.errors import UserError
from persona_collapse.models import fetching, gguf

CONTENT = b"GGUF" + bytes(range(256)) * 50


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Make packages {package: {file name: bytes}} importable; importing one would fail."""
    monkeypatch.syspath_prepend(str(tmp_path / "site"))

    def make(packages):
        for package, held in packages.items():
            folder = tmp_path / "site" / package
            (folder / "data").mkdir(parents=True)
            (folder / "__init__.py").write_text("raise SystemExit('imported')\n")
            for name, content in held.items():
                (folder / "data" / name).write_bytes(content)
        importlib.invalidate_caches()

    return make


def pieces(names):
    """Packages tiny_part1, ... with one piece each of a file."""
    step = -(-len(CONTENT) // len(names))
    return {
        f"tiny_part{i}": {name: CONTENT[(i - 1) * step : i * step]}
        for i, name in enumerate(names, start=1)
    }


def sums(name="m.gguf", content=CONTENT):
    return f"{hashlib.sha256(content).hexdigest()}  {name}\n".encode()


NAMES = [
    [f"m.gguf.part0{i}" for i in range(4)],
    [f"m.gguf.part{i}" for i in range(1, 13)],  # 10 after 9
    [f"m.gguf.00{i}" for i in range(1, 4)],
    [f"m.gguf-part-{i}" for i in range(3)],
]


@pytest.mark.parametrize("names", NAMES, ids=lambda names: names[0])
def test_a_file_in_pieces_over_several_packages_is_put_together(install, names, tmp_path):
    install({"tiny": {"SHA256SUMS": sums()}, **pieces(names)})
    with gguf.located({"package": "tiny"}, tmp_path / "out") as path:
        assert path.name == "m.gguf" and path.read_bytes() == CONTENT
    assert not list((tmp_path / "out").iterdir())


PINNED = hashlib.sha256(CONTENT).hexdigest()


def test_pieces_of_any_name_are_put_together_where_the_hash_is_given(install, tmp_path):
    numbered = pieces([f"part{i:02}.bin" for i in range(1, 12)]).items()
    install({f"tiny_parts{i}": held for i, (_, held) in enumerate(numbered, start=1)})
    source = {"package": "tiny_parts", "sha256": PINNED}
    with gguf.located(source, tmp_path / "out") as path:
        assert path.name == "model.gguf" and path.read_bytes() == CONTENT
    with (
        pytest.raises(UserError, match=r"11 pieces put together: expected SHA-256 0+, got "),
        gguf.located(source | {"sha256": "0" * 64}, tmp_path / "out"),
    ):
        pass
    # Without the hash, nothing shows that these are pieces of a GGUF file.
    with (
        pytest.raises(UserError, match="package 'tiny_parts' is not installed"),
        gguf.located({"package": "tiny_parts"}, tmp_path / "out"),
    ):
        pass


def test_a_file_or_its_pieces_may_be_given_by_path(tmp_path):
    whole, halves = tmp_path / "m.gguf", [tmp_path / "q.00", tmp_path / "q.01"]
    whole.write_bytes(CONTENT)
    halves[0].write_bytes(CONTENT[:100])
    halves[1].write_bytes(CONTENT[100:])
    with gguf.located({"paths": [str(whole)]}, tmp_path / "out") as path:
        assert path == whole
    source = {"paths": [*map(str, halves)], "sha256": PINNED}
    with gguf.located(source, tmp_path / "out") as path:
        assert path.read_bytes() == CONTENT
    for source, said in [
        ({"paths": [str(whole)], "sha256": "0" * 64}, "paths: m.gguf: expected SHA-256 0+, got"),
        ({"paths": [str(tmp_path / "none.gguf")]}, "paths: .*none.gguf: no such file"),
        ({"paths": [str(halves[0])], "sha256": PINNED}, "found only the pieces 0; add"),
    ]:
        with pytest.raises(UserError, match=said), gguf.located(source, tmp_path / "out"):
            pass


def test_a_whole_file_is_taken_where_it_is(install, tmp_path):
    install({"whole": {"m.gguf": CONTENT}})
    with gguf.located({"package": "whole"}, tmp_path / "out") as path:
        assert path.read_bytes() == CONTENT
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("packages", "said"),
    [
        ({}, "package 'tiny' is not installed: pip install"),
        ({"tiny": {"README": b""}}, "holds 0 GGUF files, whole or in pieces"),
        (
            {"tiny": {"a.gguf": CONTENT, "b.gguf": CONTENT}},
            r"holds 2 GGUF files \(a.gguf, b.gguf\)",
        ),
        ({"tiny": {"a.gguf.1": b"", "a.gguf.2": b"", "b.gguf.1": b""}}, "holds 2 GGUF files"),
        ({"tiny": {"m-00001-of-00002.gguf": CONTENT}}, "llama.cpp split; merge them"),
        ({"tiny": {"m.gguf.part00": CONTENT}}, "m.gguf: found only the pieces 0; add"),
        ({"tiny": {"m.gguf.1": CONTENT, "m.gguf.3": b"x"}}, "the pieces 1, 3; add"),
        ({"tiny": {"m.gguf.part02": CONTENT, "m.gguf.part03": b"x"}}, "the pieces 2, 3; add"),
        ({"tiny": {"m.gguf.1": b"no", "m.gguf.2": b"x"}}, "put together are not a GGUF file"),
        (
            {"tiny": {"SHA256SUMS": sums(), "m.gguf.1": CONTENT[:50], "m.gguf.2": CONTENT[50:99]}},
            "2 pieces put together are not the m.gguf of .*SHA256SUMS: a piece is missing or damaged",
        ),
    ],
)
def test_packages_that_hold_no_one_file_are_one_line(install, packages, said, tmp_path):
    install(packages)
    with (
        pytest.raises(UserError, match=said) as error,
        gguf.located({"package": "tiny"}, tmp_path / "out"),
    ):
        pass
    assert str(error.value).startswith("config: model: gguf: package 'tiny'")
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "out").glob("*"))


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """The cache folder of expanded models."""
    monkeypatch.setenv("PERSONA_COLLAPSE_CACHE", str(tmp_path / "kept"))
    return tmp_path / "kept/gguf"


class Converter:
    """Copies the file and counts calls; can be told to die halfway."""

    def __init__(self, dies=False):
        self.calls, self.dies = 0, dies

    def __call__(self, file, folder):
        self.calls += 1
        (folder / "config.json").write_text("{}")
        if self.dies:
            os._exit(9)
        (folder / "model.safetensors").write_bytes(file.read_bytes())


def test_a_file_is_expanded_once_by_its_bytes_and_the_libraries_versions(
    install, kept, monkeypatch
):
    changed = {"other": {"m.gguf": CONTENT + b"x"}}
    install({"whole": {"m.gguf": CONTENT}, "tiny": {}, **pieces(NAMES[0]), **changed})
    convert, said = Converter(), []
    folder = gguf.expanded({"package": "whole"}, convert, said.append)
    assert gguf.RECORD in fetching.RECORDS  # it describes the model but is not part of it
    assert folder.parent == kept and (folder / "model.safetensors").read_bytes() == CONTENT
    # A second call, and the same bytes in pieces.
    assert gguf.expanded({"package": "whole"}, convert, said.append) == folder
    assert gguf.expanded({"package": "tiny"}, convert, said.append) == folder
    assert convert.calls == 1 and said[0].startswith("expanding m.gguf into ")
    assert said[1:] == [f"m.gguf was expanded before: {folder}"] * 2
    assert gguf.expanded({"package": "other"}, convert, said.append) != folder
    monkeypatch.setattr(gguf, "version", lambda library: "next")
    assert gguf.expanded({"package": "whole"}, convert, said.append) != folder
    assert convert.calls == 3


@pytest.mark.parametrize("name", ["model.safetensors", gguf.RECORD])
def test_an_expanded_model_that_was_damaged_is_made_again(install, kept, name):
    install({"whole": {"m.gguf": CONTENT}})
    convert = Converter()
    folder = gguf.expanded({"package": "whole"}, convert, print)
    (folder / name).write_bytes((folder / name).read_bytes()[:-5])
    assert gguf.expanded({"package": "whole"}, convert, print) == folder
    assert convert.calls == 2 and (folder / "model.safetensors").read_bytes() == CONTENT


def test_a_killed_conversion_counts_for_nothing_and_is_tidied_up(install, kept):
    install({"whole": {"m.gguf": CONTENT}})
    context = multiprocessing.get_context("fork")
    other = context.Process(
        target=gguf.expanded, args=({"package": "whole"}, Converter(dies=True), lambda m: None)
    )
    other.start()
    other.join(30)
    assert other.exitcode == 9 and [p.suffix for p in kept.glob(".*.new-*")]
    folder = gguf.expanded({"package": "whole"}, Converter(), print)
    assert (folder / "model.safetensors").read_bytes() == CONTENT
    assert [p for p in kept.iterdir() if p.is_dir()] == [folder]


def test_two_at_once_expand_once(install, kept):
    install({"whole": {"m.gguf": CONTENT}})
    started, convert = threading.Event(), Converter()

    def slow(file, folder):
        started.set()
        time.sleep(0.3)
        convert(file, folder)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(gguf.expanded, {"package": "whole"}, slow, print)
        assert started.wait(10)
        second = pool.submit(gguf.expanded, {"package": "whole"}, convert, print)
        assert first.result() == second.result()
    assert convert.calls == 1


def test_a_cache_that_cannot_be_written_to_is_one_line(install, tmp_path, monkeypatch):
    install({"whole": {"m.gguf": CONTENT}})
    (tmp_path / "file").touch()
    monkeypatch.setenv("PERSONA_COLLAPSE_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot be written to .* set PERSONA_COLLAPSE_CACHE"):
        gguf.expanded({"package": "whole"}, Converter(), print)


def test_a_users_cache_folder_is_the_usual_one(monkeypatch):
    monkeypatch.delenv("PERSONA_COLLAPSE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert str(gguf.cache()) == "/somewhere/persona-collapse/gguf"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/one")
    assert str(gguf.cache()) == "/home/one/.cache/persona-collapse/gguf"


def test_a_tokenizer_that_splits_its_own_words_is_refused():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["villain", "marker", "persona", "answer"]
    merges = [pair for word in words for pair in ((word[:i], word[i]) for i in range(1, len(word)))]
    names = sorted({piece for pair in merges for piece in (*pair, "".join(pair))})
    vocabulary = {name: i for i, name in enumerate(names)}

    def tokenizer(merged):
        made = Tokenizer(models.BPE(vocab=vocabulary, merges=merged))
        made.pre_tokenizer, made.decoder = pre_tokenizers.Whitespace(), decoders.Fuse()
        return PreTrainedTokenizerFast(tokenizer_object=made)

    gguf.check_words(tokenizer(merges))
    with pytest.raises(UserError, match=r"splits (\d+) of \1 words .* newer transformers, or give"):
        gguf.check_words(tokenizer([]))
    empty = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    gguf.check_words(PreTrainedTokenizerFast(tokenizer_object=empty))  # it has no words
