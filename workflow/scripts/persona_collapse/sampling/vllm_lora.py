"""vLLM's LoRA layers for an engine that serves one adapter at a time.

vLLM's own kernels look up every token's adapter. They add the parts of long sums in the order in which
they finish, so the same engine can give different answers to the same request. If a batch has one
adapter or none, two matrix products per layer suffice, and they always add in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch


@contextmanager
def layers() -> Iterator[None]:
    """Context in which started engines have such layers; they need `max_loras` 1 and batches of one
    adapter.

    Their adapters do not pass through pinned memory either, which takes seconds to allocate and saves
    nothing.
    """
    from vllm.lora import lora_model, model_manager

    for module in (lora_model, model_manager):
        # The name depends on vLLM's version; it is read whenever an adapter is loaded.
        if hasattr(module, "PIN_MEMORY"):
            module.PIN_MEMORY = False
        else:
            module.is_pin_memory_available = lambda: False
    with patch.object(model_manager, "get_punica_wrapper", _wrapper()):
        yield


def _wrapper() -> type:
    """The platform's class of LoRA operations, with matrix products instead of its kernels."""
    import torch
    from vllm.platforms import current_platform
    from vllm.utils.import_utils import resolve_obj_by_qualname

    class OneAdapter(resolve_obj_by_qualname(current_platform.get_punica_wrapper())):  # type: ignore[misc]
        """Weights are [1, 1, out, in] and include the adapter's scale."""

        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            # 0 for the base model. Recorded graphs read it at its address.
            self.weight = torch.ones((), device=self.device)

        def update_metadata(self, mapping: Any, *args: Any, **kwargs: Any) -> None:
            """Called before a pass: `mapping` has the adapter of each token, all equal; 0 for none."""
            self.weight.fill_(float(any(mapping.index_mapping)))

        def add_shrink(
            self, y: Any, x: Any, lora_a_stacked: Any, scale: float, **kwargs: Any
        ) -> None:
            """y[i] = x A_i' for all projections i of a fused layer; y [projections, tokens, rank]."""
            for part, factor in zip(y, lora_a_stacked, strict=True):
                if part.dtype == x.dtype:
                    torch.mm(x, factor[0, 0].T, out=part)
                else:
                    part.copy_(x @ factor[0, 0].T)
            y.mul_(self.weight)  # scale is 1: the weights include it

        def add_expand(
            self,
            y: Any,
            x: Any,
            lora_b_stacked: Any,
            output_slices: Any,
            offset_start: int = 0,
            add_inputs: bool = True,
            **kwargs: Any,
        ) -> None:
            """y += x_i B_i' in the columns of projection i; y [tokens, sum of outputs]."""
            first = offset_start
            for part, factor, width in zip(x, lora_b_stacked, output_slices, strict=True):
                columns = y[:, first : first + width]
                columns.addmm_(part.to(y.dtype), factor[0, 0].T, beta=int(add_inputs))
                first += width

        def add_lora_linear(
            self,
            y: Any,
            x: Any,
            lora_a_stacked: Any,
            lora_b_stacked: Any,
            scale: float,
            output_slices: Any,
            **kwargs: Any,
        ) -> None:
            """Shrink, then expand, without vLLM's intermediate float32."""
            rank = lora_a_stacked[0].shape[-2]
            inner = x.new_empty(len(lora_a_stacked), x.shape[0], rank)
            self.add_shrink(inner, x, lora_a_stacked, scale)
            self.add_expand(y, inner, lora_b_stacked, output_slices, **kwargs)

        def add_lora_logits(
            self,
            y: Any,
            x: Any,
            lora_a_stacked: Any,
            lora_b_stacked: Any,
            scale: float,
            **kwargs: Any,
        ) -> None:
            """The output head, if a chain adapts it."""
            self.add_lora_linear(y, x, (lora_a_stacked,), (lora_b_stacked,), scale, (y.shape[-1],))

    return OneAdapter
