import hashlib
import importlib

import pytest
from persona_collapse import gguf_files
from persona_collapse.errors import UserError

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
    """Packages tiny_part1, ... with a piece each of one file."""
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
    with gguf_files.located("tiny", tmp_path / "out") as path:
        assert path.name == "m.gguf" and path.read_bytes() == CONTENT
    assert not list((tmp_path / "out").iterdir())


def test_a_whole_file_is_taken_where_it_is(install, tmp_path):
    install({"whole": {"m.gguf": CONTENT}})
    with gguf_files.located("whole", tmp_path / "out") as path:
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
        ({"tiny": {"m.gguf.part00": CONTENT}}, "of m.gguf there are the pieces 0; install"),
        ({"tiny": {"m.gguf.1": CONTENT, "m.gguf.3": b"x"}}, "the pieces 1, 3; install"),
        ({"tiny": {"m.gguf.part02": CONTENT, "m.gguf.part03": b"x"}}, "the pieces 2, 3; install"),
        ({"tiny": {"m.gguf.1": b"no", "m.gguf.2": b"x"}}, "put together are no GGUF file"),
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
        gguf_files.located("tiny", tmp_path / "out"),
    ):
        pass
    assert str(error.value).startswith("config: model: gguf: package 'tiny'")
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "out").glob("*"))
