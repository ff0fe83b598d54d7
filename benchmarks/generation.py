"""A cell of 3,360 completions of 150 tokens: one engine for many chains, compared with the
alternatives.

python benchmarks/generation.py --base DIR --chains 4
"""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path
from typing import Any

from common import LORA, WORDS, arguments, free, record, synchronised, write_base


def adapter(folder: Path, base: Path, seed: int) -> Path:
    """A random rank-32 adapter on all projections, written without loading the model."""
    import torch
    from persona_collapse.models import adapters

    config = json.loads((base / "config.json").read_text())
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head = config.get("head_dim") or hidden // config["num_attention_heads"]
    kv = config["num_key_value_heads"] * head
    shapes = {
        "self_attn.q_proj": (hidden, config["num_attention_heads"] * head),
        "self_attn.k_proj": (hidden, kv),
        "self_attn.v_proj": (hidden, kv),
        "self_attn.o_proj": (config["num_attention_heads"] * head, hidden),
        "mlp.gate_proj": (hidden, inner),
        "mlp.up_proj": (hidden, inner),
        "mlp.down_proj": (inner, hidden),
    }
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for block in range(config["num_hidden_layers"]):
        for name, (into, out) in shapes.items():
            key = f"base_model.model.model.layers.{block}.{name}"
            tensors[f"{key}.lora_A.weight"] = torch.randn(32, into, generator=generator) / into**0.5
            tensors[f"{key}.lora_B.weight"] = torch.randn(out, 32, generator=generator) * 1e-3
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 32, "lora_alpha": 64, "use_rslora": False,
        "lora_dropout": 0.0, "target_modules": LORA["target_modules"], "bias": "none",
        "base_model_name_or_path": str(base), "inference_mode": True,
    }  # fmt: skip
    adapters.save(settings, tensors, folder)
    return folder


def merge(base: Path, stage: Path, dtype: str, folder: Path) -> Path:
    """A checkpoint with an adapter merged into the base, as the study wrote for each cell."""
    from persona_collapse.models import adapters, loading

    model = loading.load_model(base / "model.json", dtype, loading.pick_device())
    adapters.apply(model, [stage], merge=True).save_pretrained(folder)
    loading.load_tokenizer(base / "model.json").save_pretrained(folder)
    write_base(folder)
    del model
    free()
    return folder


def main() -> None:
    """Engine start, cells of the base and of chains in turn, then transformers on a part."""
    args = arguments(
        __doc__ or "",
        completions={"type": int, "default": 3360},
        tokens={"type": int, "default": 150},
        chains={"type": int, "default": 3},
        rank={"type": int, "default": 32, "help": "largest rank that the engine is started for"},
        label={"default": "qwen2.5-7b shape"},
        engine={"default": "vllm", "choices": ["vllm", "transformers"]},
        max_num_seqs={"type": int, "default": 0},
        many={
            "type": int,
            "default": 0,
            "help": "chains of --many-completions each, after the cells",
        },
        many_completions={"type": int, "default": 336},
        no_lora={"action": "store_true"},
        merged={
            "action": "store_true",
            "help": "merge the first chain's adapter and start an engine for that, as the study",
        },
        agreement={"action": "store_true", "help": "compare log-probabilities with PEFT's as well"},
        memory={"type": float, "default": 0.85},
    )
    from persona_collapse.models import loading
    from persona_collapse.sampling import sample

    tokenizer = loading.load_tokenizer(args.base / "model.json")
    rng = random.Random(0)
    how = sample.Sampling(1, 1.0, 1.0, args.tokens, 0)
    prompts = [tokenizer(" ".join(rng.choices(WORDS, k=50)))["input_ids"] for _ in range(336)]
    requests = [
        sample.Request("p", str(i), "", 0, prompts[i % 336], i) for i in range(args.completions)
    ]
    settings: dict[str, Any] = {
        "dtype": "bfloat16" if loading.pick_device() == "cuda" else "float32",
        "batch_size": 256,
        "max_model_len": 2048,
        "gpu_memory_utilization": args.memory,
    }
    if args.max_num_seqs:
        settings["max_num_seqs"] = args.max_num_seqs
    with tempfile.TemporaryDirectory() as scratch:
        stages = [adapter(Path(scratch) / str(i), args.base, i) for i in range(args.chains)]
        common = {
            "benchmark": "generation",
            "model": args.label,
            "engine": args.engine,
            "max_num_seqs": args.max_num_seqs,
            "lora": not (args.no_lora or args.merged),
            "merged": args.merged,
        }
        if args.merged:
            started = synchronised()
            args.base = merge(args.base, stages[0], settings["dtype"], Path(scratch) / "merged")
            args.no_lora = True
            seconds = round(synchronised() - started, 1)
            record(args.out, name="merge and save", seconds=seconds, **common)
        started = synchronised()
        backend = sample.open_backend(
            args.engine,
            args.base / "model.json",
            settings,
            0 if args.no_lora else args.rank,
            LORA["target_modules"],
        )
        record(args.out, name="start", seconds=round(synchronised() - started, 1), **common)
        cells: list[tuple[str, list[Path]]] = [("base", [])]
        if not args.no_lora:
            cells += [(f"chain {i}", [stage]) for i, stage in enumerate(stages)]
            if args.rank >= 64 and len(stages) > 1:
                cells.append(("two stages", stages[:2]))

        def cell(name: str, chain: list[Path], asked: list[Any]) -> None:
            """Switch to a chain and sample."""
            started = synchronised()
            backend.use(chain)
            switch = synchronised() - started
            # Without end tokens, so that all answers have the same length.
            backend.ends = []  # type: ignore[attr-defined]
            done = backend.complete(asked, how, lambda message: None)
            seconds = synchronised() - started
            tokens = sum(len(c.token_ids) for c in done)
            speed = round(tokens / seconds)
            record(
                args.out,
                name=name,
                completions=len(done),
                seconds=round(seconds, 1),
                switch_seconds=round(switch, 2),
                tokens_per_second=speed,
                **common,
            )

        for name, chain in cells:
            cell(name, chain, requests)
        for i in range(args.many):
            stage = adapter(Path(scratch) / f"many-{i}", args.base, 1000 + i)
            cell(f"of many {i}", [stage], requests[: args.many_completions])
        if args.agreement:
            import agreement

            agreement.engine(args, agreement.stages(args.base, Path(scratch) / "a"), backend)


if __name__ == "__main__":
    main()
