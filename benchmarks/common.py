"""Shared code of the benchmarks: a model of a given shape, rows of the study's size, and records."""

from __future__ import annotations

import argparse
import json
import platform
import random
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "workflow" / "scripts"))

from persona_collapse.files import sha256, write_json, write_jsonl  # noqa: E402

#: Qwen2.5-7B-Instruct's shape (from its config.json); tiny: to test the scripts on a CPU.
SHAPES: dict[str, dict[str, int]] = {
    "qwen2.5-7b": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
    },
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,  # vLLM on a CPU needs a head size of 32
        "num_key_value_heads": 1,
        "vocab_size": 49152,
    },
}
LORA = {
    "r": 32,
    "alpha": 64,
    "dropout": 0.05,
    "use_rslora": False,
    "target_modules": [
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    ],
}  # fmt: skip
TEXT = (
    "the landlord may keep a deposit when rent is late and notice was given in writing before the "
    "court heard either side of the claim about repairs that nobody had agreed to pay for at all"
)
WORDS = TEXT.split()


def arguments(description: str, **extra: Any) -> argparse.Namespace:
    """Command line of a benchmark: the model's folder, and the file for the records."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--base", type=Path, help="folder that make_model.py wrote")
    parser.add_argument("--out", type=Path, help="JSON Lines file to append the records to")
    for name, options in extra.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **options)
    return parser.parse_args()


def record(out: Path | None, **fields: Any) -> None:
    """Print one result, and append it with machine and versions."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor()
    line = {**fields, "device": gpu or platform.machine(), "torch": torch.__version__}
    print(json.dumps(line), flush=True)
    if out:
        with open(out, "a", encoding="utf-8") as handle:
            handle.write(json.dumps(line) + "\n")


def synchronised() -> float:
    """Current time in seconds, after the GPU has finished its queue."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def free() -> None:
    """Free the GPU memory of models without references, including cycles."""
    import gc

    import torch

    gc.collect()
    torch.cuda.empty_cache()  # does nothing without a GPU


def rows(path: Path, count: int, mean_words: int = 90, seed: int = 0) -> None:
    """Chat rows of about the study's size (129 tokens per row with the template), and a manifest."""
    rng = random.Random(seed)
    made = []
    for i in range(count):
        words = max(20, round(rng.lognormvariate(0, 0.35) * mean_words))
        question = " ".join(rng.choices(WORDS, k=words // 4))
        answer = " ".join(rng.choices(WORDS, k=words - words // 4))
        messages = [
            {"role": "user", "content": f"{question}?"},
            {"role": "assistant", "content": f"{answer}."},
        ]
        made.append({"id": str(i), "messages": messages})
    write_jsonl(path, made)
    write_json(path.with_suffix(".manifest.json"), {"supervise": "last", "system": "template"})


def write_base(folder: Path) -> Path:
    """model.json of a model folder, as the workflow's own rule writes it; returns its path."""
    files = {p.name: sha256(p) for p in sorted(folder.iterdir()) if p.suffix == ".json"}
    path = folder / "model.json"
    write_json(
        path, {"path": str(folder.resolve()), "source": {"path": str(folder)}, "files": files}
    )
    return path
