"""Keep personas as far apart as they were before the stage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from ...errors import UserError
from ...files import read_json, read_jsonl
from ...settings import DISTINCT, Count, Names, NotNegative, Settings
from . import Asks, Defence, Reads, defence

if TYPE_CHECKING:
    from torch import Tensor

    from ..steps import Step


class Options(Settings):
    """persona_gram: a weight times how far the cosines between personas' centroids moved."""

    weight: NotNegative = Field(
        default=100.0,
        description="Weight of the mean squared difference of cosines against the mean loss; 0: no defence. "
        "Cosines that move by .07 cost 0.49 at 100.",
    )
    layers: Annotated[list[NotNegative], Field(min_length=1), DISTINCT] = Field(
        default=[0.5, 0.75],
        description="Blocks whose outputs are compared: indices, or depths from 0.0 to below 1.0.",
    )
    personas: Annotated[Names, Field(min_length=2)] | None = Field(
        default=None,
        description="Personas whose centroids are compared, from those of the geometry. Default: all. "
        "Personas that are left out show whether others are kept apart too.",
    )
    questions: Count = Field(
        default=2,
        description="Questions per step, of questions: defence. Each is asked of every persona, and "
        "centroids are means over them.",
    )


@defence("persona_gram", settings=Options)
class PersonaGram(Defence):
    """CE + weight * mean over blocks and pairs of personas of (cos - cos')^2, now and before the stage.

    cos is between two personas' centroids [hidden]: means over the step's questions of a block's output at
    the last prompt token, as method A of the activations. Each step has a second batch of prompts, every
    persona under the same questions, which are neither evaluation nor extraction questions. The geometry is
    measured on these personas, under other questions; the record names both.
    """

    settings: Options
    #: Indices of the blocks.
    _blocks: tuple[int, ...] = ()

    @property
    def asks(self) -> Asks:
        """The prompts, and the blocks' outputs once `install` has found the blocks."""
        return Asks(rows="prompts", hidden=self._blocks)

    @property
    def idle(self) -> bool:
        """Weight 0 is no defence."""
        return self.settings.weight == 0

    @property
    def reads(self) -> Reads:
        """The personas, two or more."""
        return Reads(personas=tuple(self.settings.personas or ()), count=2)

    def inputs(self) -> dict[str, str]:
        """The prompts of the geometry's personas."""
        return {"prompts": "prompts/personas.jsonl"}

    def install(self, model: Any) -> None:
        """Find blocks and prompts."""
        from ...models.loading import blocks_of, resolve_layers

        where, own = "defence: persona_gram", self.settings
        count = len(blocks_of(model))
        self._blocks = tuple(resolve_layers(own.layers, count, f"{where}: layers"))
        rows = read_jsonl(self.files["prompts"])
        self._personas = own.personas or list(dict.fromkeys(row["persona"] for row in rows))
        self._prompts: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            if row["persona"] in self._personas:
                self._prompts.setdefault(row["question"], []).append(row)
        if own.questions > len(self._prompts):
            raise UserError(
                f"{where}: questions: {own.questions} per step, and questions: defence (or train) has "
                f"{len(self._prompts)}; ask for fewer"
            )

    def groups(self) -> list[list[dict[str, list[int]]]]:
        """Every persona under so many questions or one more, each question once."""
        every = [[self._row(row) for row in rows] for rows in self._prompts.values()]
        count = len(every) // self.settings.questions
        return [[row for rows in every[i::count] for row in rows] for i in range(count)]

    def _row(self, row: dict[str, Any]) -> dict[str, list[int]]:
        """A prompt whose last token has the persona's number to predict, in place of a token that follows."""
        from ...models import chat_template

        system, user = (message["content"] for message in row["messages"])
        ids = chat_template.prompt_ids(self.tokenizer, system, user)
        number = self._personas.index(row["persona"])
        return {"input_ids": [*ids, 0], "labels": [chat_template.IGNORED] * len(ids) + [number]}

    def penalty(self, step: Step) -> Tensor:
        """The weighted difference, one number."""
        import torch

        count = len(self._personas)
        numbers = torch.arange(count, device=step.labels.device)
        shown = (step.labels == numbers[:, None]).float()
        means = shown / shown.sum(1, keepdim=True)  # [personas, n]
        moved = []
        for block in self._blocks:
            now, before = step.hidden(block), step.hidden(block, before=True)
            moved.append((_cosines(means @ now) - _cosines(means @ before)).square().sum())
        return self.settings.weight * torch.stack(moved).mean() / (count * (count - 1))

    def record(self, model: Any) -> dict[str, Any]:
        """Blocks, personas, and the questions, with the file that they are from."""
        made_from = read_json(self.files["prompts"].with_suffix(".manifest.json"))
        return {
            "blocks": list(self._blocks),
            "personas": list(self._personas),
            "questions": list(self._prompts),
            "questions_file": made_from["questions"],
            "questions_sha256": made_from["questions_sha256"],
        }


def _cosines(centroids: Tensor) -> Tensor:
    """Between rows, [personas, personas]."""
    from torch.nn.functional import normalize

    unit = normalize(centroids, dim=-1)
    return unit @ unit.T
