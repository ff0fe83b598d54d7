"""Train one stage of a chain: a LoRA adapter on the frozen sum of the stages before it, or all weights."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from ..errors import UserError
from ..models import loading
from . import checkpoints, defences, kernels, stopping
from .manifest import manifest, save, versions
from .model import prepare
from .run import TrainingRun
from .runtime import Runtime
from .trainer import Progress, trainer_of, work_of


def train(
    run: TrainingRun,
    output: Path,
    log: Callable[[str], None],
    *,
    runtime: Runtime | None = None,
    saved: Path | None = None,
    every: int = 0,
    code: str = "",
) -> dict[str, Any]:
    """Train the stage, write its adapter (PEFT format) into `output`, and return the manifest.

    `saved`: folder for checkpoints, one `every` this many steps (0: none). A training that finds its
    own checkpoint there, made by the same `code`, resumes from it and ends with the same bytes as an
    uninterrupted one. Checkpoints are removed at the end. On SIGTERM or SIGUSR1, as at a cluster's time
    limit, it saves a checkpoint after the current step and raises UserError.

    The trainer is TRL's SFTTrainer. Tokens and labels are made here, so which tokens carry loss is
    explicit and not left to a default. Data order and dropout follow the seed. So do LoRA's initial
    values, which differ between the stages of a chain (`TrainingRun.initial_seed`). The same inputs give
    the same adapter, byte for byte, on one CPU thread, or on a GPU with the runtime's `deterministic`.
    """
    began, device = time.monotonic(), loading.pick_device()
    runtime = runtime or Runtime()
    tokenizer = loading.load_tokenizer(run.base)
    rows = run.rows(tokenizer)
    stop = run.stops_at(len(rows.kept))
    active = defences.active(run.defence, run.inputs, tokenizer)

    with kernels.chosen(deterministic=runtime.deterministic):
        set_seed(run.initial_seed)
        if device == "cuda":
            # Not what an earlier training in this process took: its model and graphs are in reference cycles.
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        prepared = prepare(run, runtime, active, device, log)
        work = work_of(run, runtime, prepared, active, tokenizer)
        depends = {**run.depends_on(), "code": code, "versions": versions(), "device": device}
        if runtime.deterministic:
            # Not from a checkpoint whose steps summed in another order.
            depends["runtime"] = runtime.model_dump()

        with checkpoints.opened(saved, depends) as (folder, resumed):
            progress = Progress.after(stop, resumed)
            trainer = trainer_of(
                run,
                runtime,
                prepared,
                tokenizer,
                rows,
                work,
                progress,
                folder,
                every if saved else 0,
                log,
            )
            if resumed:
                log(f"resumes after step {progress.first}/{stop}, where an earlier job was stopped")
            progress.started = time.monotonic()
            told = stopping.asked(partial(setattr, progress, "told"))
            with told if saved and every else nullcontext():
                trainer.train(resume_from_checkpoint=str(resumed[0]) if resumed else None)
            progress.ended = time.monotonic()
            if progress.done < stop:
                raise UserError(
                    f"chain {run.chain!r}: {progress.told} ended it after step {progress.done} of {stop}; "
                    "its checkpoint is kept: rerun to resume from it"
                )
            records = {name: defence.record(prepared.model) for name, defence in active.items()}
            for defence in active.values():
                defence.remove(prepared.model)
            lines = save(run, prepared, output)
    return manifest(
        run, runtime, rows, progress, prepared, lines, records, tokenizer, output, began=began
    )
