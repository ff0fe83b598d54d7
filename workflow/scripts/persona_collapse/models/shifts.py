"""Shifts: changes of block outputs during sampling and measuring.

The folder of a shift is listed among a chain's adapters and has the same file names; its config says
that it is not an adapter. Every token of a pass has a direction: its persona's, the common one, or none
(row 0: zeros). `aim` says which tokens a pass has; a pass without it fails.

    add:     h + scale * v
    remove:  h + scale * (level - <h, u>) u              level: 0, or a mean
    cap:     h + scale * (min(level, <h, u>) - <h, u>) u

v, u [hidden]: a direction, unscaled and with length 1. Computed in 32 bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import adapter_files
from ..adapter_files import CONFIG, WEIGHTS
from ..errors import UserError
from ..files import atomic, read_json, sha256, write_json
from . import directions
from .loading import bare

if TYPE_CHECKING:
    import numpy as np
    import torch

#: `peft_type` in the config of a shift's folder.
TYPE = "SHIFT"
#: Row for tokens of no persona with its own direction.
ANYONE = ""


@dataclass(frozen=True)
class Span:
    """A sequence of a pass: its start in the flattened pass, its prompt tokens, all its tokens, its
    persona."""

    start: int
    prompt: int
    tokens: int
    persona: str | None = None


def save(
    folder: Path,
    config: Mapping[str, Any],
    vectors: Mapping[int, np.ndarray],
    levels: Mapping[int, np.ndarray],
) -> None:
    """Write a shift: vectors [row, hidden] and levels [row] by block.

    `config`: does, scale, positions, and rows, the persona of each row; the last is `ANYONE`.
    """
    import numpy as np
    from safetensors.numpy import save_file

    arrays = {f"blocks.{n}.vectors": each for n, each in vectors.items()}
    arrays |= {f"blocks.{n}.levels": each for n, each in levels.items()}
    with atomic(folder / WEIGHTS) as temporary:
        save_file({k: np.ascontiguousarray(v, np.float32) for k, v in arrays.items()}, temporary)
    write_json(folder / CONFIG, {"peft_type": TYPE, **config})


def split(folders: Sequence[str | Path]) -> tuple[list[Path], list[Path]]:
    """A chain's folders, split into adapters and shifts."""
    shifting, others = adapter_files.split(folders, TYPE)
    return others, shifting


class Shift:
    """A shift on a device, and the row of each token of the next pass."""

    def __init__(self, folder: str | Path, device: Any):
        import torch
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = Path(folder) / WEIGHTS
        self.config = read_json(Path(folder) / CONFIG)
        manifest = path.with_name("manifest.json")
        try:
            arrays = load_file(path, str(device))
            whole = not manifest.is_file() or sha256(path) == read_json(manifest)["adapter_sha256"]
        except (OSError, SafetensorError, KeyError) as error:
            raise UserError(f"{path}: damaged or missing ({error}); delete it and rerun") from error
        if not whole:
            raise UserError(
                f"{path}: not the directions that its manifest.json names; delete it and rerun"
            )
        self.device = device
        self.vectors: dict[int, torch.Tensor] = {}
        self.levels: dict[int, torch.Tensor] = {}
        for name, array in arrays.items():
            _, block, what = name.split(".")
            own: dict[int, torch.Tensor] = getattr(self, what)
            # Row 0 is for tokens that stay unchanged.
            own[int(block)] = torch.cat([torch.zeros_like(array[:1]), array])
        #: Rows of the tokens of the next pass, and of the passes after it.
        self.which = self.then = torch.zeros(0, dtype=torch.long)

    def row(self, persona: str | None) -> int:
        """The row of a persona's tokens."""
        rows = self.config["rows"]
        return 1 + rows.index(persona if persona in rows else ANYONE)

    def at(self, rows: Any, prompts: Any, positions: Any) -> np.ndarray:
        """Rows of tokens at these positions: their personas' rows where the shift acts, else 0."""
        import numpy as np

        acts: Any = True
        if self.config["positions"] == "prompt":
            acts = positions < prompts
        elif self.config["positions"] == "answer":
            # The last token of the prompt predicts the first answer token.
            acts = positions >= prompts - 1
        return np.where(acts, rows, 0)

    def aim(self, shape: Sequence[int], spans: Sequence[Span]) -> None:
        """See `aim`."""
        import numpy as np
        import torch

        which = np.zeros(shape[0] * shape[1], dtype=int)
        rows = np.array([self.row(span.persona) for span in spans])
        prompts = np.array([span.prompt for span in spans])
        for span, row in zip(spans, rows, strict=True):
            own = self.at(row, span.prompt, np.arange(span.tokens))
            which[span.start : span.start + span.tokens] = own
        then = self.at(rows, prompts, prompts)
        self.which = torch.from_numpy(which).view(*shape).to(self.device)
        self.then = torch.from_numpy(then).to(self.device)[:, None]

    def rows(self, states: torch.Tensor) -> torch.Tensor:
        """The row of each token of a pass, [sequence, token]; states [sequence, token, hidden].

        A pass with one token per sequence after the aimed one continues its answers.
        """
        for rows in (self.which, self.then):
            if rows.shape == states.shape[:-1]:
                return rows
        raise RuntimeError(f"a pass of {list(states.shape[:-1])} tokens that no shift was aimed at")

    def changed(self, block: int, states: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """A block's changed output [..., hidden], computed in 32 bits; `rows` [...]."""
        wide, vectors = states.float(), self.vectors[block][rows]
        if self.config["does"] == "add":
            return wide + self.config["scale"] * vectors
        now = (wide * vectors).sum(-1, keepdim=True)
        to = self.levels[block][rows][..., None]
        if self.config["does"] == "cap":
            to = now.minimum(to)
        return wide + self.config["scale"] * (to - now) * vectors


class Shifts:
    """The shifts of a model, in order; see `of`."""

    def __init__(self, shifts: list[Shift]):
        self.shifts, self.off = shifts, False


def of(model: Any) -> Shifts:
    """The shifts on a model, with or without an adapter."""
    found: Shifts | None = getattr(bare(model), "shifts", None)
    return found or Shifts([])


@contextmanager
def on(model: Any, folders: Sequence[str | Path]) -> Iterator[None]:
    """Context in which these shifts act on a model, one after the other."""
    hooks = put(model, folders)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        bare(model).shifts = None


def put(model: Any, folders: Sequence[str | Path]) -> list[Any]:
    """Register shifts on a model; returns the hooks."""
    own = Shifts([Shift(folder, model.device) for folder in folders])
    bare(model).shifts = own

    def change(shift: Shift, block: int) -> directions.Change:
        return lambda states: shift.changed(block, states, shift.rows(states)).to(states.dtype)

    return [
        hook
        for shift in own.shifts
        for hook in directions.hook(
            model, {block: change(shift, block) for block in shift.vectors}, lambda: own.off
        )
    ]


def aim(model: Any, shape: Sequence[int], spans: Sequence[Span]) -> None:
    """Say which tokens the next pass of a model has; `shape` [sequences, tokens].

    Tokens in no span are padding. Later passes with one token per sequence continue the answers, in the
    order of the spans.
    """
    for shift in of(model).shifts:
        shift.aim(shape, spans)


@contextmanager
def off(model: Any) -> Iterator[None]:
    """Context in which no shift acts on a model."""
    shifts = of(model)
    shifts.off = True
    try:
        yield
    finally:
        shifts.off = False
