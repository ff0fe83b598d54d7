"""TRL's trainer with this workflow's steps, checkpoints and log lines."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import Trainer as PlainTrainer
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig, SFTTrainer

from .. import adapter_files
from ..errors import UserError
from ..models import fused
from . import checkpoints, graphs, losses
from .batches import COUNTED, Batch, Draws, count, cut
from .defences import Defence
from .model import Prepared
from .run import Rows, TrainingRun
from .runtime import Runtime
from .steps import OWN, Batches, Objective, Stepper


class Steps(Protocol):
    """Protocol of what computes a step: `steps.Stepper` or `graphs.Recorder`."""

    def step(self, batches: Batches) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss (including the penalty) and penalty of a step; leaves gradients in the parameters."""


@dataclass
class Progress:
    """Progress of a training. The part done by earlier jobs comes from their last checkpoint.

    done: finished steps; earlier jobs did those up to `first`. curve: points of the loss curve.
    pending: penalty, loss and gradient norm of the steps since the last point. started, ended: when
    this job began and finished its steps. told: the signal that asked it to end before `stop`.
    """

    stop: int
    first: int = 0
    seconds_before: float = 0.0
    counted: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTED, 0))
    curve: list[dict[str, float]] = field(default_factory=list)
    pending: list[list[float]] = field(default_factory=list)
    done: int = 0
    started: float = field(default_factory=time.monotonic)
    ended: float | None = None
    told: str = ""

    @staticmethod
    def after(stop: int, resumed: tuple[Path, Mapping[str, Any]] | None) -> Progress:
        """Progress at the start, or after a checkpoint."""
        if resumed is None:
            return Progress(stop)
        path, mark = resumed
        return Progress(
            stop,
            checkpoints.step_of(path),
            float(mark["seconds"]),
            dict(mark["counted"]),
            pending=mark["pending"],
        )

    @property
    def seconds(self) -> float:
        """Seconds spent on steps, including those of earlier jobs."""
        return self.seconds_before + (self.ended or time.monotonic()) - self.started

    @property
    def log_every(self) -> int:
        """Steps between two points of the loss curve."""
        return max(1, self.stop // 20)


def point(line: Mapping[str, Any]) -> dict[str, float]:
    """A point of the loss curve from a line of the trainer's log; `loss` includes the penalty."""
    loss, penalty = float(line["loss"]), float(line["penalty"])
    return {
        "step": line["step"],
        "loss": round(loss, 6),
        "task_loss": round(loss - penalty, 6),
        "penalty": round(penalty, 6),
        "lr": float(line.get("learning_rate", math.nan)),
    }


class Watch(TrainerCallback):
    """Loss curve, progress lines, and the early stop of a dose."""

    def __init__(
        self, run: TrainingRun, progress: Progress, tokens: float, log: Callable[[str], None]
    ):
        self.run, self.progress, self.log = run, progress, log
        self.tokens_per_step = tokens * run.settings["batch_size"]

    def on_train_begin(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        """State of the curve for a checkpoint."""
        self.progress.curve.extend(point(line) for line in state.log_history if "loss" in line)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kw: Any) -> None:
        """Add one point and log one line."""
        if not logs or "loss" not in logs:
            return
        progress, loss = self.progress, float(logs["loss"])
        progress.curve.append(point({"step": state.global_step, **logs}))
        elapsed = time.monotonic() - progress.started
        done = state.global_step - progress.first
        left = elapsed / done * (progress.stop - state.global_step)
        penalty = f", {logs['penalty']:.3f} of it penalty" if logs["penalty"] else ""
        self.log(
            f"step {state.global_step}/{progress.stop}  loss {loss:.3f}{penalty}  "
            f"{done * self.tokens_per_step / elapsed:,.0f} tokens/s  {left:.0f} s left"
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        """Stop at the chain's step, or save and stop here on a signal."""
        self.progress.done = state.global_step
        if state.global_step >= self.progress.stop:
            control.should_training_stop = True
            control.should_log = True
            control.should_save = False
        elif self.progress.told:
            control.should_training_stop = control.should_save = True


class AfterStep(TrainerCallback):
    """Runs defences after each optimiser step."""

    def __init__(self, work: Work):
        self.work = work

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        """Let each defence change the new adapter."""
        for defence in self.work.defences:
            defence.after_step(self.work.learning)


@dataclass
class OnHost:
    """A step's batches in main memory, wrapped in an object so that accelerate does not move them."""

    batches: Sequence[Batch]


@dataclass
class Work:
    """How each step is computed.

    cut: makes batches from a step's rows. draws: rows that defences ask for, by source. defences:
    active defences, which may change the `learning` parameters and their gradients.
    """

    steps: Steps
    cut: Callable[..., list[Batch]]
    draws: Mapping[str, Draws]
    defences: Sequence[Defence]
    learning: Mapping[str, torch.Tensor]


def work_of(
    run: TrainingRun,
    runtime: Runtime,
    prepared: Prepared,
    defences: Mapping[str, Defence],
    tokenizer: Any,
) -> Work:
    """The steps of a run, recorded or not, with rows split as the runtime settings say."""
    size, device = run.settings["batch_size"], prepared.model.device.type
    objective = Objective(prepared.model, run.loss, defences)
    draws = {}
    for source in objective.sources:
        name, _, file = source.partition(".")
        if source != OWN:
            groups, share = defences[name].groups(), Fraction(str(defences[name].asks.share))
            if groups is None:
                rows = run.other_rows(tokenizer, defences[name].files[file]).features
                draws[source] = Draws([[row] for row in rows], size * share / (1 - share), run.seed)
            else:
                draws[source] = Draws(groups, 1, run.seed, whole=True)
    steps: Steps = Stepper(objective, device, prepared.autocast)
    multiple = 64
    if prepared.used["cuda_graphs"]:
        most = max([size, *(drawn.most for drawn in draws.values())])
        steps = graphs.Recorder(objective, most, by_rows=prepared.by_rows)
        multiple = fused.TOKENS
    cutting = partial(cut, runtime=runtime, device=device, multiple=multiple)
    return Work(steps, cutting, draws, list(defences.values()), prepared.learning)


def check(run: TrainingRun, steps: torch.Tensor, first: int) -> None:
    """Raise UserError for the first step whose loss or gradient is not a finite number.

    steps: penalty, loss (including the penalty) and gradient norm, [steps, 3]. first: number of the
    first step.
    """
    bad = (~steps.isfinite()).nonzero().tolist()
    if not bad:
        return
    step, kind = bad[0]
    own = [f"the loss {run.loss}"] if run.loss != losses.DEFAULT else []
    own += [f"the defence {name}" for name in run.defence]
    remedy = f", or check {' and '.join(own)} for a logarithm, root or division by 0" if own else ""
    raise UserError(
        f"chain {run.chain!r}: the {('penalty', 'loss', 'gradient')[kind]} is {steps[step, kind]:.0f} at "
        f"step {first + step}; lower the stage's lr (now {run.settings['lr']}){remedy}"
    )


class Trainer(SFTTrainer):
    """TRL's trainer with our own loss, gradients and checkpoint content."""

    def __init__(
        self, run: TrainingRun, prepared: Prepared, work: Work, progress: Progress, **given: Any
    ):
        self.run, self.prepared, self.work, self.progress = run, prepared, work, progress
        super().__init__(model=prepared.model, data_collator=self._collate, **given)
        # Penalty, loss and gradient norm of each step since the last log line.
        self._steps = list(torch.tensor(progress.pending, device=self.args.device))
        # Its own log lines are replaced by the progress lines.
        self.remove_callback(PrinterCallback)

    def _collate(self, rows: Sequence[Any]) -> dict[str, Any]:
        return {"own": OnHost(self.work.cut(rows)), "counted": count(rows)}

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        """One optimiser step's loss and gradients."""
        # Counted here, because batches are also made ahead for steps that never run.
        for key, value in inputs["counted"].items():
            self.progress.counted[key] += value
        if not model.training:
            model.train()
        batches = {OWN: inputs["own"].batches}
        for source, draws in self.work.draws.items():
            rows = draws.of(self.state.global_step)
            batches[source] = self.work.cut(rows, whole=draws.whole)
        loss, penalty = self.work.steps.step(batches)
        for defence in self.work.defences:
            defence.project(self.work.learning)
        gradients = [p.grad for p in self.work.learning.values() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        # Checked with the next log line, because reading it makes the host wait for the GPU.
        self._steps.append(torch.stack([penalty, loss, norm]))
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the mean loss and penalty of the steps since the last line, including those of an earlier
        job.

        Raises UserError if loss or gradient was not finite in any of them.
        """
        if "loss" in logs:
            steps = torch.stack(self._steps).cpu()
            self._steps.clear()
            check(self.run, steps, self.state.global_step - len(steps) + 1)
            logs["penalty"], logs["loss"] = steps[:, :2].mean(0).tolist()
        super().log(logs, start_time)

    # A checkpoint holds only what is trained, without TRL's model card.
    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        PlainTrainer._save_checkpoint(self, model, trial)
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        checkpoints.seal(
            folder,
            seconds=self.progress.seconds,
            counted=self.progress.counted,
            pending=[step.tolist() for step in self._steps],
        )

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(str(output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        own = {key: value.contiguous() for key, value in self.prepared.state.items()}
        save_file(own, folder / adapter_files.WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.prepared.restore(load_file(Path(resume_from_checkpoint) / adapter_files.WEIGHTS))


def trainer_of(
    run: TrainingRun,
    runtime: Runtime,
    prepared: Prepared,
    tokenizer: Any,
    rows: Rows,
    work: Work,
    progress: Progress,
    folder: Path,
    every: int,
    log: Callable[[str], None],
) -> Trainer:
    """The trainer of a run; it writes a checkpoint into `folder` `every` this many steps (0: none)."""
    settings, log_every = run.settings, progress.log_every
    device = prepared.model.device.type
    return Trainer(
        run,
        prepared,
        work,
        progress,
        args=SFTConfig(
            output_dir=str(folder),
            max_steps=run.steps(len(rows.kept)),
            per_device_train_batch_size=settings["batch_size"],
            gradient_accumulation_steps=1,  # `batches.cut` splits a step
            learning_rate=settings["lr"],
            lr_scheduler_type=settings["scheduler"],
            warmup_steps=math.ceil(settings["warmup_ratio"] * run.steps(len(rows.kept))),
            weight_decay=settings["weight_decay"],
            max_grad_norm=settings["max_grad_norm"],
            max_length=settings["max_length"],
            seed=run.seed,
            data_seed=run.seed,
            bf16=device == "cuda" and settings["dtype"] == "bfloat16",
            use_cpu=device == "cpu",
            gradient_checkpointing=runtime.gradient_checkpointing,
            logging_steps=log_every,
            logging_nan_inf_filter=False,
            save_strategy="steps" if every else "no",
            save_steps=max(every, 1),
            save_total_limit=2,
            report_to="none",
            disable_tqdm=True,
            dataloader_num_workers=0,
            dataloader_pin_memory=device == "cuda",
            eos_token=tokenizer.eos_token,
        ),
        train_dataset=Dataset.from_list(rows.features),
        processing_class=tokenizer,
        callbacks=[AfterStep(work), Watch(run, progress, rows.tokens, log)],
    )
