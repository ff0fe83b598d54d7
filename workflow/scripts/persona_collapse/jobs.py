"""What a job with a model does, as plain values: its result's key, and what the scripts work from.

A job holds everything that its result depends on but the contents of files and the code, and nothing
else: batch sizes and the like are `runtime:` of the config. The plan makes jobs (`study.plan`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from . import chains

Prompts = dict[str, str]


@dataclass(frozen=True)
class Job:
    """One result of one chain.

    kind: what is done. name: of the result among those of its kind, mostly the chain. adapters: folders
    of the chain's adapters in training order. suffix: of the result's file; empty for a folder.
    """

    kind: str
    name: str
    chain: str
    adapters: list[str]
    suffix: str

    @property
    def model(self) -> str:
        """Name of the base model that the chain starts from."""
        return chains.model_of(self.chain)

    @property
    def files(self) -> list[str]:
        """Files beside the adapters that the job reads."""
        return []

    def values(self) -> dict[str, Any]:
        """The fields as plain values, as Snakemake passes params on."""
        return asdict(self)


@dataclass(frozen=True)
class TrainingJob(Job):
    """Train a chain's last stage; `adapters` are those of the stages before it.

    rows: the stage's data. inputs: files that its defences read, by path in the run's folder. system:
    the prompt put on every row, if any. loss_code: hash of the code of its loss and defences.
    checkpoints: where a killed training is taken up again.
    """

    rows: str
    inputs: dict[str, str]
    settings: dict[str, Any]
    loss_code: str
    system: str | None
    marker: str
    checkpoints: str

    @property
    def files(self) -> list[str]:
        """The rows, what the defences read, and the manifests of chat rows."""
        read = [self.rows, *self.inputs.values()]
        chats = [path.removesuffix(".jsonl") for path in read if path.endswith(".jsonl")]
        return read + [f"{path}.manifest.json" for path in chats]


@dataclass(frozen=True)
class SamplingJob(Job):
    """Sample answers: `samples` per persona and question; personas by name with their prompts.

    questions: an entry of the config's `questions:`. marker: its log-probability after each answer is
    kept; none for an empty one. engine: backend, dtype and what else decides an answer.
    """

    personas: Prompts
    questions: dict[str, Any]
    sampling: dict[str, Any]
    engine: dict[str, Any]
    marker: str


@dataclass(frozen=True)
class MeasureJob(Job):
    """Measure a chain: `kind` is the measure.

    given: what the measure's function asked for by name and the plan knows. inputs: files that it asked
    for, by name. See `persona_collapse.measures`.
    """

    given: dict[str, Any]
    inputs: dict[str, str]

    @property
    def files(self) -> list[str]:
        """The files that the measure reads."""
        return list(self.inputs.values())
