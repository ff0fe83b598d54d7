"""The model that a training starts from: the base, the earlier stages, and the trainable part."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from peft import (
    LoraConfig,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from torch import Tensor

from .. import adapter_files
from ..models import adapters, fused, loading
from . import graphs
from .defences import Defence
from .run import TrainingRun
from .runtime import Runtime
from .steps import EARLIER, NEW, parameters

#: Devices where fused_lora and cuda_graphs act: elsewhere they would change rounding and save nothing.
FAST_DEVICES = ("cuda",)


Result = tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]


class Prepared(ABC):
    """A model to train, its trainable part, and how to save that part.

    by_rows: does it take flat batches with the rows' bounds (`fused.attend_by_rows`)? used: runtime
    options that are active; both are for GPUs, and recording has further conditions. autocast: dtype of
    forward passes, if it differs from that of the weights.
    """

    def __init__(
        self,
        model: Any,
        *,
        fused_lora: bool = False,
        cuda_graphs: bool = False,
        by_rows: bool = False,
        autocast: torch.dtype | None = None,
    ):
        self.model, self.by_rows, self.autocast = model, by_rows, autocast
        self.used = {"fused_lora": fused_lora, "cuda_graphs": cuda_graphs}

    @property
    @abstractmethod
    def learning(self) -> dict[str, Tensor]:
        """The trainable parameters, by name."""

    @property
    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """The model's state for a checkpoint."""

    @abstractmethod
    def restore(self, state: dict[str, Tensor]) -> None:
        """Resume from a checkpoint's `state`."""

    @abstractmethod
    def result(self, run: TrainingRun) -> Result:
        """What was trained: config and tensors for its folder, and its manifest entries."""


class Adapter(Prepared):
    """A PeftModel whose adapter `NEW` is trained, the config of that adapter, and its modules."""

    def __init__(self, model: Any, lora: LoraConfig, targets: adapters.Modules, **given: Any):
        super().__init__(model, **given)
        self.lora, self.targets = lora, targets

    @property
    def learning(self) -> dict[str, Tensor]:
        """The adapter's parameters."""
        return parameters(self.model, NEW)

    @property
    def state(self) -> dict[str, Tensor]:
        """The adapter's tensors, with PEFT's names."""
        return dict(get_peft_model_state_dict(self.model, adapter_name=NEW))

    def restore(self, state: dict[str, Tensor]) -> None:
        """Resume from a checkpoint's adapter."""
        set_peft_model_state_dict(self.model, state, adapter_name=NEW)

    def result(self, run: TrainingRun) -> Result:
        """An adapter in PEFT's format. Raises UserError if other modules were adapted than were asked for."""
        state = self.state
        adapted = adapters.adapted(state, self.targets)
        config = self.lora.to_dict()
        config.update(
            base_model_name_or_path=loading.path_of(run.base),
            target_modules=adapters.named(self.model, adapted),
            peft_type="LORA",
            task_type="CAUSAL_LM",
            inference_mode=True,
        )
        tensors = {key: value.detach().float().cpu().contiguous() for key, value in state.items()}
        lines = {
            **{key: run.settings[key] for key in ("r", "alpha", "dropout", "use_rslora")},
            "scale": adapters.effective_scale(config),
            # Read from the weights, not from the settings.
            "target_modules": list(adapters.by_block(adapted)),
            "blocks": adapters.by_block(adapted),
            "modules": len(adapted),
            "parameters": sum(tensor.numel() for tensor in tensors.values()),
        }
        return config, tensors, {"lora": lines}


class AllWeights(Prepared):
    """A model whose weights are all trained. They are in 32 bits, or small steps would be rounded away."""

    def __init__(self, model: Any, dtype: str):
        self.dtype = getattr(torch, dtype)
        super().__init__(
            model.requires_grad_(True), autocast=None if dtype == "float32" else self.dtype
        )
        self.before = {name: p.detach().cpu().clone() for name, p in self.learning.items()}

    @property
    def learning(self) -> dict[str, Tensor]:
        """All parameters; a parameter that two layers share is listed once."""
        return dict(self.model.named_parameters())

    @property
    def state(self) -> dict[str, Tensor]:
        """All weights."""
        return {name: parameter.detach() for name, parameter in self.learning.items()}

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor]) -> None:
        """Resume from a checkpoint's weights."""
        for name, parameter in self.learning.items():
            parameter.copy_(state[name])

    def result(self, run: TrainingRun) -> Result:
        """The change of every weight, in the run's dtype: 16 bits are more precise for the change than
        for the weight."""
        config = {
            "peft_type": adapter_files.ALL_WEIGHTS,
            "base_model_name_or_path": loading.path_of(run.base),
        }
        changes = {
            name: (weight.cpu() - self.before[name]).to(self.dtype)
            for name, weight in self.state.items()
        }
        lines = {
            "tensors": len(changes),
            "parameters": sum(change.numel() for change in changes.values()),
        }
        return config, changes, {"all_weights": lines}


def prepare(
    run: TrainingRun,
    runtime: Runtime,
    defences: Mapping[str, Defence],
    device: str,
    log: Callable[[str], None],
) -> Prepared:
    """Load the base, put the adapters on it and install the defences."""
    settings, asked = run.settings, defences.values()
    all_weights, prefix = adapters.split(run.prefix)
    if settings.get("adapter") == "none":
        model = adapters.load_base(run.base, all_weights, "float32", device)
        loading.check_head(model)
        return AllWeights(adapters.apply(model, prefix, merge=True), settings["dtype"])
    fast = device in FAST_DEVICES
    recording = fast and runtime.cuda_graphs and graphs.can_be_recorded(runtime, run.loss, asked)
    model = adapters.load_base(run.base, all_weights, settings["dtype"], device)
    loading.check_head(model)
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
    if prefix and apart:
        model = adapters.attach(model, prefix, name=EARLIER)
        model.add_adapter(NEW, lora)
        # Both adapters are active; only the new one is trained.
        model.base_model.set_adapter([EARLIER, NEW])
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(f".{NEW}." in name)
    else:
        # Merged as in sampling: exact up to rounding, and the prefix then costs nothing.
        model = get_peft_model(adapters.apply(model, prefix, merge=True), lora)
    for defence in asked:
        defence.install(model)
    if fast and runtime.fused_lora:
        fused.fuse(model)
    # Other attention implementations make their masks with operations that cannot be recorded.
    recorded = recording and (by_rows or device == "cpu")
    fuses = fast and runtime.fused_lora
    return Adapter(model, lora, targets, fused_lora=fuses, cuda_graphs=recorded, by_rows=by_rows)
