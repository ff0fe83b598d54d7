"""Weight updates: the size of each stage's LoRA update, and the overlap of two updates.

An update is W' - W = s B A with A [rank, inputs] and B [outputs, rank]; the full product is never
formed. For a stage that trained all weights it is the change itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .. import adapter_files, chains

COLUMNS = [
    "chain", "other", "pair", "update_norm", "cosine", "overlap_a", "overlap_b", "baseline_a", "baseline_b",
    "modules", "tokens", "loss", "steps", "answer_length",
]  # fmt: skip
#: Singular values below this share of the largest count as rounding errors.
RANK = 1e-6


@dataclass(frozen=True)
class Update:
    """A stage's update by module: (s B, A), float64; or, if all weights were trained, their changes."""

    modules: Mapping[str, tuple[np.ndarray, np.ndarray]]
    changes: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def names(self) -> set[str]:
        """Names of its modules or parameters."""
        return {*self.modules, *self.changes}

    @cached_property
    def norm(self) -> float:
        """Frobenius norm of the update over all modules."""
        return float(np.sqrt(max(inner(self, self, self.grams), 0.0)))

    @cached_property
    def grams(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """By module, A A' and B' B: [rank, rank] each."""
        return products(self, self)

    @cached_property
    def whitening(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """By module, matrices that make orthonormal rows of A, and of B': [directions, rank] each."""
        return {name: (_whitening(a), _whitening(b)) for name, (a, b) in self.grams.items()}


def _whitening(gram: np.ndarray) -> np.ndarray:
    """W so that W G W' is the identity, G = V L V': the rows of L^(-1/2) V' of directions that count."""
    values, vectors = np.linalg.eigh(gram)
    kept = values > RANK**2 * max(values[-1], np.finfo(float).tiny)
    out: np.ndarray = (vectors[:, kept] / np.sqrt(values[kept])).T
    return out


def products(one: Update, two: Update) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A1 A2' and B1' B2, [rank, rank] each, of the modules of both."""
    found = {}
    for name in sorted(one.modules.keys() & two.modules.keys()):
        (b1, a1), (b2, a2) = one.modules[name], two.modules[name]
        found[name] = a1 @ a2.T, b1.T @ b2
    return found


def inner(one: Update, two: Update, shared: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> float:
    """Sum over the modules of both of <B1 A1, B2 A2> = trace((A1 A2') (B2' B1)); the scales are in B.

    `shared`: their `products`. If one update D is of all weights: <D, B A> = trace((B' D) A').
    """
    total = 0.0
    for name in sorted(one.changes.keys() & two.changes.keys()):
        total += float(np.vdot(one.changes[name].astype(float), two.changes[name].astype(float)))
    for whole, parts in ((one, two), (two, one)):
        for name in sorted(whole.changes.keys() & parts.modules.keys()):
            b, a = parts.modules[name]
            total += float(np.sum((b.T @ whole.changes[name].astype(float)) * a))
    for of_a, of_b in shared.values():
        total += float(np.sum(of_a * of_b))
    return total


def overlap(one: Update, two: Update) -> dict[str, float]:
    """How much two updates share directions; means over the modules that both have.

    overlap_a, overlap_b: ||Q1 Q2'||^2 / min(r1, r2), where Q are orthonormal rows that span the row space of
    A and the column space of B: 0 for orthogonal spaces, 1 if one contains the other. Q1 Q2' =
    W1 (A1 A2') W2', so nothing of a module's width is decomposed. baseline_a,
    baseline_b: the expectation for random spaces, max(r1, r2) / d. cosine: between the two full
    updates; its expectation for random updates is 0. NaN if there is no common module or an update is
    0. Overlaps are also NaN for a stage that trained all weights, whose spaces contain every direction.
    """
    shared = products(one, two)
    found: dict[str, list[float]] = {key: [] for key in COLUMNS[5:9]}
    for name, product in shared.items():
        b, a = one.modules[name]
        for side, width, between, p, q in zip(
            "ab",
            (a.shape[1], len(b)),
            product,
            one.whitening[name],
            two.whitening[name],
            strict=True,
        ):
            ranks = len(p), len(q)
            if min(ranks):
                own = float(np.sum((p @ between @ q.T) ** 2)) / min(ranks)
                found[f"overlap_{side}"].append(own)
                found[f"baseline_{side}"].append(max(ranks) / width)
    norms = one.norm * two.norm
    cosine = inner(one, two, shared) / norms if norms else np.nan
    means = {key: float(np.mean(values)) if values else np.nan for key, values in found.items()}
    return {"cosine": cosine, **means, "modules": len(one.names & two.names)}


def read(folder: str | Path) -> Update:
    """A stage's update from the files of its adapter; see `adapter_files.arrays`."""
    scale, arrays = adapter_files.arrays(folder)
    modules = {}
    for name, a in arrays.items():
        path, _, rest = name.rpartition(".lora_A.")
        if path:
            b = arrays[f"{path}.lora_B.{rest}"]
            modules[path.removeprefix("base_model.model.")] = (
                scale * b.astype(float),
                a.astype(float),
            )
    changes = {n.removesuffix(".weight"): d for n, d in arrays.items() if ".lora_" not in n}
    return Update(modules, changes)


def pairs(names: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """The comparisons, as (chain, other, kind).

    stages: a chain and each chain that it continues. seeds: two chains of one base model with the same
    stages and stops, and different seeds.
    """
    alike: dict[tuple[Any, ...], list[str]] = {}
    for name in names:
        chain = chains.parse(name)
        for before in chain.prefixes[:-1]:
            yield name, str(before), "stages"
        stages = tuple((s.name, s.stop, s.left_out) for s in chain.stages)
        alike.setdefault((chain.model, stages), []).append(name)
    for group in alike.values():
        for one, two in combinations(group, 2):
            yield one, two, "seeds"


def last_task_loss(manifest: Mapping[str, Any]) -> float:
    """Mean loss over the last steps of a stage, without a defence's penalty; NaN if nothing was trained.

    With the penalty, a defended stage would seem to have learnt less than it has.
    """
    return manifest["loss"][-1]["task_loss"] if manifest.get("loss") else np.nan


def updates_table(
    manifests: Mapping[str, Mapping[str, Any]], load: Callable[[str], Update]
) -> pd.DataFrame:
    """One row per trained chain (`other` is empty) for its last stage, and one row per pair from
    `pairs`.

    `manifests`: by chain. tokens: tokens with loss in all training steps of the stage; answer_length:
    tokens with loss per row; loss: see `last_task_loss`. A grafted stage was not trained, so these
    are missing.
    """
    rows: list[dict[str, Any]] = []
    for name, manifest in manifests.items():
        seen = manifest["rows_seen"]
        own = {
            "tokens": manifest["supervised_tokens"] if seen else np.nan,
            "answer_length": manifest["supervised_tokens"] / seen if seen else np.nan,
            "loss": last_task_loss(manifest),
            "steps": manifest["steps"] if seen else np.nan,
        }
        update = load(name)
        modules = len(update.names)
        key = {"chain": name, "other": "", "pair": "", "update_norm": update.norm}
        rows.append(key | {"modules": modules} | own)
    for one, two, kind in pairs(list(manifests)):
        rows.append({"chain": one, "other": two, "pair": kind} | overlap(load(one), load(two)))
    return pd.DataFrame(rows, columns=COLUMNS)
