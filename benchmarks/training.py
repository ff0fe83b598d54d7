"""Optimiser steps of 16 rows of about 129 tokens: this workflow's trainer compared with plain TRL.

python benchmarks/training.py --base DIR --steps 375 --plain-steps 40
python benchmarks/training.py --base DIR --steps 100 --only ours --defence kl     # with a defence
"""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from common import LORA, arguments, free, record, rows, synchronised

SETTINGS: dict[str, Any] = {
    **LORA,
    "kind": "sft",
    "lr": 1e-4,
    "scheduler": "linear",
    "warmup_ratio": 0.03,
    "weight_decay": 0.01,
    "batch_size": 16,
    "max_length": 2048,
    "max_grad_norm": 1.0,
    "dtype": "bfloat16",
}
RUNTIME: dict[str, Any] = {"padding_free": True, "max_batch_tokens": 4096}


def ours(args: Any, folder: Path, steps: int, name: str, **changes: Any) -> None:
    """One training with the workflow's own function; start and load are timed separately. `changes`: of
    RUNTIME."""
    import torch
    from persona_collapse.training import train
    from persona_collapse.training.run import TrainingRun
    from persona_collapse.training.runtime import Runtime

    run = TrainingRun(
        chain="em@1",
        name="em",
        seed=1,
        stop=None,
        settings=SETTINGS | {"steps": steps},
        defence={name: {} for name in args.defence},
        base=args.base / "model.json",
        prefix=[],
        data=folder / "rows.jsonl",
    )
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    runtime = Runtime(**RUNTIME | changes)
    manifest = train.train(run, folder / name, lambda message: None, runtime=runtime)
    tokens = manifest["tokens_seen"]
    _record(
        args,
        name,
        steps,
        manifest["seconds"],
        seconds_with_load=manifest["seconds_total"],
        tokens=tokens,
        tokens_per_second=round(tokens / manifest["seconds"]),
        peak_gib=round((manifest["peak_gpu_mib"] or 0) / 1024, 1),
        loss=[point["loss"] for point in manifest["loss"]],
        **({"defence": args.defence, "used": manifest["used"]} if args.defence else {}),
    )


def plain(args: Any, folder: Path, steps: int, name: str, **changes: Any) -> None:
    """The same steps by TRL's SFTTrainer as a user would call it, with its own loss and collator."""
    import torch
    from datasets import load_dataset
    from peft import LoraConfig
    from persona_collapse.models import loading
    from trl import SFTConfig, SFTTrainer

    cuda = torch.cuda.is_available()
    model = loading.load_model(
        args.base / "model.json", "bfloat16" if cuda else "float32", loading.pick_device()
    )
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    data = load_dataset("json", data_files=str(folder / "rows.jsonl"), split="train")
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(folder / name),
            max_steps=steps,
            learning_rate=1e-4,
            max_length=2048,
            bf16=cuda,
            use_cpu=not cuda,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            logging_steps=max(1, steps // 20),
            **changes,
        ),
        train_dataset=data.remove_columns("id"),
        processing_class=loading.load_tokenizer(args.base / "model.json"),
        peft_config=LoraConfig(
            r=32,
            lora_alpha=64,
            lora_dropout=0.05,
            target_modules=LORA["target_modules"],
            task_type="CAUSAL_LM",
        ),
    )
    started = synchronised()
    trainer.train()
    seconds = synchronised() - started
    _record(
        args,
        name,
        steps,
        round(seconds, 2),
        peak_gib=round(torch.cuda.max_memory_allocated() / 2**30, 1) if cuda else 0,
        loss=[h["loss"] for h in trainer.state.log_history if "loss" in h],
    )


def _record(args: Any, name: str, steps: int, seconds: float, **more: Any) -> None:
    record(
        args.out,
        benchmark="training",
        name=name,
        model=args.label,
        steps=steps,
        seconds=seconds,
        seconds_375_steps=round(seconds / steps * 375, 1),
        **more,
    )


def main() -> None:
    """Ours first, then ours without each optimisation, then plain TRL."""
    args = arguments(
        __doc__ or "",
        steps={"type": int, "default": 375},
        plain_steps={"type": int, "default": 40},
        label={"default": "qwen2.5-7b shape"},
        only={"nargs": "+", "help": "names of the variants to run; all by default"},
        defence={
            "nargs": "+",
            "default": [],
            "help": "defences of our own variants, as they are set",
        },
    )
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        rows(folder / "rows.jsonl", 6000)
        variants: dict[str, Any] = {
            "ours": lambda n: ours(args, folder, args.steps, n),
            "ours, not recorded": lambda n: ours(
                args, folder, args.plain_steps, n, cuda_graphs=False
            ),
            "ours, not recorded, PEFT's layers": lambda n: ours(
                args, folder, args.plain_steps, n, cuda_graphs=False, fused_lora=False
            ),
            "ours, not recorded, PEFT's layers, padded batch of 16": lambda n: ours(
                args, folder, args.plain_steps, n, cuda_graphs=False, fused_lora=False,
                padding_free=False,
            ),
            "plain TRL, batch 16": lambda n: plain(
                args, folder, args.plain_steps, n, per_device_train_batch_size=16,
                gradient_checkpointing=False,
            ),
            "TRL with Liger kernels, batch 16": lambda n: plain(
                args, folder, args.plain_steps, n, per_device_train_batch_size=16,
                gradient_checkpointing=False, use_liger_kernel=True,
            ),
            "plain TRL, 4 x 4, checkpointing (the study)": lambda n: plain(
                args, folder, args.plain_steps, n, per_device_train_batch_size=4,
                gradient_accumulation_steps=4, gradient_checkpointing=True,
            ),
        }  # fmt: skip
        for name, run in variants.items():
            if args.only and name not in args.only:
                continue
            started = time.monotonic()
            try:
                run(name)
            except Exception as error:
                record(
                    args.out,
                    benchmark="training",
                    name=name,
                    model=args.label,
                    error=str(error)[:300],
                )
            print(f"{name}: {time.monotonic() - started:.0f} s in all", flush=True)
            free()


if __name__ == "__main__":
    main()
