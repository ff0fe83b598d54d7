"""Loss and gradients of a step: the loss of its rows, and the penalties of the stage's defences."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..models import loading
from ..models.chat_template import IGNORED
from . import losses
from .batches import Batch, counts
from .defences import Asks, Defence

#: The trained adapter, and the summed adapter of the stages before it.
NEW, EARLIER = "default", "prefix"
#: A step's batches by source of their rows: the stage's own, or those that a defence asks for.
OWN = ""
Batches = Mapping[str, Sequence[Batch]]


@contextmanager
def before_stage(model: Any) -> Iterator[None]:
    """Context with the model before the stage, without gradients and dropout.

    In it, `model.before_stage` is true, so that hooks of defences can skip these passes.
    """
    from peft.tuners.lora import LoraLayer

    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    if not layers:
        raise UserError(
            "config: stages: loss: it needs the model before the stage, which is gone if all "
            "weights are trained; set adapter: lora, or use another loss"
        )
    active = [layer.active_adapters for layer in layers]
    training = model.training
    for layer, names in zip(layers, active, strict=True):
        # Not PEFT's set_adapter, which also changes what is trainable.
        layer._active_adapter = [name for name in names if name != NEW]
    model.eval()
    model.before_stage = True
    try:
        with torch.no_grad():
            yield
    finally:
        model.before_stage = False
        model.train(training)
        for layer, names in zip(layers, active, strict=True):
            layer._active_adapter = names


@dataclass
class Seen:
    """Outputs of a forward pass, each [tokens of the batch, hidden]."""

    last: Tensor
    hidden: dict[int, Tensor]
    embeddings: Tensor | None = None


class Passes:
    """A batch's forward passes, each run when it is first needed.

    inputs: inputs of the decoder. hidden: blocks whose outputs are kept. embeddings: are the embeddings
    kept?
    """

    def __init__(
        self, model: Any, inputs: Mapping[str, Any], hidden: Sequence[int], embeddings: bool
    ):
        self.model, self.inputs = model, inputs
        self.blocks, self.embeddings = hidden, embeddings

    @cached_property
    def now(self) -> Seen:
        """Pass of the model that is trained."""
        return self._forward()

    @cached_property
    def before(self) -> Seen:
        """Pass of the model before the stage."""
        with before_stage(self.model):
            return self._forward()

    def changed(self, change: Callable[[Tensor], Tensor]) -> Seen:
        """Another pass of the model that is trained, with changed embeddings."""
        embeddings = loading.bare(self.model).get_input_embeddings()
        hook = embeddings.register_forward_hook(lambda module, given, out: change(out))
        try:
            return self._forward()
        finally:
            hook.remove()

    def logits(self, seen: Seen, positions: Tensor) -> Tensor:
        """Logits at some of the batch's tokens, [n, vocabulary], in 32 bits.

        The usual loss projects every position; with a vocabulary of 150,000 that is a fifth of a step's
        time and most of its memory.
        """
        head = loading.bare(self.model).get_output_embeddings()
        logits: Tensor = head(seen.last[positions]).float()
        return logits

    def _forward(self) -> Seen:
        base = loading.bare(self.model)
        kept: dict[int, Tensor] = {}

        def keep(place: int) -> Callable[..., None]:
            def hook(module: Any, given: Any, out: Any) -> None:
                states = out[0] if isinstance(out, tuple) else out
                kept[place] = states.flatten(0, 1)

            return hook

        blocks = loading.blocks_of(base)
        watched = {place: blocks[place] for place in self.blocks}
        if self.embeddings:
            watched[-1] = base.get_input_embeddings()
        hooks = [module.register_forward_hook(keep(place)) for place, module in watched.items()]
        try:
            out = base.get_decoder()(**self.inputs, use_cache=False).last_hidden_state
        finally:
            for hook in hooks:
                hook.remove()
        embeddings = kept.pop(-1, None)
        return Seen(out.flatten(0, 1), kept, embeddings)


@dataclass
class Tokens:
    """The `n` tokens of a batch that have a label.

    positions: [n], positions that predict them, in the flattened batch. labels: [n], the tokens
    themselves, or -100 for padding. count: divisor of sums over them (`Objective.sizes`).
    """

    positions: Tensor
    labels: Tensor
    count: int | Tensor

    @staticmethod
    def of(batch: Batch, key: str, count: int | Tensor) -> Tokens:
        """The tokens of a batch that have a label under a key (`labels`, `all`)."""
        labels = batch[key]
        following = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED).flatten()
        positions = (following != IGNORED).nonzero()[:, 0]
        return Tokens(positions, following[positions], count)


class Step:
    """What a defence sees of an optimiser step, or of a part of it: `n` tokens and what they are
    predicted from.

    labels [n] are the tokens to predict. A recorded step also has padding, with label -100, whose
    penalty does not count. Everything else is at the positions that predict these tokens, in 32 bits
    whatever the model's dtype.
    """

    def __init__(self, passes: Passes, tokens: Tokens):
        self._passes, self._tokens = passes, tokens
        self.model, self.labels = passes.model, tokens.labels

    @cached_property
    def logits(self) -> Tensor:
        """Logits of the model that is trained, [n, vocabulary]."""
        return self._passes.logits(self._passes.now, self._tokens.positions)

    @cached_property
    def before(self) -> Tensor:
        """Logits of the model before the stage, without gradients, [n, vocabulary]."""
        with torch.no_grad():
            return self._passes.logits(self._passes.before, self._tokens.positions)

    def changed(self, change: Callable[[Tensor], Tensor]) -> Tensor:
        """Logits of the model that is trained with changed embeddings, [n, vocabulary]; takes another
        pass.

        change: function of embeddings [..., hidden] in the model's dtype that returns the same shape
        and dtype.
        """
        return self._passes.logits(self._passes.changed(change), self._tokens.positions)

    @property
    def real(self) -> Tensor:
        """Mask of the tokens that are not padding, [n]."""
        return self.labels != IGNORED

    def hidden(self, block: int, *, before: bool = False) -> Tensor:
        """Outputs of a requested block, by the current model or the model before the stage, [n, hidden]."""
        seen = self._passes.before if before else self._passes.now
        if block not in seen.hidden:
            raise UserError(
                f"hidden({block}): outputs of this block were not asked for; name it in `asks`"
            )
        return seen.hidden[block][self._tokens.positions].float()

    @property
    def embeddings(self) -> Tensor:
        """Embeddings at these positions, if they were requested, [n, hidden]."""
        embeddings = self._passes.now.embeddings
        assert embeddings is not None, "ask for embeddings"
        return embeddings[self._tokens.positions].float()

    @property
    def new(self) -> dict[str, Tensor]:
        """Parameters of the trained adapter, by name."""
        return parameters(self.model, NEW)

    @property
    def earlier(self) -> dict[str, Tensor]:
        """Parameters of the summed adapter of earlier stages, of scale 1; requested by `adapters`."""
        return parameters(self.model, EARLIER)


def parameters(model: Any, adapter: str) -> dict[str, Tensor]:
    """Parameters of one adapter, by name."""
    inside = f".{adapter}."
    return {
        name.replace(inside, "."): parameter
        for name, parameter in model.named_parameters()
        if inside in name
    }


class Objective:
    """A stage's loss and the penalties of its defences for one batch.

    model: a PeftModel, or a model whose weights are all trained. Without a defence there is only a
    loss.
    """

    def __init__(
        self, model: Any, loss: str = losses.DEFAULT, defences: Mapping[str, Defence] | None = None
    ):
        self.model, self.loss = model, losses.get(loss)
        self.defences: dict[str, list[Defence]] = {OWN: []}
        for name, defence in (defences or {}).items():
            if type(defence).penalty is not Defence.penalty:
                source = f"{name}.{defence.asks.rows}" if defence.asks.rows else OWN
                self.defences.setdefault(source, []).append(defence)

    @property
    def sources(self) -> list[str]:
        """Sources of rows: `OWN`, and `defence.input` for other rows."""
        return list(self.defences)

    def keys(self, source: str) -> list[str]:
        """Keys of a batch from a source that mark the tokens that count."""
        asked = [defence.asks.tokens for defence in self.defences[source]]
        keys = ["labels"] if source == OWN or "answer" in asked else []
        return keys + (["all"] if "all" in asked else [])

    def sizes(self, source: str, batches: Batches) -> dict[str, int]:
        """Number of tokens that a step's penalties from a source average over, by the `keys`."""
        if source != OWN and any(defence.asks.pooled for defence in self.defences[source]):
            return dict.fromkeys(self.keys(source), counts(batches[OWN], "labels"))
        return {key: counts(batches[source], key) for key in self.keys(source)}

    def __call__(
        self,
        source: str,
        inputs: Mapping[str, Any],
        tokens: Mapping[str, Tokens],
        share: float | Tensor,
    ) -> tuple[Tensor | None, Tensor | None]:
        """A batch's part of the step's loss (None for rows that are not the stage's own), and of its
        penalty.

        inputs: inputs of the decoder. tokens: by the `keys` of its source. share: 1 / number of batches
        from that source in the step.
        """
        defences = self.defences[source]
        asks: list[Asks] = [defence.asks for defence in defences]
        hidden = sorted({block for one in asks for block in one.hidden})
        passes = Passes(self.model, inputs, hidden, any(one.embeddings for one in asks))
        views = {key: Step(passes, chosen) for key, chosen in tokens.items()}
        task: Tensor | None = None
        if source == OWN:
            own = views["labels"]
            total = self.loss(own.logits, own.labels, lambda: own.before)
            task = total / tokens["labels"].count
        penalty: Tensor | None = None
        for defence, asked in zip(defences, asks, strict=True):
            key = "all" if asked.tokens == "all" else "labels"
            value = defence.penalty(views[key])
            if value is None:
                continue
            n = views[key].labels.shape
            if not isinstance(value, torch.Tensor) or value.shape not in (n, ()):
                got = f"shape {list(value.shape)}" if hasattr(value, "shape") else repr(value)
                raise UserError(
                    f"defence: {type(defence).__module__.rpartition('.')[2]}: penalty: expected a tensor of "
                    f"shape [] or, a value per token, {list(n)}, got {got}"
                )
            if value.dim():
                value = value.masked_fill(~views[key].real, 0).sum() / tokens[key].count
            else:
                value = value * share
            penalty = value if penalty is None else penalty + value
        return task, penalty


def added(task: Tensor | None, penalty: Tensor | None) -> Tensor | None:
    """Sum of loss and penalty; None if there is neither."""
    if task is None or penalty is None:
        return penalty if task is None else task
    return task + penalty


class Stepper:
    """Loss and gradients of steps, batch by batch.

    autocast: dtype of forward passes, if it differs from that of the weights.
    """

    def __init__(
        self,
        objective: Objective,
        device: str | torch.device,
        autocast: torch.dtype | None = None,
    ):
        self.objective, self.device, self.autocast = objective, device, autocast

    def step(self, batches: Batches) -> tuple[Tensor, Tensor]:
        """A step's loss (including the penalty) and its penalty; adds its gradients to those of the
        parameters."""
        total, penalties = (torch.zeros((), device=self.device) for _ in range(2))
        for source, parts in batches.items():
            sizes = self.objective.sizes(source, batches)
            for batch in parts:
                tokens = {key: Tokens.of(batch, key, n) for key, n in sizes.items()}
                for chosen in tokens.values():
                    chosen.positions = chosen.positions.to(self.device)
                    chosen.labels = chosen.labels.to(self.device)
                inputs: dict[str, Tensor] = {
                    key: batch[key].to(self.device)
                    for key in ("input_ids", "position_ids")
                    if key in batch
                }
                kind = torch.device(self.device).type
                with torch.autocast(kind, self.autocast, enabled=self.autocast is not None):
                    task, penalty = self.objective(source, inputs, tokens, 1 / len(parts))
                loss = added(task, penalty)
                if loss is None:
                    continue
                loss.backward()
                total += loss.detach()
                if penalty is not None:
                    penalties += penalty.detach()
        return total, penalties
