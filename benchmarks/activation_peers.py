"""Activations of the same prompts by this workflow, nnsight, TransformerLens and transformers.

python benchmarks/activation_peers.py --base DIR

On a CPU in float32: the last prompt token at five blocks. A peer that is not installed is reported in
one line. Each peer runs twice: in its plain form (padded batches in the given order, full forward
pass), and with this workflow's two optimisations added by hand (batches sorted by length, nothing after
the deepest block). All variants take turns, and the shortest time over the rounds counts.

A difference is the largest |theirs - ours| over prompts, blocks and dimensions, relative to the
root mean square of that prompt's vector at that block.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from common import WORDS, arguments, record

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # peers use a GPU by default

#: From prompts (token ids) to values [layer, prompt, hidden].
Way = Callable[[Sequence[list[int]]], Any]


def prompts(tokenizer: Any, count: int) -> list[list[int]]:
    """Prompts of personas and questions, about the study's size, as token ids; the same for all variants."""
    from persona_collapse.models import chat_template

    rng = random.Random(0)
    made = []
    for _ in range(count):
        system, question = (" ".join(rng.choices(WORDS, k=rng.randint(8, 28))) for _ in range(2))
        made.append(chat_template.prompt_ids(tokenizer, f"{system}.", f"{question}?"))
    return made


def padded(
    ids: Sequence[list[int]], size: int, pad: int, by_length: bool
) -> Iterator[tuple[Any, Any, Any, Any]]:
    """Batches padded on the right: indices of the prompts, ids, mask, last positions."""
    import torch

    order = sorted(range(len(ids)), key=lambda i: len(ids[i])) if by_length else range(len(ids))
    for first in range(0, len(ids), size):
        batch = list(order[first : first + size])
        lengths = torch.tensor([len(ids[i]) for i in batch])
        width = int(lengths.max())
        tokens = torch.tensor([ids[i] + [pad] * (width - len(ids[i])) for i in batch])
        mask = (torch.arange(width) < lengths[:, None]).long()
        yield torch.tensor(batch), tokens, mask, lengths - 1


def ours(model: Any, layers: list[int], batch: int, pad: int) -> Way:
    """The workflow's own function, called as in its rule."""
    from persona_collapse.measures import activations

    def run(ids: Sequence[list[int]]) -> Any:
        asked = [(prompt, []) for prompt in ids]
        given = {"end_tokens": [], "pad": pad, "batch_size": batch}
        return activations.extract(model, asked, layers, **given)["A"]

    return run


def transformers_alone(model: Any, layers: list[int]) -> Way:
    """One prompt at a time with all hidden states, as the study did."""
    import torch

    def run(ids: Sequence[list[int]]) -> Any:
        found = []
        with torch.inference_mode():
            for prompt in ids:
                states = model(torch.tensor([prompt]), output_hidden_states=True).hidden_states
                found.append(torch.stack([states[layer + 1][0, -1] for layer in layers]))
        return torch.stack(found, dim=1).numpy()

    return run


def nnsight_way(
    base: Path, tokenizer: Any, layers: list[int], batch: int, pad: int
) -> Callable[[bool], Way]:
    """nnsight with its own model: one trace per batch, which saves the requested output of each block."""
    import nnsight
    import torch
    from nnsight.modeling.transformers import TransformersModel
    from persona_collapse.models import loading

    model = TransformersModel(loading.load_model(base, "float32", "cpu"), tokenizer=tokenizer)

    def way(savings: bool) -> Way:
        def run(ids: Sequence[list[int]]) -> Any:
            out = torch.zeros(len(layers), len(ids), model.config.hidden_size)
            with torch.inference_mode():
                for where, tokens, mask, last in padded(ids, batch, pad, savings):
                    rows = torch.arange(len(where))
                    with model.trace({"input_ids": tokens, "attention_mask": mask}) as tracer:
                        kept = nnsight.save(
                            [model.model.layers[layer].output[rows, last] for layer in layers]
                        )
                        if savings:
                            tracer.stop()
                    out[:, where] = torch.stack(kept)
            return out.numpy()

        return run

    return way


def lens_way(
    base: Path, tokenizer: Any, layers: list[int], batch: int, pad: int
) -> Callable[[bool], Way]:
    """TransformerLens with unchanged weights: its bridge folds and centres only on request."""
    import torch
    from persona_collapse.models import loading
    from transformer_lens.model_bridge import TransformerBridge

    model = TransformerBridge.boot_transformers(
        loading.path_of(base),
        hf_model=loading.load_model(base, "float32", "cpu"),
        tokenizer=tokenizer,
    )
    names = [f"blocks.{layer}.hook_resid_post" for layer in layers]

    def way(savings: bool) -> Way:
        stop = {"stop_at_layer": max(layers) + 1} if savings else {}

        def run(ids: Sequence[list[int]]) -> Any:
            out = torch.zeros(len(layers), len(ids), model.cfg.d_model)
            with torch.inference_mode():
                for where, tokens, mask, last in padded(ids, batch, pad, savings):
                    _, cache = model.run_with_cache(
                        tokens, attention_mask=mask, names_filter=names, **stop
                    )
                    rows = torch.arange(len(where))
                    out[:, where] = torch.stack([cache[name][rows, last] for name in names])
            return out.numpy()

        return run

    return way


def difference(found: Any, wanted: Any) -> float:
    """Largest difference, relative to the vector's root mean square."""
    import numpy as np

    scale = np.sqrt(np.square(wanted).mean(axis=-1, keepdims=True))
    return float((np.abs(found - wanted) / scale).max())


def main() -> None:
    """Run every variant on the same prompts, in turns."""
    args = arguments(
        __doc__ or "",
        prompts={"type": int, "default": 96},
        batch={"type": int, "default": 32},
        rounds={"type": int, "default": 3},
        depths={"type": float, "nargs": "+", "default": [0.25, 0.5, 0.72, 0.75, 0.97]},
        label={"default": "smollm2-135m"},
    )
    import torch
    from persona_collapse.measures import activations
    from persona_collapse.models import loading

    base = args.base / "model.json"
    tokenizer, model = loading.load_tokenizer(base), loading.load_model(base, "float32", "cpu")
    blocks = len(loading.blocks_of(model))
    layers, pad = activations.resolve_layers(args.depths, blocks), tokenizer.pad_token_id
    asked = prompts(tokenizer, args.prompts)

    def note(name: str, **fields: Any) -> None:
        """One result."""
        record(args.out, benchmark="activation_peers", name=name, model=args.label, **fields)

    ways = {"ours": ours(model, layers, args.batch, pad)}
    versions = {"transformers, batch 1 (the study)": version("transformers")}
    ways["transformers, batch 1 (the study)"] = transformers_alone(model, layers)
    for package, build in (("nnsight", nnsight_way), ("transformer_lens", lens_way)):
        try:
            way = build(base, tokenizer, layers, args.batch, pad)
        except ImportError as error:
            note(package, left_out=str(error).splitlines()[0])
            continue
        for savings, more in ((False, ""), (True, ", by length, stopped early")):
            ways[package + more], versions[package + more] = way(savings), version(package)

    found: dict[str, Any] = {}
    wall: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    for run in ways.values():
        run(asked[:4])  # warm
    for _ in range(args.rounds):
        for name, way in ways.items():
            started, used = time.perf_counter(), time.process_time()
            found[name] = way(asked)
            wall[name].append(time.perf_counter() - started)
            # In addition to wall time, because CPU time excludes other load on the machine.
            cpu[name].append(time.process_time() - used)

    for name in ways:
        wanted = found["ours"]
        if name.startswith("transformers,") and layers[-1] == blocks - 1:
            # Its last entry is after the final norm.
            wanted = wanted.copy()
            with torch.inference_mode():
                wanted[-1] = model.model.norm(torch.from_numpy(wanted[-1])).numpy()
        seconds = min(wall[name])
        note(
            name,
            prompts=len(asked),
            tokens=sum(map(len, asked)),
            layers=layers,
            batch=1 if name.startswith("transformers,") else args.batch,
            seconds=round(seconds, 2),
            prompts_per_second=round(len(asked) / seconds, 2),
            ratio_to_ours=round(seconds / min(wall["ours"]), 2),
            cpu_seconds=round(min(cpu[name]), 2),
            cpu_ratio_to_ours=round(min(cpu[name]) / min(cpu["ours"]), 2),
            largest_relative_difference=float(f"{difference(found[name], wanted):.1e}"),
            threads=torch.get_num_threads(),
            **({"version": versions[name]} if name in versions else {}),
        )


if __name__ == "__main__":
    main()
