"""Activations of 2,880 prompts at five blocks, methods A and B: batched by length, compared with batch
size 1.

python benchmarks/activations.py --base DIR
"""

from __future__ import annotations

import random
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from common import LORA, WORDS, arguments, record, synchronised


def main() -> None:
    """One at a time as in the study, padded, as in the workflow, and with a chain of one adapter."""
    args = arguments(
        __doc__ or "",
        prompts={"type": int, "default": 2880},
        single={"type": int, "default": 144},
        layers={"type": int, "nargs": "+", "default": [7, 14, 20, 21, 27]},
        label={"default": "qwen2.5-7b shape"},
    )
    from peft import LoraConfig, get_peft_model
    from persona_collapse.measures import activations
    from persona_collapse.models import adapters, fused, loading

    def note(name: str, seconds: float, **more: Any) -> None:
        """One result."""
        seconds = round(seconds, 2)
        record(
            args.out, benchmark="activations", name=name, model=args.label, seconds=seconds, **more
        )

    base = args.base / "model.json"
    tokenizer, device = loading.load_tokenizer(base), loading.pick_device()
    dtype = "bfloat16" if device == "cuda" else "float32"
    started = synchronised()
    model = loading.load_model(base, dtype, device)
    note("load", synchronised() - started)
    rng = random.Random(0)

    def sequences(count: int, answer: int) -> list[tuple[list[int], list[int]]]:
        """Prompts of about 64 tokens, answers of `answer`."""
        out = []
        for _ in range(count):
            text = " ".join(rng.choices(WORDS, k=rng.randint(35, 65)))
            ids = tokenizer(text)["input_ids"]
            out.append((ids, rng.choices(ids, k=answer)))
        return out

    def time_it(name: str, asked: list[tuple[list[int], list[int]]], batch: int, on: Any) -> None:
        """Warm up on one batch, then run all."""
        given = {"end_tokens": [], "pad": tokenizer.pad_token_id, "batch_size": batch}
        activations.extract(on, asked[: batch * 2], args.layers, **given)
        started = synchronised()
        activations.extract(on, asked, args.layers, **given)
        seconds = synchronised() - started
        tokens = sum(len(p) + len(a) for p, a in asked)
        note(
            name,
            seconds,
            prompts=len(asked),
            seconds_2880=round(seconds / len(asked) * 2880, 1),
            tokens_per_second=round(tokens / seconds),
        )

    short, long = sequences(args.prompts, 0), sequences(args.prompts, 150)
    time_it("A, batch 1 (the study)", sequences(args.single, 0), 1, model)
    time_it("A, padded batches of 256, transformers' layers", short, 256, model)
    # From here on as in the workflow.
    fused.attend_by_rows(model)
    fused.fuse(model)
    time_it("A, batch 256", short, 256, model)
    time_it("A and B, batch 256", long, 256, model)
    with TemporaryDirectory() as scratch:
        lora = LoraConfig(
            r=32,
            lora_alpha=64,
            target_modules=LORA["target_modules"],
            init_lora_weights=False,
            task_type="CAUSAL_LM",
        )
        tuned = get_peft_model(model, lora)
        tuned.save_pretrained(scratch)
        model = tuned.unload()
        started = synchronised()
        chain = adapters.apply(model, [Path(scratch)], merge=False)
        note("put a chain on", synchronised() - started)
        time_it("A and B, batch 256, one adapter, PEFT's layers", long, 256, chain)
        time_it("A and B, batch 256, one adapter", long, 256, fused.fuse(chain))


if __name__ == "__main__":
    main()
