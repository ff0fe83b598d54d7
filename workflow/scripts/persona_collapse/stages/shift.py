"""A shift: directions are added to blocks' outputs, or taken out, while the chain answers and is measured.

A test of what a direction does, not of a training: no weight changes. Directions are of the run's
activations, mu [persona, hidden] being means over questions of a chain's states at a block:

    common     v = mean over personas of mu_after - mu_before, one for all
    own        v_p = mu_after_p - mu_before_p, for the persona p that is asked
    centroid   v_p = mu_before_p - mean over personas of mu_before

`own` and `centroid` are of one persona for all where `persona` names it. Text of no persona, such as
rows of a data set, gets the mean of the v_p over personas. What is done to a state h, at each chosen
position, with u = v / |v|:

    add        h + scale * v
    restore    h - scale * v: centroids are put back to where they were before
    remove     h + scale * (m - <h, u>) u, m being 0, or the mean of <h, u> over the states before
    cap        h + scale * (min(q, <h, u>) - <h, u>) u, q being a percentile of <h, u> over the states
               before (after Lu et al. 2026, arXiv 2601.10387, who keep a floor where this keeps a ceiling)

A finding needs both controls: random directions of the same lengths, `isotropic`, or `zero_sum`, which
are sums of mu_before with random weights that add up to 0, and so in the span of the personas'
differences. They are drawn by the seed in the chain, for each block and each v_p by itself.
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

#: What `before` and `after` may name beside a chain.
PREFIX, EARLIER = "prefix", "earlier"
SHAPES = {
    "add": "h + scale * v",
    "restore": "h - scale * v",
    "remove": "h + scale * (level - <h, u>) u",
    "cap": "h + scale * (min(level, <h, u>) - <h, u>) u",
}


class Settings(settings.Settings):
    """shift: add directions to blocks' outputs, or take them out, while the chain answers and is measured."""

    does: Literal["add", "restore", "remove", "cap"] = Field(
        description="What is done to a state. add: the direction, times the scale. restore: the same, "
        "subtracted. remove: what the state has along it. cap: what it has of that beyond a level.",
    )
    direction: Literal["common", "own", "centroid"] = Field(
        description="common: how far the mean of persona centroids moved from before to after. own: how far "
        "the centroid of the persona that is asked did. centroid: how far that lies from their mean, before.",
    )
    persona: str | None = Field(
        None, description="With own or centroid: always that of this persona, whichever is asked."
    )
    before: str = Field(
        BASE,
        description="A chain; prefix: the one that the shift continues; earlier: the one that continued.",
    )
    after: str | None = Field(None, description="Of common or own: another one.")
    layers: Annotated[list[NotNegative], Field(min_length=1), DISTINCT] = Field(
        description="Blocks whose outputs are changed, written as under measures: activations: layers. "
        "What is done at one block reaches those after it.",
    )
    method: Literal["A", "B"] = Field(
        "A", description="Of the activations. A: last prompt token. B: mean over the answer."
    )
    positions: Literal["all", "prompt", "answer"] = Field(
        "all",
        description="Which tokens' states. answer: from the last token of the prompt on, which is where the "
        "answer's first one comes from; it is in prompt, too.",
    )
    scale: Annotated[float, Field(allow_inf_nan=False)] = Field(
        1.0, description="Strength; 0 is none. Directions are not normalised where they are added."
    )
    level: Literal["zero", "mean"] = Field(
        "zero",
        description="With remove: what states have along the direction instead; mean: of the states before.",
    )
    percentile: Annotated[float, Field(ge=0, le=100)] = Field(
        75.0, description="With cap: of what the states before have along the direction."
    )
    control: Literal["none", "isotropic", "zero_sum"] = Field(
        "none",
        description="A random direction of the same length instead. isotropic: any. zero_sum: a sum of the "
        "centroids before with random weights that add up to 0.",
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
    """The settings of a stage that are its kind's."""
    return Settings(**{key: value for key, value in given.items() if key in Settings.model_fields})


@kind("shift")
class Shift(Stage):
    """Nothing is trained, and no adapter is put in; see `models.shifts` for how it acts."""

    Settings = Settings
    trains = False
    adapts = False

    @property
    def reads(self) -> Reads:
        """The chains that it names, and the centroids of all that may be asked."""
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
        """The controls of this shift that no other is: of its settings, with random directions."""
        own = _read(self.settings)
        if own.control != "none":
            return ""
        shifts = [_read(one.settings) for one in others if one.kind == self.kind]
        there = {one.control for one in shifts if one.model_copy(update={"control": "none"}) == own}
        words = [f"control: {name}" for name in ("isotropic", "zero_sum") if name not in there]
        return f"{' and '.join(words)}, without which any shift may do the same" if words else ""

    def chains(self, prefix: Chain) -> dict[str, str]:
        """The chains whose activations it reads, by names of its own.

        Raises UserError if both are one.
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
        """Their activations, and how many blocks there are."""
        files = {k: f"activations/{one}.safetensors" for k, one in self.chains(prefix).items()}
        return {**files, "headline": "tables/headline.csv"}

    def make(self, chain: Chain, files: Mapping[str, Path], folder: Path) -> dict[str, Any]:
        """Write the directions; the manifest says what they are and how long."""
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
