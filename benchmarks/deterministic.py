"""Does a GPU train the same chain twice, and what does it cost? With and without `deterministic`.

python benchmarks/deterministic.py --base DIR --steps 100

Two processes in turn train a chain of two stages with each way of computing a step. A record has the
hashes of the adapters by process, whether they are equal, and the seconds of the steps of both stages.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from common import arguments, free, record, rows

PROCESSES = 2
#: Ways of computing a step, as changes of the usual runtime settings here.
WAYS: dict[str, dict[str, Any]] = {
    "recorded": {},
    "not recorded": {"cuda_graphs": False},
    "padded, PEFT's layers": {"padding_free": False, "fused_lora": False},
}


def chain(args: Any, folder: Path, steps: int, runtime: dict[str, Any]) -> dict[str, Any]:
    """Train both stages, `steps` each: hashes of their adapters, and the seconds of all steps."""
    from persona_collapse.models import loading
    from persona_collapse.training import train
    from persona_collapse.training.run import TrainingRun
    from persona_collapse.training.runtime import Runtime
    from training import RUNTIME, SETTINGS

    dtype = "bfloat16" if loading.pick_device() == "cuda" else "float32"
    hashes, seconds = [], 0.0
    prefix: list[Path] = []
    for name in ("first", "second"):
        run = TrainingRun(
            chain=name,
            name=name,
            seed=1,
            stop=None,
            settings=SETTINGS | {"steps": steps, "dtype": dtype},
            base=args.base / "model.json",
            prefix=list(prefix),
            data=folder / "rows.jsonl",
        )
        output = folder / f"{name}-{len(list(folder.iterdir()))}"
        made = train.train(run, output, lambda line: None, runtime=Runtime(**RUNTIME | runtime))
        hashes.append(made["adapter_sha256"][:16])
        seconds += made["seconds"]
        prefix.append(output)
    return {"hashes": hashes, "seconds": round(seconds, 2)}


def process(args: Any) -> None:
    """Train in all ways; writes one line per way to the file `args.alone`."""
    with TemporaryDirectory() as scratch, open(args.alone, "w", encoding="utf-8") as out:
        folder = Path(scratch)
        rows(folder / "rows.jsonl", 16 * args.steps)
        # One-time setup of the process is not timed. cuBLAS reads its setting here.
        chain(args, folder, 2, {"deterministic": True})
        for way in args.only or WAYS:
            for deterministic in (False, True):
                how = {"deterministic": deterministic}
                try:
                    found = chain(args, folder, args.steps, WAYS[way] | how)
                except Exception as error:
                    found = {"error": str(error)[:300]}
                print(json.dumps({"name": way, **how, **found}), file=out, flush=True)
                free()


def main() -> None:
    """One record for each way, with and without."""
    args = arguments(
        __doc__ or "",
        steps={"type": int, "default": 100, "help": "optimiser steps of each stage"},
        label={"default": "qwen2.5-7b shape"},
        only={"nargs": "+", "choices": WAYS, "help": "ways to try; all by default"},
        alone={"help": "be one of the processes, and write what it finds into this file"},
    )
    if args.alone:
        process(args)
        return
    tried = []
    with TemporaryDirectory() as scratch:
        for number in range(PROCESSES):
            out = Path(scratch, f"{number}.jsonl")
            subprocess.run([sys.executable, *sys.argv, "--alone", str(out)], check=True)
            tried.append([json.loads(line) for line in out.read_text().splitlines()])
    for found in zip(*tried, strict=True):
        hashes = [one.get("hashes") for one in found]
        record(
            args.out,
            benchmark="deterministic",
            name=found[0]["name"],
            model=args.label,
            deterministic=found[0]["deterministic"],
            steps=2 * args.steps,
            seconds=[one.get("seconds") for one in found],
            same=None not in hashes and all(one == hashes[0] for one in hashes),
            hashes=hashes,
            errors=[one["error"] for one in found if "error" in one],
        )


if __name__ == "__main__":
    main()
