"""Chooses which of PyTorch's kernels a training runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..errors import UserError


@contextmanager
def chosen(*, deterministic: bool = False) -> Iterator[None]:
    """Context in which attention uses only kernels whose gradients stay finite.

    cuDNN's attention is excluded. PyTorch prefers it on GPUs of compute capability 9.0 and 10.0
    (PyTorch issue 196678). With a mask, and with a length of 64 tokens more than a multiple of 128, its
    backward pass multiplies exp(-logsumexp) of each row by 0 for the padding keys of the last tile. If
    a row's logsumexp is below -88.7, that is infinity times 0. Some heads of Qwen2.5 reach -4,000; all
    heads of SmolLM2 are above -23.

    deterministic: each kernel also sums in the same order every time. The backward passes of attention
    (FlashAttention, also by rows, and the memory-efficient one) do so if PyTorch is told to. A recorded
    step keeps the kernels that it was recorded with. Enter before the first matrix product of the
    process. Raises UserError for an operation without such a kernel.
    """
    memory: Any = torch.utils.deterministic
    cudnn, filled = torch.backends.cuda.cudnn_sdp_enabled(), memory.fill_uninitialized_memory
    strict = torch.are_deterministic_algorithms_enabled()
    warning = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    if deterministic:
        # cuBLAS reads it at its first call: workspace of a fixed size, as large as PyTorch's default.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        # Memory is written before it is read; filling it with NaN first would only cost time.
        memory.fill_uninitialized_memory = False
    try:
        yield
    except RuntimeError as error:
        if not deterministic or "use_deterministic_algorithms" not in str(error):
            raise
        raise UserError(
            f"config: runtime: training: deterministic: {str(error).split('. ')[0]}; set it to false, "
            "or use a model, loss and defences without that operation"
        ) from error
    finally:
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
        torch.use_deterministic_algorithms(strict, warn_only=warning)
        memory.fill_uninitialized_memory = filled
