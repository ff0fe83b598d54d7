"""Residual-stream activations of a chain, by persona and question.

Layer L is the output of block L, counted from 0, taken by a hook on the block: `hidden_states[L+1]`
in transformers, except for the last block, whose entry there is after the final norm while the hook
is before it.

Method A is the last token of the prompt (including the generation prompt). Method B is the mean over
the answer's own tokens without its end token; an answer that consists only of its end token uses that
token. Attention is causal, so one forward pass over prompt and answer gives both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from ..errors import UserError
from ..models import chat_template, loading
from ..models.loading import resolve_layers as resolve_layers
from ..settings import DISTINCT, NotNegative
from ..settings import Settings as Block
from . import _passes, measure

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import torch

    from ..activation_files import Activations
    from ..models.runner import ModelRunner


def headline(
    chosen: Mapping[str, Any], layers: Sequence[int | float], blocks: int
) -> dict[str, Any]:
    """The headline's method and block, as one row: method, layer, asked, blocks.

    `chosen`: `statistics: headline:` of the config; `layers`: `activations: layers:`. Raises UserError
    if the headline's block is not measured.
    """
    measured = resolve_layers(layers, blocks)
    asked = chosen["layer"]
    (layer,) = resolve_layers([asked], blocks)
    if layer not in measured:
        raise UserError(
            f"config: statistics: headline: layer: {asked} is block {layer} of {blocks}, and activations: "
            f"layers measures blocks {', '.join(map(str, measured))}; add it there or choose one of them"
        )
    return {"method": chosen["method"], "layer": layer, "asked": asked, "blocks": blocks}


class _DeepEnough(Exception):
    """Raised when the last requested block has run."""


@contextmanager
def block_outputs(model: Any, layers: Sequence[int]) -> Iterator[dict[int, torch.Tensor]]:
    """Context in which each forward pass leaves {layer: [batch, tokens, hidden]} in the dict.

    A pass ends after the deepest of `layers` by raising `_DeepEnough`; run it inside `suppress`.
    """
    seen: dict[int, torch.Tensor] = {}
    handles = []
    blocks = loading.blocks_of(model)

    def keep(layer: int) -> Callable[..., None]:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            seen[layer] = output[0] if isinstance(output, tuple) else output
            if layer == max(layers):
                raise _DeepEnough

        return hook

    try:
        for layer in layers:
            handles.append(blocks[layer].register_forward_hook(keep(layer)))
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def extract(
    model: Any,
    sequences: Sequence[tuple[list[int], list[int]]],
    layers: Sequence[int],
    *,
    end_tokens: Sequence[int],
    pad: int,
    batch_size: int,
    personas: Sequence[str | None] | None = None,
    progress: Callable[[str], None] = lambda message: None,
) -> dict[str, np.ndarray]:
    """Methods A and B for (prompt ids, answer ids) pairs; float32 [layer, sequence, hidden].

    Sequences are batched by length, `batch_size` at a time, and padded on the right, which a causal
    model with a mask never sees. A model that attends by rows (see fused.py) gets them concatenated
    instead, in batches of equally many tokens. Means accumulate in float32. `personas`: persona of each
    sequence, for shifts.
    """
    import numpy as np
    import torch

    from ..activation_files import METHODS

    device = next(model.parameters()).device
    # Kept on the model's device and copied once: many small copies take longer than the model.
    shape = (len(layers), len(sequences), model.config.get_text_config().hidden_size)
    answered = any(answer for _, answer in sequences)
    out = {m: torch.zeros(shape, device=device) for m in (METHODS if answered else METHODS[:1])}
    done = 0
    with block_outputs(model, layers) as seen, torch.inference_mode():
        for batch, inputs, starts in _passes.batches(model, sequences, batch_size, pad, personas):
            tokens = inputs["input_ids"].numel()
            ends = [
                start + len(sequences[i][0]) - 1 for i, start in zip(batch, starts, strict=True)
            ]
            last, where = torch.tensor(ends, device=device), torch.tensor(batch, device=device)
            if answered:
                answers = [sequences[i][1] for i in batch]
                weights = _means(answers, ends, tokens, end_tokens).to(device)
            # Only the decoder: the output head is not needed.
            with suppress(_DeepEnough):
                model.get_decoder()(**inputs, use_cache=False)
            for number, layer in enumerate(layers):
                states = seen[layer].reshape(tokens, -1)
                out["A"][number, where] = states[last].float()
                if answered:
                    out["B"][number, where] = weights @ states.float()
            done += len(batch)
            progress(f"{done}/{len(sequences)} prompts")
    found = {method: values.cpu().numpy() for method, values in out.items()}
    return {m: found.get(m, np.zeros(shape, np.float32)) for m in METHODS}


def _means(
    answers: Sequence[list[int]], ends: Sequence[int], tokens: int, end_tokens: Sequence[int]
) -> torch.Tensor:
    """Weights [sequence, token] of the mean over each answer, which follows the end of its prompt."""
    import torch

    weights = torch.zeros((len(answers), tokens))
    for row, (answer, end) in enumerate(zip(answers, ends, strict=True)):
        own = len(answer)
        if own > 1 and answer[-1] in end_tokens:
            own -= 1
        if own:
            weights[row, end + 1 : end + 1 + own] = 1 / own
    return weights


class Settings(Block):
    """Activations of every persona, from which vectors, cosines and classifiers are computed."""

    layers: Annotated[list[NotNegative], Field(min_length=1)] = Field(
        description="Blocks: integers are indices from 0, fractions below 1 are relative depths.",
    )
    methods: Annotated[list[Literal["A", "B"]], Field(min_length=1), DISTINCT] = Field(
        ["A", "B"], description="A: last prompt token. B: mean over the answer."
    )
    dtype: Literal["float16", "bfloat16"] = Field("float16", description="Number format on disk.")

    def unread(self) -> set[str]:
        """Without method B, responses are not read."""
        return set() if "B" in self.methods else {"responses"}


def save(activations: Activations, path: Path, settings: Settings) -> None:
    """Write the activations to a file."""
    from .. import activation_files

    activation_files.save(activations, path, settings.dtype)


@measure("activations", Settings, suffix=".safetensors", save=save)
def activations(
    runner: ModelRunner,
    adapters: Sequence[Path],
    chain: str,
    geometry_personas: Mapping[str, str],
    extraction: Sequence[Mapping[str, Any]],
    responses: pd.DataFrame | None,
    settings: Settings,
    batch_size: int,
    log: Callable[[str], None],
) -> Activations:
    """Activations of a chain for every persona and extraction question.

    `responses`: the chain's own greedy answers (method B); None leaves method B out.
    """
    from ..activation_files import METHODS, Activations

    answers: dict[tuple[str, str], list[int]] = {}
    if responses is not None:
        answers = {
            (row.persona, row.question_id): chat_template.said(runner.tokenizer, row.token_ids)
            for row in responses.itertuples(index=False)
        }
    sequences = []
    for name, prompt in geometry_personas.items():
        for question in extraction:
            ids = chat_template.prompt_ids(runner.tokenizer, prompt, question["question"])
            if responses is not None and (name, question["id"]) not in answers:
                raise UserError(
                    f"{chain}: no response for persona {name!r}, question "
                    f"{question['id']!r}; delete the chain's responses file and rerun"
                )
            sequences.append((ids, answers.get((name, question["id"]), [])))
    with runner.chain(adapters, merge=runner.dtype == "float32") as model:
        layers = resolve_layers(settings.layers, len(loading.blocks_of(model)))
        flat = extract(
            model,
            sequences,
            layers,
            end_tokens=loading.end_tokens(model.generation_config, runner.tokenizer),
            pad=runner.tokenizer.pad_token_id,
            batch_size=batch_size,
            personas=[name for name in geometry_personas for _ in extraction],
            progress=log,
        )
    shape = (len(layers), len(geometry_personas), len(extraction), -1)
    methods = METHODS if responses is not None else METHODS[:1]
    return Activations(
        layers,
        list(geometry_personas),
        [q["id"] for q in extraction],
        {m: flat[m].reshape(shape) for m in methods},
        chain,
    )
