"""A shift: directions are added to the outputs of blocks, or removed, during sampling and measuring.

It tests what a direction does. No weight changes. Directions come from the run's activations; mu
[persona, hidden] are means over questions of a chain's states at a block:

    common     v = mean over personas of mu_after - mu_before, one for all
    own        v_p = mu_after_p - mu_before_p, for the prompted persona p
    centroid   v_p = mu_before_p - mean over personas of mu_before

If `persona` is set, `own` and `centroid` are that persona's for all prompts. Text without a persona,
such as rows of a data set, gets the mean of the v_p over personas. The change of a state h at each
chosen position, with u = v / |v|:

    add        h + scale * v
    restore    h - scale * v: moves centroids back to where they were before
    remove     h + scale * (m - <h, u>) u, m being 0, or the mean of <h, u> over the states before
    cap        h + scale * (min(q, <h, u>) - <h, u>) u, q being a percentile of <h, u> over the states
               before (after Lu et al. 2026, arXiv 2601.10387, who keep a floor where this keeps a ceiling)

A finding needs both controls, which are random directions of the same lengths. `isotropic` directions
are uniform. `zero_sum` directions are sums of mu_before with random weights that add up to 0, so they
lie in the span of the personas' differences. They are drawn with the stage's seed in the chain,
independently for each block and each v_p.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from .. import settings
from ..chains import BASE, Chain
from ..errors import UserError
from ..plugins import Reads
from ..settings import DISTINCT, NotNegative
from . import Stage, kind

#: What `before` and `after` may name instead of a chain.
PREFIX, EARLIER = "prefix", "earlier"
SHAPES = {
    "add": "h + scale * v",
    "restore": "h - scale * v",
    "remove": "h + scale * (level - <h, u>) u",
    "cap": "h + scale * (min(level, <h, u>) - <h, u>) u",
}


class Settings(settings.Settings):
    """shift: add directions to the outputs of blocks, or remove them, during sampling and measuring."""

    does: Literal["add", "restore", "remove", "cap"] = Field(
        description="The change of a state. add: add scale times the direction. restore: subtract "
        "it. remove: remove the state's component along the direction. cap: remove what that "
        "component exceeds a level by.",
    )
    direction: Literal["common", "own", "centroid"] = Field(
        description="common: the movement of the mean of the persona centroids from before to "
        "after. own: the movement of the prompted persona's centroid. centroid: that centroid "
        "minus their mean, before.",
    )
    persona: str | None = Field(
        None, description="With own or centroid: use this persona's direction for all prompts."
    )
    before: str = Field(
        BASE,
        description="A chain; prefix: the chain that the shift continues; earlier: the chain that "
        "the prefix continues.",
    )
    after: str | None = Field(
        None, description="For common or own: the other chain, named in the same way."
    )
    layers: Annotated[list[NotNegative], Field(min_length=1), DISTINCT] = Field(
        description="Blocks whose outputs are changed, written as under measures: activations: "
        "layers. A change at one block affects all blocks after it.",
    )
    method: Literal["A", "B"] = Field(
        "A", description="Activations to use. A: last prompt token. B: mean over the answer."
    )
    positions: Literal["all", "prompt", "answer"] = Field(
        "all",
        description="Tokens whose states are changed. answer: from the last prompt token on, "
        "because it predicts the first answer token; prompt includes that token too.",
    )
    scale: Annotated[float, Field(allow_inf_nan=False)] = Field(
        1.0,
        description="Strength; 0 changes nothing. Directions that are added are not normalised.",
    )
    level: Literal["zero", "mean"] = Field(
        "zero",
        description="With remove: the component that states get instead; mean: the mean of the "
        "states before.",
    )
    percentile: Annotated[float, Field(ge=0, le=100)] = Field(
        75.0, description="With cap: percentile of the component of the states before."
    )
    control: Literal["none", "isotropic", "zero_sum"] = Field(
        "none",
        description="Use a random direction of the same length instead. isotropic: uniformly "
        "random. zero_sum: a sum of the centroids before with random weights that add up to 0.",
    )

    @model_validator(mode="after")
    def _agree(self) -> Settings:
        if (self.after is None) != (self.direction == "centroid"):
            missing = "is missing" if self.after is None else "is given"
            raise ValueError(
                f"after: {missing}; common and own are from before to after, centroid is of before alone"
            )
        if self.direction == "centroid" and self.does == "restore":
            raise ValueError("does: restore puts back what moved: use direction: common or own")
        if self.direction == "common" and self.persona is not None:
            raise ValueError(
                "persona: a common direction is of no persona; use own, or remove persona"
            )
        return self


def _read(given: Mapping[str, Any]) -> Settings:
    """The settings of a stage that belong to its kind."""
    return Settings(**{key: value for key, value in given.items() if key in Settings.model_fields})


@kind("shift")
class Shift(Stage):
    """Nothing is trained and no adapter is inserted; `models.shifts` implements it."""

    Settings = Settings
    trains = False
    adapts = False

    @property
    def reads(self) -> Reads:
        """The activations of the chains that it names, and the centroids of all personas that may be
        prompted."""
        own = _read(self.settings)
        named = [one for one in (own.before, own.after) if one not in (None, PREFIX, EARLIER)]
        each = own.direction != "common" and own.persona is None
        return Reads(
            tuple(map(str, named)),
            tuple(own.layers),
            own.method,
            (own.persona,) if own.persona else (),
            count=2 if own.control == "zero_sum" or own.direction == "centroid" else 1,
            evaluated=each,
        )

    def missing(self, others: Iterable[Stage]) -> str:
        """The controls that are missing: shifts with the same settings and random directions."""
        own = _read(self.settings)
        if own.control != "none":
            return ""
        shifts = [_read(one.settings) for one in others if one.kind == self.kind]
        there = {one.control for one in shifts if one.model_copy(update={"control": "none"}) == own}
        words = [f"control: {name}" for name in ("isotropic", "zero_sum") if name not in there]
        return f"{' and '.join(words)}, without which any shift may do the same" if words else ""

    def chains(self, prefix: Chain) -> dict[str, str]:
        """The chains whose activations it reads, under `before` and `after`.

        Raises UserError if both are the same chain.
        """
        words = {PREFIX: str(prefix), EARLIER: str(prefix.prefix)}
        own = _read(self.settings)
        named = {"before": own.before, "after": own.after}
        found = {key: words.get(one, one) for key, one in named.items() if one is not None}
        if found.get("after") == found["before"]:
            raise UserError(
                f"after: {found['after']} is before, too, in a chain that continues {prefix}; name another"
            )
        return found

    def inputs(self, prefix: Chain) -> dict[str, str]:
        """Their activations, and the record with the number of blocks."""
        files = {k: f"activations/{one}.safetensors" for k, one in self.chains(prefix).items()}
        return {**files, "headline": "tables/headline.csv"}

    def make(self, chain: Chain, files: Mapping[str, Path], folder: Path) -> dict[str, Any]:
        """Write the directions; the manifest holds what they are and their lengths."""
        import numpy as np

        from .. import activation_files
        from ..models import directions, shifts
        from ..tables_io import read_csv

        own, models = _read(self.settings), read_csv(files["headline"]).set_index("model")
        blocks = int(models.loc[chain.model, "blocks"])
        read = {name: activation_files.load(files[name]) for name in self.chains(chain.prefix)}
        personas = read["before"].personas
        states = {
            name: directions.states(each, own.method, own.layers, blocks)
            for name, each in read.items()
        }
        rows = [shifts.ANYONE]
        if self.reads.evaluated:
            rows = [*personas, shifts.ANYONE]
        vectors, levels, numbers = {}, {}, {}
        for block, before in states["before"].items():
            centroids = before.mean(1)
            moved = centroids - centroids.mean(0)
            if own.after is not None:
                moved = directions.displacements(before, states["after"][block])
            v = (
                moved.mean(0, keepdims=True)
                if own.persona is None
                else moved[[personas.index(own.persona)]]
            )
            if self.reads.evaluated:
                v = np.concatenate([moved, v])
            if own.control != "none":
                within = centroids if own.control == "zero_sum" else None
                v = directions.drawn(v, chain.last.seed, block, within)
            lengths = np.linalg.norm(v, axis=1, keepdims=True)
            if own.does in ("remove", "cap"):
                v = v / np.where(lengths > 0, lengths, 1)
            along = before.reshape(-1, before.shape[-1]) @ v.T  # [state, row]
            level = np.zeros(len(rows))
            if own.does == "cap":
                level = np.percentile(along, own.percentile, axis=0)
            elif own.does == "remove" and own.level == "mean":
                level = along.mean(0)
            vectors[block], levels[block] = -v if own.does == "restore" else v, level
            usual = float(np.linalg.norm(before, axis=-1).mean())
            numbers[str(block)] = {
                row or "anyone": {
                    "length": float(length),
                    "relative": float(own.scale * length / usual),
                    "level": float(at),
                }
                for row, length, at in zip(rows, lengths[:, 0], level, strict=True)
            }
        shifts.save(
            folder,
            {
                "does": "add" if own.does == "restore" else own.does,
                "scale": own.scale,
                "positions": own.positions,
                "rows": rows,
            },
            vectors,
            levels,
        )
        return {
            "seed": chain.last.seed,
            "shift": {
                **own.model_dump(exclude_none=True),
                **self.chains(chain.prefix),
                "formula": SHAPES[own.does],
                "blocks": numbers,
                "personas": personas,
                "questions": read["before"].questions,
            },
        }
