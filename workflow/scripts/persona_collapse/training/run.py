"""The input of a training: one stage of a chain, its settings and its tokenised rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

from .. import adapter_files, chains
from ..data import prompt_audit
from ..errors import BadRow, UserError
from ..files import read_json, read_jsonl, sha256, sha256_text
from ..jobs import TrainingJob
from ..models import chat_template
from . import losses

#: Columns of the first row's audit line that the manifest keeps.
PROMPT = ("system_seen", "default_injected", "system_folded", "template_date", "end_token_trained")


@dataclass(frozen=True)
class Rows:
    """Encoded rows, the number of rows dropped because truncation left no loss, and the first prompt."""

    kept: list[chat_template.EncodedRow]
    dropped: int
    prompt: dict[str, Any]

    @property
    def tokens(self) -> float:
        """Mean tokens per row."""
        return sum(len(row.input_ids) for row in self.kept) / len(self.kept)

    @property
    def features(self) -> list[dict[str, list[int]]]:
        """The rows in the format of `batches`."""
        return [{"input_ids": row.input_ids, "labels": row.labels} for row in self.kept]


@dataclass(frozen=True)
class TrainingRun:
    """One stage of a chain, with everything that its result depends on.

    settings: hyper-parameters, including those of the adapter, `dtype`, and the stage's `kind`. loss:
    name of one of `losses`, computed on the tokens that `loss_on` names (see `chat_template`). defence:
    settings of defences by name. inputs: files that the defences read, by path in the run's folder.
    prefix: the adapters of earlier stages. stop: the step to stop at, if not the last. system: system
    prompt put on every row.
    """

    chain: str
    name: str
    seed: int
    stop: int | None
    settings: Mapping[str, Any]
    base: Path
    prefix: Sequence[Path]
    data: Path
    loss: str = losses.DEFAULT
    loss_on: str = "answer"
    defence: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Path] = field(default_factory=dict)
    system: str | None = None
    marker: str = ""

    def rows(self, tokenizer: Any) -> Rows:
        """The stage's rows, encoded. Raises UserError if they are fewer than one batch."""
        found = self._encode(tokenizer, self.data, self.loss_on, self.system)
        size = self.settings["batch_size"]
        if len(found.kept) < size:
            raise UserError(
                f"{self.data}: {len(found.kept)} rows with supervised tokens within "
                f"{self.settings['max_length']} tokens, fewer than one batch of {size}; raise max_length "
                "or add rows"
            )
        return found

    def other_rows(self, tokenizer: Any, path: Path) -> Rows:
        """Rows of another data set, unchanged, with loss on the answers."""
        found = self._encode(tokenizer, path, "answer", None)
        if not found.kept:
            raise UserError(
                f"{path}: no row has an answer within {self.settings['max_length']} tokens"
            )
        return found

    def _encode(self, tokenizer: Any, path: Path, loss_on: str, system: str | None) -> Rows:
        manifest = read_json(path.with_suffix(".manifest.json"))
        encoded, given = [], None
        for number, row in enumerate(read_jsonl(path), start=1):
            turns = [dict(message) for message in row["messages"]]
            if number == 1 and turns[0]["role"] == "system":
                given = turns[0]["content"]
            try:
                encoded.append(
                    chat_template.encode_row(
                        tokenizer,
                        turns,
                        supervise=manifest.get("supervise", "last"),
                        loss=loss_on,
                        max_length=self.settings["max_length"],
                        system=system,
                        suppress_default_system=manifest.get("system") == "none" and system is None,
                        marker=self.marker,
                    )
                )
            except BadRow as error:
                raise BadRow(f"{path}: row {number}: {error}") from error
        line = prompt_audit.record(
            tokenizer, self.settings["kind"], self.name, system or given, encoded[0]
        )
        kept = [row for row in encoded if row.supervised]
        return Rows(kept, len(encoded) - len(kept), {key: line[key] for key in PROMPT})

    def steps(self, rows: int) -> int:
        """Optimiser steps of the whole schedule: given, or from rows, batch size and epochs; at least one."""
        if self.settings.get("steps"):
            return int(self.settings["steps"])
        # Decimal arithmetic: 0.29 * 100 is below 29 in binary.
        epochs = Fraction(str(self.settings["epochs"]))
        return max(1, int(epochs * math.ceil(rows / self.settings["batch_size"])))

    def stops_at(self, rows: int) -> int:
        """The last step to run. Raises UserError if the schedule is shorter."""
        steps = self.steps(rows)
        if self.stop is not None and self.stop > steps:
            raise UserError(
                f"chain {self.chain!r} stops at step {self.stop}, but the stage has {steps} steps "
                f"({rows} rows, batch {self.settings['batch_size']}); stop earlier"
            )
        return steps if self.stop is None else self.stop

    @property
    def initial_seed(self) -> int:
        """Seed of the adapter's initial values: the stage's for the first stage of a chain, and another
        one for each later stage.

        Equal seeds would give the LoRA A of all stages of a chain the same initial values. A moves
        little, so a stage would read the same directions of its inputs as the one before.
        """
        if not self.prefix:
            return self.seed
        return int(sha256_text(f"{self.seed}/{len(self.prefix)}")[:8], 16)

    @cached_property
    def data_sha256(self) -> str:
        """Hash of the rows' file."""
        return sha256(self.data)

    def depends_on(self) -> dict[str, Any]:
        """What determines the result, apart from code, versions and device, as JSON values."""
        return {
            "stage": [self.chain, self.name, self.seed, self.stop, self.system, self.marker],
            "settings": dict(self.settings),
            "loss": [self.loss, self.loss_on],
            "defence": dict(self.defence),
            "inputs": {path: sha256(file) for path, file in self.inputs.items()},
            "base": sha256(self.base),
            "data": self.data_sha256,
            "prefix": adapter_files.content_hash(self.prefix),
        }


def run_of(job: TrainingJob, base: Path, prefix: Sequence[Path]) -> TrainingRun:
    """The training of a job from the plan; `prefix`: folders of its earlier adapters."""
    last = chains.parse(job.chain).last
    settings = dict(job.settings)
    return TrainingRun(
        chain=job.chain,
        name=last.name,
        seed=last.seed,
        stop=last.stop,
        loss=settings.pop("loss"),
        loss_on=settings.pop("loss_on"),
        defence=settings.pop("defence"),
        settings=settings,
        base=base,
        prefix=prefix,
        data=Path(job.rows),
        inputs={path: Path(file) for path, file in job.inputs.items()},
        system=job.system,
        marker=job.marker,
    )
