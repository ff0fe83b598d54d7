"""The manifest in an adapter's folder: what was trained, on what, how, and the results."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from .. import adapter_files
from ..errors import UserError
from ..files import read_json, sha256
from ..models import adapters, chat_template
from .model import Prepared
from .run import Rows, TrainingRun
from .runtime import Runtime
from .trainer import Progress

#: Packages whose versions affect a result.
PACKAGES = ("torch", "transformers", "peft", "trl", "datasets", "numpy")


def versions() -> dict[str, str]:
    """Installed versions of `PACKAGES`."""
    return {package: metadata.version(package) for package in PACKAGES}


def save(run: TrainingRun, prepared: Prepared, output: Path) -> dict[str, Any]:
    """Write what was trained (an adapter in PEFT's format); returns its manifest entries.

    Raises UserError if other modules were adapted than were asked for, or if a weight is not finite.
    """
    config, tensors, lines = prepared.result(run)
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise UserError(
            f"chain {run.chain!r}: trained weights are not finite numbers after the last step; "
            f"lower the stage's lr (now {run.settings['lr']})"
        )
    adapters.save({key: _plain(value) for key, value in config.items()}, tensors, output)
    return lines


def manifest(
    run: TrainingRun,
    runtime: Runtime,
    rows: Rows,
    progress: Progress,
    prepared: Prepared,
    lines: Mapping[str, Any],
    records: Mapping[str, Mapping[str, Any]],
    tokenizer: Any,
    output: Path,
    *,
    began: float,
) -> dict[str, Any]:
    """The manifest of what was trained, as JSON values.

    lines: what `save` returned. records: entries of the defences. began: start of the job, from
    `time.monotonic()`.
    """
    device = prepared.model.device.type
    settings, curve = run.settings, progress.curve
    return {
        "chain": run.chain,
        "stage": run.name,
        "kind": settings["kind"],
        "seed": run.seed,
        "prefix": [path.name for path in run.prefix],
        "base": read_json(run.base),
        "data": {
            "name": run.data.stem,
            "sha256": run.data_sha256,
            "rows": len(rows.kept),
            "rows_dropped_no_loss": rows.dropped,
        },
        "prompt": rows.prompt,
        "loss_on": run.loss_on,
        "objective": run.loss,
        "defence": dict(run.defence),
        "defence_record": {name: dict(record) for name, record in records.items() if record},
        **lines,
        "hyperparameters": {
            key: value
            for key, value in settings.items()
            if key != "epochs" or not settings.get("steps")
        },
        "runtime": runtime.model_dump(),
        "used": prepared.used,
        "steps": progress.done,
        "schedule_steps": run.steps(len(rows.kept)),
        "epochs_seen": round(progress.counted["rows_seen"] / len(rows.kept), 4),
        **progress.counted,
        "loss": curve,
        "final_loss": curve[-1]["loss"] if curve else None,
        "seconds": round(progress.seconds, 2),
        "resumed_after_step": progress.first,
        "seconds_total": round(progress.seconds_before + time.monotonic() - began, 2),
        "device": device,
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "dtype": settings["dtype"],
        "threads": torch.get_num_threads(),
        "peak_gpu_mib": round(torch.cuda.max_memory_allocated() / 2**20)
        if device == "cuda"
        else None,
        "template_sha256": chat_template.template_sha256(tokenizer),
        "adapter_sha256": sha256(output / adapter_files.WEIGHTS),
        "versions": versions(),
        "commit": os.environ.get("PERSONA_COLLAPSE_COMMIT", ""),
    }


def _plain(value: Any) -> Any:
    """PEFT's config values as JSON: enums by value, sets sorted, sub-configs dropped."""
    if isinstance(value, set | frozenset):
        return sorted(value)
    if hasattr(value, "value"):
        return value.value
    if value is None or isinstance(value, str | int | float | bool | list | dict):
        return value
    return None
