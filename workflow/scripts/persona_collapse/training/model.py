"""The model that a training starts from: the base, the earlier stages, and a new adapter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from peft import LoraConfig, get_peft_model

from ..models import adapters, fused, loading
from . import graphs
from .defences import Defence
from .run import TrainingRun
from .runtime import Runtime
from .steps import EARLIER, NEW

#: Where fused_lora and cuda_graphs act: elsewhere they would change roundings and save nothing.
FAST_DEVICES = ("cuda",)


@dataclass
class Prepared:
    """A PeftModel whose adapter `NEW` learns, that adapter's config, and the modules that have it.

    by_rows: does it take flat batches with the rows' bounds (`fused.attend_by_rows`)? used: which means
    of the runtime act; both are for GPUs, and recording has conditions of its own.
    """

    model: Any
    lora: LoraConfig
    targets: adapters.Modules
    by_rows: bool
    used: dict[str, bool]


def prepare(
    run: TrainingRun,
    runtime: Runtime,
    defences: Mapping[str, Defence],
    device: str,
    log: Callable[[str], None],
) -> Prepared:
    """Load the base, put the adapters on it and install the defences."""
    settings, asked = run.settings, defences.values()
    fast = device in FAST_DEVICES
    recording = fast and runtime.cuda_graphs and graphs.can_be_recorded(runtime, run.loss, asked)
    model = loading.load_model(run.base, settings["dtype"], device)
    by_rows = recording and fused.attend_by_rows(model)
    targets = adapters.targets(model, settings["target_modules"], settings.get("blocks"))
    for line in adapters.partly(targets, len(loading.blocks_of(model))):
        log(line)
    lora = LoraConfig(
        r=settings["r"],
        lora_alpha=settings["alpha"],
        lora_dropout=settings["dropout"],
        use_rslora=settings["use_rslora"],
        target_modules=list(targets),
        task_type="CAUSAL_LM",
    )
    apart = settings["dtype"] != "float32" or any(defence.asks.adapters for defence in asked)
    if run.prefix and apart:
        model = adapters.attach(model, run.prefix, name=EARLIER)
        model.add_adapter(NEW, lora)
        # Both adapters act; only the new one learns.
        model.base_model.set_adapter([EARLIER, NEW])
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(f".{NEW}." in name)
    else:
        # Exact to rounding, as in sampling, and the prefix costs nothing any more.
        model = get_peft_model(adapters.apply(model, run.prefix, merge=True), lora)
    for defence in asked:
        defence.install(model)
    if fast and runtime.fused_lora:
        fused.fuse(model)
    # The masks of other attentions are made by operations that cannot be recorded.
    used = {
        "fused_lora": fast and runtime.fused_lora,
        "cuda_graphs": recording and (by_rows or device == "cpu"),
    }
    return Prepared(model, lora, targets, by_rows, used)
