"""Updates that do nothing to what persona prompts bring into the adapted modules."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from ...errors import UserError
from ...files import read_jsonl, sha256, sha256_text
from ...settings import Count, Seed, Settings
from . import Defence, defence

if TYPE_CHECKING:
    from torch import Tensor


class Options(Settings):
    """project: keep the adapter out of the directions that persona prompts use."""

    data: str = Field(
        description="Source of the persona prompts (system message and question): an entry of data:, or a "
        "coupling of the base model's answers, whose rows have the training questions and personas' prompts."
    )
    rank: Annotated[int, Field(ge=0)] = Field(
        default=32,
        description="Directions of each module's input that the adapter is kept out of; 0: no defence.",
    )
    prompts: Count = Field(
        default=64,
        description="Prompts that give the directions, and as many with other questions to check them on.",
    )
    seed: Seed = Field(default=42, description="Seed of the choice of questions and prompts.")


@defence("project", settings=Options)
class Project(Defence):
    """Delta W X is about 0 for inputs X of persona prompts, after LoRA-Null (arXiv 2503.02659).

    For each adapted module, V [in, rank] are the first right singular vectors of its inputs X [tokens, in]
    at all positions of the prompts, in the model before the stage. A <- A - (A V) V^T at the start, for its
    gradient, and after each step, as Adam's steps leave the space of its gradients. So Delta W V = 0,
    whatever B is. LoRA-Null freezes A instead, and takes the directions that are used least.

    PEFT's own means do not chain: CorDA (`corda_method: kpm`) and OSF change the base weights when they
    begin, which earlier stages were trained on, and OSF's trainable rank is almost that of the weights.
    """

    settings: Options

    @property
    def idle(self) -> bool:
        """Without directions it is no defence."""
        return self.settings.rank == 0

    def inputs(self) -> dict[str, str]:
        """The rows whose prompts are taken."""
        return {"rows": f"data/{self.settings.data}.jsonl"}

    def install(self, model: Any) -> None:
        """Find each module's directions, and take them out of A."""
        from ..steps import NEW, parameters

        self._prompts = {
            name: [self._ids(*prompt) for prompt in chosen]
            for name, chosen in self._chosen().items()
        }
        self._axes = self._directions(model)
        self.after_step(parameters(model, NEW))

    def project(self, parameters: Mapping[str, Tensor]) -> None:
        """Take the directions out of A's gradients."""
        for name, axes in self._axes.items():
            gradient = parameters[name].grad
            if gradient is not None:
                gradient -= (gradient @ axes) @ axes.T

    def after_step(self, parameters: Mapping[str, Tensor]) -> None:
        """Take them out of A."""
        import torch

        with torch.no_grad():
            for name, axes in self._axes.items():
                parameters[name] -= (parameters[name] @ axes) @ axes.T

    def record(self, model: Any) -> dict[str, Any]:
        """|Delta W X| / (|Delta W| |X|), Frobenius norms, on these prompts and on those with other questions.

        Of each module, and of them the mean and the largest. Their personas may be measured later: which
        these are, hashes of their system prompts say.
        """
        import math

        found: dict[str, Any] = {}
        for name, prompts in self._prompts.items():
            ratios = list(_ratios(model, prompts).values())
            found[name] = {
                "prompts": len(prompts),
                "mean": math.fsum(ratios) / len(ratios),
                "largest": max(ratios),
            }
        rows = self.files["rows"]
        systems = sorted({sha256_text(system) for system, _ in _pairs(rows)})
        return {"data": rows.stem, "sha256": sha256(rows), "system_prompts": systems, **found}

    def _chosen(self) -> dict[str, list[tuple[str, str]]]:
        """System prompts with questions, in two parts without a common question."""
        path, drawn = self.files["rows"], random.Random(self.settings.seed)
        pairs = _pairs(path)
        questions = list(dict.fromkeys(question for _, question in pairs))
        if len(questions) < 2:
            raise UserError(
                f"{path}: expected persona prompts (a system message and a question) with two questions or "
                f"more, got {len(questions)}; name other data under defence: project: data"
            )
        held_out = set(drawn.sample(questions, len(questions) // 2))
        parts: dict[str, list[tuple[str, str]]] = {"calibration": [], "held_out": []}
        for pair in pairs:
            parts["held_out" if pair[1] in held_out else "calibration"].append(pair)
        most = self.settings.prompts
        return {name: drawn.sample(part, min(most, len(part))) for name, part in parts.items()}

    def _ids(self, system: str, question: str) -> list[int]:
        """A prompt's tokens, the generation prompt included."""
        from ...models import chat_template

        return chat_template.prompt_ids(self.tokenizer, system, question)

    def _directions(self, model: Any) -> dict[str, Tensor]:
        """V by the name of A, [in, rank]; modules with one and the same input share it."""
        import torch

        rank = self.settings.rank
        kept: dict[str, list[Tensor]] = {}
        owner: dict[str, str] = {}
        latest: tuple[Any, str] = (None, "")

        def keep(name: str, states: Tensor) -> None:
            nonlocal latest
            if states is not latest[0]:
                latest = states, name
            owner[name] = latest[1]
            if latest[1] == name:
                kept.setdefault(name, []).append(states.detach().flatten(0, -2))

        _run(model, self._prompts["calibration"], keep)
        found: dict[str, Tensor] = {}
        # Dropout and the order of rows stay what they are without the defence.
        with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
            torch.manual_seed(self.settings.seed)
            for name, parts in kept.items():
                states = torch.cat(parts).float()
                if rank >= states.shape[1]:
                    raise UserError(
                        f"defence: project: rank: {rank} directions leave nothing of the {states.shape[1]} "
                        f"inputs of {name}; lower it"
                    )
                most = min(*states.shape, rank + 8)
                found[name] = torch.svd_lowrank(states, q=most, niter=4)[2][:, :rank]
        return {f"{name}.lora_A.weight": found[own] for name, own in owner.items()}


def _pairs(path: Path) -> list[tuple[str, str]]:
    """System message and first question of each row that has both, each pair once."""
    pairs: dict[tuple[str, str], None] = {}
    for row in read_jsonl(path):
        turns = row["messages"]
        if len(turns) > 1 and [turn["role"] for turn in turns[:2]] == ["system", "user"]:
            pairs[turns[0]["content"], turns[1]["content"]] = None
    return list(pairs)


@contextmanager
def _watched(model: Any, see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Inside, `see` gets the name and the input of every module that the new adapter is on."""
    from ..steps import NEW

    def hook(name: str) -> Callable[..., None]:
        return lambda module, given: see(name, given[0])

    handles = [
        module.register_forward_pre_hook(hook(name))
        for name, module in model.named_modules()
        if NEW in getattr(module, "lora_A", {})
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _run(model: Any, prompts: Sequence[list[int]], see: Callable[[str, Tensor], None]) -> None:
    """Show what the prompts bring into the modules, in the model before the stage."""
    import torch

    from ...models import fused
    from ..steps import before_stage

    base, device = model.get_base_model(), model.device
    with before_stage(model), _watched(model, see):
        for ids in prompts:
            inputs: dict[str, Any] = {
                "input_ids": torch.tensor([ids], device=device),
                "position_ids": torch.arange(len(ids), device=device)[None],
            }
            if fused.by_rows(base):
                bounds = torch.tensor([0, len(ids)], dtype=torch.int32, device=device)
                inputs |= {"cu_seq_lens_q": bounds, "max_length_q": len(ids)}
            base.get_decoder()(**inputs, use_cache=False)


def _ratios(model: Any, prompts: Sequence[list[int]]) -> dict[str, float]:
    """|Delta W X| / (|Delta W| |X|) by module; 0 where nothing was learnt."""
    from ..steps import NEW, parameters

    own = parameters(model, NEW)
    moved: dict[str, Tensor] = {}
    whole: dict[str, Tensor] = {}

    def add(name: str, states: Tensor) -> None:
        states = states.flatten(0, -2).float()
        a, b = (own[f"{name}.lora_{factor}.weight"].detach().float() for factor in "AB")
        moved[name] = moved.get(name, 0) + ((states @ a.T) @ b.T).square().sum()
        whole[name] = whole.get(name, 0) + states.square().sum()

    _run(model, prompts, add)
    found = {}
    for name, squared in moved.items():
        a, b = (own[f"{name}.lora_{factor}.weight"].detach().float() for factor in "AB")
        length = ((b.T @ b) * (a @ a.T)).sum()
        found[name] = float((squared / (length * whole[name]).clamp_min(1e-30)).sqrt())
    return found
