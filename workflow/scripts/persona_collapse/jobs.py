"""Jobs that load a model, as plain values: the key of a result, and the input of a script.

A job holds everything that its result depends on, except the contents of files and the code, and
nothing else. Batch sizes and the like are in `runtime:` of the config. The plan makes jobs
(`study.plan`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from . import chains

Prompts = dict[str, str]


@dataclass(frozen=True)
class Job:
    """One result of one chain.

    kind: kind of the job. name: name of the result within its kind, usually the chain. adapters:
    folders of the chain's adapters in training order. suffix: suffix of the result file; empty for a
    folder.
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
        """Files that the job reads, in addition to the adapters."""
        return []

    def values(self) -> dict[str, Any]:
        """The fields as plain values, for Snakemake's params."""
        return asdict(self)


@dataclass(frozen=True)
class TrainingJob(Job):
    """Train a chain's last stage; `adapters` are those of the stages before it.

    rows: the stage's data. inputs: files that its defences read, by path in the run's folder. system:
    the system prompt put on every row, if any. loss_code: hash of the code of its loss and defences.
    checkpoints: folder from which a killed training resumes.
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
        """The rows, files that the defences read, and manifests of chat rows."""
        read = [self.rows, *self.inputs.values()]
        chats = [path.removesuffix(".jsonl") for path in read if path.endswith(".jsonl")]
        return read + [f"{path}.manifest.json" for path in chats]


@dataclass(frozen=True)
class SamplingJob(Job):
    """Sample answers: `samples` per persona and question; personas by name with their prompts.

    questions: an entry of the config's `questions:`. marker: text whose log-probability after each
    answer is recorded; empty for none. engine: backend, dtype and other settings that decide an answer.
    """

    personas: Prompts
    questions: dict[str, Any]
    sampling: dict[str, Any]
    engine: dict[str, Any]
    marker: str


@dataclass(frozen=True)
class MeasureJob(Job):
    """Measure a chain: `kind` is the measure.

    given: arguments that the measure's function asked for and the plan knows. inputs: files that it
    asked for, by name. See `persona_collapse.measures`.
    """

    given: dict[str, Any]
    inputs: dict[str, str]

    @property
    def files(self) -> list[str]:
        """The files that the measure reads."""
        return list(self.inputs.values())
