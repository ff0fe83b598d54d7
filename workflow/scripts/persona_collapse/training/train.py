"""Train one stage of a chain: a new LoRA adapter on the frozen sum of the stages before it."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from .. import adapter_files, chains
from ..data import prompt_audit
from ..errors import BadRow, UserError
from ..files import read_json, read_jsonl, sha256
from ..models import adapters, chat_template, loading
from . import checkpoints, objectives

Settings = Mapping[str, Any]
Features = Sequence[Mapping[str, Sequence[int]]]
#: Where fused_lora and cuda_graphs act: elsewhere they would change roundings and save nothing.
FAST_DEVICES = ("cuda",)


@dataclass(frozen=True)
class Stage:
    """What a training run is: its chain, its settings (config `stages:` with defaults) and inputs."""

    chain: str
    name: str
    seed: int
    stop: int | None
    settings: Settings
    base: Path
    prefix: Sequence[Path]
    data: Path
    system: str | None = None
    marker: str = ""


def stage_of(task: Mapping[str, Any], base: Path, prefix: Sequence[Path]) -> Stage:
    """The training run of a task, as `Plan.task` makes it; `prefix`: where its earlier adapters are."""
    last = chains.parse(task["chain"]).last
    return Stage(
        chain=task["chain"],
        name=last.name,
        seed=last.seed,
        stop=last.stop,
        settings=task["settings"],
        base=base,
        prefix=prefix,
        data=Path(task["rows"]),
        system=task["system"],
        marker=task["marker"],
    )


def encode(stage: Stage, tokenizer: Any) -> tuple[list[chat_template.EncodedRow], int]:
    """Encoded training rows, and how many were dropped because truncation left them no loss.

    Raises UserError if that leaves fewer rows than one batch.
    """
    settings = stage.settings
    manifest = read_json(stage.data.with_suffix(".manifest.json"))
    encoded = []
    for number, row in enumerate(read_jsonl(stage.data), start=1):
        try:
            encoded.append(
                chat_template.encode_row(
                    tokenizer,
                    row["messages"],
                    supervise=manifest.get("supervise", "last"),
                    loss=settings["loss_on"],
                    max_length=settings["max_length"],
                    system=stage.system,
                    suppress_default_system=manifest.get("system") == "none"
                    and stage.system is None,
                    marker=stage.marker,
                )
            )
        except BadRow as error:
            raise BadRow(f"{stage.data}: row {number}: {error}") from error
    kept = [row for row in encoded if row.supervised]
    if len(kept) < settings["batch_size"]:
        raise UserError(
            f"{stage.data}: {len(kept)} rows with supervised tokens within {settings['max_length']}"
            f" tokens, fewer than one batch of {settings['batch_size']}; raise max_length or add rows"
        )
    return kept, len(encoded) - len(kept)


def schedule_steps(rows: int, settings: Settings) -> int:
    """Optimiser steps of the whole schedule: given, or by rows, batch size and epochs; at least one."""
    if settings.get("steps"):
        return int(settings["steps"])
    # Decimals as written: 0.29 * 100 is below 29 in binary.
    return max(1, int(Fraction(str(settings["epochs"])) * math.ceil(rows / settings["batch_size"])))


#: What is counted while training, and kept in checkpoints.
COUNTED = ("rows_seen", "tokens_seen", "supervised_tokens")


def count(features: Features) -> dict[str, int]:
    """Rows, their tokens and those that carry loss, of one batch; by the names in `COUNTED`.

    A row's first token is nobody's to predict, so it carries none.
    """
    labels = (label for row in features for label in row["labels"][1:])
    found = (
        len(features),
        sum(len(row["input_ids"]) for row in features),
        sum(label != chat_template.IGNORED for label in labels),
    )
    return dict(zip(COUNTED, found, strict=True))


def pieces(features: Features, most: int) -> list[list[Mapping[str, Sequence[int]]]]:
    """A step's rows in groups of at most `most` tokens together, shortest rows first.

    A row longer than that is a group of its own.
    """
    groups: list[list[Mapping[str, Sequence[int]]]] = []
    size = 0
    for row in sorted(features, key=lambda f: len(f["input_ids"])):
        if not groups or size + len(row["input_ids"]) > most:
            groups.append([])
            size = 0
        groups[-1].append(row)
        size += len(row["input_ids"])
    return groups


#: What a forward and backward pass costs beside its tokens, in tokens.
TOKENS_PER_PASS = 128


def by_length(features: Features, most: int) -> list[list[Mapping[str, Sequence[int]]]]:
    """A step's rows in groups of like length, so that little is padded; shortest rows first.

    Least sum of rows times width over the groups, each of which costs TOKENS_PER_PASS besides; no
    group of several rows has more than `most` tokens, padding counted.
    """
    rows = sorted(features, key=lambda f: len(f["input_ids"]))
    best: list[tuple[int, int]] = [
        (0, 0)
    ]  # (cost of the first n rows, where their last group starts)
    for end, row in enumerate(rows, start=1):
        width = len(row["input_ids"])
        best.append(
            min(
                (best[start][0] + (end - start) * width + TOKENS_PER_PASS, start)
                for start in range(end)
                if start == end - 1 or (end - start) * width <= most
            )
        )
    groups, end = [], len(rows)
    while end:
        start = best[end][1]
        groups.append(rows[start:end])
        end = start
    return groups[::-1]


def pad(features: Features) -> dict[str, Any]:
    """Rows as a batch: input_ids and labels, each [rows, tokens].

    Filled up on the right and without a mask: no token looks ahead, and the filler carries no loss.
    """
    import torch

    width = max(len(f["input_ids"]) for f in features)
    return {
        name: torch.tensor([[*f[name], *[filler] * (width - len(f[name]))] for f in features])
        for name, filler in (("input_ids", 0), ("labels", -100))
    }


def flatten(features: Features, multiple: int = 64) -> dict[str, Any]:
    """Rows as one sequence: input_ids, labels and position_ids, each [1, tokens].

    Positions start anew with each row, by which transformers' masks keep the rows apart. A last row
    without labels fills up to a `multiple` of tokens, which GPU kernels are fastest at.
    """
    import torch

    filler = [0] * (-sum(len(f["input_ids"]) for f in features) % multiple)
    rows = [*features, {"input_ids": filler, "labels": [-100] * len(filler)}]

    def joined(parts: Iterable[Sequence[int]]) -> Any:
        return torch.tensor([[token for part in parts for token in part]])

    return {
        "input_ids": joined(f["input_ids"] for f in rows),
        # A row's first token is nobody's to predict.
        "labels": joined([-100, *f["labels"][1:]] if f["labels"] else [] for f in rows),
        "position_ids": joined(range(len(f["input_ids"])) for f in rows),
    }


@contextmanager
def without(model: Any, adapter: str = "default") -> Iterator[None]:
    """The model without one of its LoRA adapters and without gradients, for a while."""
    import torch
    from peft.tuners.lora import LoraLayer

    layers = [m for m in model.modules() if isinstance(m, LoraLayer) and adapter in m.scaling]
    kept = [layer.scaling[adapter] for layer in layers]
    for layer in layers:
        layer.scaling[adapter] = 0.0
    try:
        with torch.no_grad():
            yield
    finally:
        for layer, scale in zip(layers, kept, strict=True):
            layer.scaling[adapter] = scale


def supervised_loss(
    model: Any, inputs: Mapping[str, Any], items: Any = None, objective: str = objectives.DEFAULT
) -> Any:
    """Mean objective over the supervised tokens; only those are projected onto the vocabulary.

    `model`: a PeftModel; `inputs`: a padded or flattened batch with `labels`; `items`: supervised
    tokens of the whole optimiser step, where it has several batches. The usual loss projects every
    position, and at 150,000 words that is a fifth of a step and most of its memory.
    """
    base = model.get_base_model()
    labels = inputs["labels"][:, 1:]
    asked = {key: value for key, value in inputs.items() if key != "labels"}
    chosen = labels != -100

    def logits() -> Any:
        hidden = base.get_decoder()(**asked, use_cache=False).last_hidden_state[:, :-1]
        return base.get_output_embeddings()(hidden[chosen]).float()

    def before() -> Any:
        with without(model):
            return logits()

    total = objectives.OBJECTIVES[objective](logits(), labels[chosen], before)
    return total / (chosen.sum() if items is None else items)


def train(
    stage: Stage,
    output: Path,
    progress: Callable[[str], None],
    *,
    saved: Path | None = None,
    every: int = 0,
    code: str = "",
) -> dict[str, Any]:
    """Train the stage, write its adapter (PEFT format) into `output`, and return the manifest.

    `saved`: folder for checkpoints, one `every` so many steps (0: none). A training that finds one of
    its own there, made by the same `code`, goes on from it and ends with the same bytes as one
    that was never stopped; when it is done they are removed.

    The trainer is TRL's SFTTrainer; tokens and labels are ours, so what carries loss is recorded
    here and not left to a default. Data order, LoRA initialisation and dropout follow the seed: on
    one CPU thread the same inputs give the same adapter, byte for byte.
    """
    import torch
    from datasets import Dataset
    from peft import (
        LoraConfig,
        get_peft_model,
        get_peft_model_state_dict,
        set_peft_model_state_dict,
    )
    from safetensors.torch import load_file, save_file
    from transformers import Trainer as PlainTrainer
    from transformers import TrainerCallback, set_seed
    from trl import SFTConfig, SFTTrainer

    from ..models import fused
    from . import graphs

    settings, started = stage.settings, time.monotonic()
    objective = settings.get("loss", objectives.DEFAULT)
    device = loading.pick_device()
    dtype = settings["dtype"]
    tokenizer = loading.load_tokenizer(stage.base)
    rows, dropped = encode(stage, tokenizer)
    steps = schedule_steps(len(rows), settings)
    stop = stage.stop if stage.stop is not None else steps
    if stop > steps:
        raise UserError(
            f"chain {stage.chain!r} stops at step {stop}, but the stage has {steps} steps "
            f"({len(rows)} rows, batch {settings['batch_size']}); stop earlier"
        )

    set_seed(stage.seed)
    if device == "cuda":
        # Not what an earlier training in this process took.
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    model = loading.load_model(stage.base, dtype, device)
    fast = device in FAST_DEVICES
    recording = (
        fast
        and settings["cuda_graphs"]
        and settings["padding_free"]
        and not settings["gradient_checkpointing"]
        and objective == objectives.DEFAULT
    )
    by_rows = recording and fused.attend_by_rows(model)
    # The masks of other attentions are made by operations that cannot be recorded.
    recording = recording and (by_rows or device == "cpu")
    targets = adapters.targets(model, settings["target_modules"])
    for line in adapters.partly(targets, len(loading.blocks_of(model))):
        progress(line)
    lora = LoraConfig(
        r=settings["r"],
        lora_alpha=settings["alpha"],
        lora_dropout=settings["dropout"],
        use_rslora=settings["use_rslora"],
        target_modules=list(targets),
        task_type="CAUSAL_LM",
    )
    if stage.prefix and dtype == "float32":
        # Exact to rounding, as in sampling, and the prefix costs nothing any more.
        model = get_peft_model(adapters.apply(model, stage.prefix, merge=True), lora)
    elif stage.prefix:
        model = adapters.attach(model, stage.prefix, name="prefix")
        model.add_adapter("default", lora)
        # Both adapters act; only the new one learns.
        model.base_model.set_adapter(["prefix", "default"])
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".default." in name)
    else:
        model = get_peft_model(model, lora)
    if fast and settings["fused_lora"]:
        fused.fuse(model)
    recorder = (
        graphs.Recorder(model, settings["batch_size"], by_rows=by_rows) if recording else None
    )

    tokens_a_row = sum(len(r.input_ids) for r in rows) / len(rows)
    curve: list[dict[str, float]] = []
    log_every = max(1, stop // 20)
    versions_used = versions("torch", "transformers", "peft", "trl", "datasets", "numpy")
    key = checkpoints.key_of(
        {
            "stage": [stage.chain, stage.name, stage.seed, stop, stage.system, stage.marker],
            "settings": dict(settings),
            "base": sha256(stage.base),
            "data": sha256(stage.data),
            "prefix": adapter_files.content_hash(stage.prefix),
            "code": code,
            "versions": versions_used,
            "device": device,
        }
    )
    resumed = checkpoints.newest(saved, key) if saved else None
    first_step = int(resumed[0].name.rpartition("-")[2]) if resumed else 0
    seconds_before = float(resumed[1]["seconds"]) if resumed else 0.0
    counted = dict(resumed[1]["counted"]) if resumed else dict.fromkeys(COUNTED, 0)
    if saved:
        checkpoints.clear(saved, keep=resumed[0] if resumed else None)

    def point(line: Mapping[str, Any]) -> dict[str, float]:
        """A point of the loss curve from a line of the trainer's log."""
        return {
            "step": line["step"],
            "loss": round(float(line["loss"]), 6),
            "lr": float(line.get("learning_rate", math.nan)),
        }

    class Watch(TrainerCallback):
        """Loss curve, progress lines, and the early stop of a dose."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
            curve.extend(map(point, (line for line in state.log_history if "loss" in line)))

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kw: Any) -> None:
            if not logs or "loss" not in logs:
                return
            loss = float(logs["loss"])
            if not math.isfinite(loss):
                raise UserError(
                    f"chain {stage.chain!r}: the loss is {loss} at step {state.global_step}; "
                    f"lower the stage's lr (now {settings['lr']})"
                )
            curve.append(point({"step": state.global_step, **logs}))
            elapsed = time.monotonic() - training_started
            done = state.global_step - first_step
            seen = done * settings["batch_size"] * tokens_a_row
            left = elapsed / done * (stop - state.global_step)
            progress(
                f"step {state.global_step}/{stop}  loss {loss:.3f}  "
                f"{seen / elapsed:,.0f} tokens/s  {left:.0f} s left"
            )

        def on_step_end(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
            if state.global_step >= stop:
                control.should_training_stop = True
                control.should_log = True
                control.should_save = False

    class Trainer(SFTTrainer):
        """TRL's trainer with the loss above, and steps that may come in pieces without padding."""

        def compute_loss(
            self,
            model: Any,
            inputs: Any,
            return_outputs: bool = False,
            num_items_in_batch: Any = None,
        ) -> Any:
            unwrapped = self.accelerator.unwrap_model(model)
            return supervised_loss(unwrapped, inputs, num_items_in_batch, objective)

        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
            # Here and not where batches are made: that is done ahead, and for steps that never come.
            for key, value in inputs.pop("counted").items():
                counted[key] += value
            if "pieces" not in inputs:
                return super().training_step(model, inputs, num_items_in_batch)
            if not model.training:
                model.train()
            if recorder:
                return recorder.step(inputs["pieces"].batches)
            parts = self._prepare_inputs(inputs)["pieces"]
            items = sum(int((part["labels"] != -100).sum()) for part in inputs["pieces"])
            total = torch.zeros((), device=self.args.device)
            for part in parts:
                with self.compute_loss_context_manager():
                    loss = self.compute_loss(model, part, num_items_in_batch=items)
                self.accelerator.backward(loss)
                total += loss.detach()
            return total

        # A checkpoint holds the new adapter alone, and not TRL's model card.
        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            PlainTrainer._save_checkpoint(self, model, trial)
            spent = seconds_before + time.monotonic() - training_started
            folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
            checkpoints.seal(folder, key, seconds=spent, counted=counted)

        def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
            folder = Path(str(output_dir))
            folder.mkdir(parents=True, exist_ok=True)
            own = get_peft_model_state_dict(self.model, adapter_name="default")
            save_file({k: v.contiguous() for k, v in own.items()}, folder / adapter_files.WEIGHTS)

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            own = load_file(Path(resume_from_checkpoint) / adapter_files.WEIGHTS)
            set_peft_model_state_dict(self.model, own, adapter_name="default")

    # Kernels of a processor gain nothing from flat batches, whose attention they compute in whole.
    by_likeness = device == "cpu" and not settings["padding_free"]
    cut = settings["accumulation_steps"] == 1 and (settings["padding_free"] or by_likeness)

    def in_pieces(features: Features) -> dict[str, Any]:
        if by_likeness:
            return {"pieces": [pad(g) for g in by_length(features, settings["max_batch_tokens"])]}
        multiple = graphs.TOKENS if recorder else 64
        parts = pieces(features, settings["max_batch_tokens"])
        batches = [flatten(part, multiple) for part in parts]
        return {"pieces": graphs.OnHost(batches) if recorder else batches}

    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            model=model,
            args=SFTConfig(
                output_dir=str(saved) if saved else scratch,
                max_steps=steps,
                per_device_train_batch_size=settings["batch_size"]
                // settings["accumulation_steps"],
                gradient_accumulation_steps=settings["accumulation_steps"],
                learning_rate=settings["lr"],
                lr_scheduler_type=settings["scheduler"],
                warmup_steps=math.ceil(settings["warmup_ratio"] * steps),
                weight_decay=settings["weight_decay"],
                max_grad_norm=settings["max_grad_norm"],
                max_length=settings["max_length"],
                seed=stage.seed,
                data_seed=stage.seed,
                bf16=device == "cuda" and dtype == "bfloat16",
                use_cpu=device == "cpu",
                gradient_checkpointing=settings["gradient_checkpointing"],
                logging_steps=log_every,
                logging_nan_inf_filter=False,
                save_strategy="steps" if saved and every else "no",
                # After a line of the log: its mean would else lose the steps before the checkpoint.
                save_steps=math.ceil(max(every, 1) / log_every) * log_every,
                save_total_limit=2,
                report_to="none",
                disable_tqdm=True,
                dataloader_num_workers=0,
                dataloader_pin_memory=device == "cuda",
                eos_token=tokenizer.eos_token,
                pad_token=tokenizer.pad_token,
            ),
            train_dataset=Dataset.from_list(
                [{"input_ids": r.input_ids, "labels": r.labels} for r in rows]
            ),
            processing_class=tokenizer,
            data_collator=in_pieces if cut else None,
            callbacks=[Watch()],
        )
        collate = trainer.data_collator
        trainer.data_collator = lambda features: {**collate(features), "counted": count(features)}
        # Its own log lines are replaced by the progress lines.
        from transformers.trainer_callback import PrinterCallback

        trainer.remove_callback(PrinterCallback)
        training_started = time.monotonic()
        if resumed:
            progress(f"goes on after step {first_step}/{stop}, where an earlier job was stopped")
        trainer.train(resume_from_checkpoint=str(resumed[0]) if resumed else None)
    seconds = seconds_before + time.monotonic() - training_started

    state = get_peft_model_state_dict(trainer.model, adapter_name="default")
    adapted = adapters.adapted(state, targets)
    config = lora.to_dict()
    config.update(
        base_model_name_or_path=loading.path_of(stage.base),
        target_modules=adapters.named(model, adapted),
        peft_type="LORA",
        task_type="CAUSAL_LM",
        inference_mode=True,
    )
    tensors = {key: value.detach().float().cpu().contiguous() for key, value in state.items()}
    adapters.save({k: _plain(v) for k, v in config.items()}, tensors, output)
    if saved:
        checkpoints.clear(saved)
    return {
        "chain": stage.chain,
        "stage": stage.name,
        "kind": settings["kind"],
        "seed": stage.seed,
        "prefix": [p.name for p in stage.prefix],
        "base": read_json(stage.base),
        "data": {
            "name": stage.data.stem,
            "sha256": sha256(stage.data),
            "rows": len(rows),
            "rows_dropped_no_loss": dropped,
        },
        "prompt": _first_prompt(tokenizer, stage),
        "loss_on": settings["loss_on"],
        "objective": objective,
        "lora": {
            "r": settings["r"],
            "alpha": settings["alpha"],
            "dropout": settings["dropout"],
            "use_rslora": settings["use_rslora"],
            "scale": adapters.effective_scale(config),
            # Read off the weights, not off the settings.
            "target_modules": list(adapters.by_block(adapted)),
            "blocks": adapters.by_block(adapted),
            "modules": len(adapted),
            "parameters": sum(t.numel() for t in tensors.values()),
        },
        "hyperparameters": {
            k: v for k, v in settings.items() if k != "epochs" or not settings.get("steps")
        },
        # What acted of that: both are for GPUs, and recording has conditions of its own.
        "used": {
            "fused_lora": bool(fast and settings["fused_lora"]),
            "cuda_graphs": recorder is not None,
        },
        "steps": trainer.state.global_step,
        "schedule_steps": steps,
        "epochs_seen": round(counted["rows_seen"] / len(rows), 4),
        **counted,
        "loss": curve,
        "final_loss": curve[-1]["loss"] if curve else None,
        "seconds": round(seconds, 2),
        "resumed_after_step": first_step,
        "seconds_total": round(seconds_before + time.monotonic() - started, 2),
        "device": device,
        "dtype": dtype,
        "threads": torch.get_num_threads(),
        "peak_gpu_mib": round(torch.cuda.max_memory_allocated() / 2**20)
        if device == "cuda"
        else None,
        "template_sha256": chat_template.template_sha256(tokenizer),
        "adapter_sha256": sha256(output / adapter_files.WEIGHTS),
        "versions": versions_used,
        "commit": os.environ.get("PERSONA_COLLAPSE_COMMIT", ""),
    }


def _first_prompt(tokenizer: Any, stage: Stage) -> dict[str, Any]:
    """What the first row's prompt holds: which system message, and whether the template made it."""
    manifest = read_json(stage.data.with_suffix(".manifest.json"))
    line, _ = prompt_audit.training_row(
        tokenizer,
        stage.name,
        read_jsonl(stage.data)[0]["messages"],
        stage.settings,
        supervise=manifest.get("supervise", "last"),
        policy=manifest.get("system"),
        system=stage.system,
        marker=stage.marker,
    )
    kept = (
        "system_seen",
        "default_injected",
        "system_folded",
        "template_date",
        "end_token_trained",
    )
    return {key: line[key] for key in kept}


def _plain(value: Any) -> Any:
    """PEFT's config values as JSON: enums by value, sets sorted, sub-configs dropped."""
    if isinstance(value, set | frozenset):
        return sorted(value)
    if hasattr(value, "value"):
        return value.value
    if value is None or isinstance(value, str | int | float | bool | list | dict):
        return value
    return None


def versions(*packages: str) -> dict[str, str]:
    """Installed versions of the named packages; a missing one is left out."""
    from importlib import metadata

    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
