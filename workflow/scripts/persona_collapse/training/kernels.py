"""Which of PyTorch's kernels a training runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..errors import UserError


@contextmanager
def chosen(*, deterministic: bool = False) -> Iterator[None]:
    """Inside, gradients of attention are those of kernels that keep them finite.

    cuDNN's attention is left out, which PyTorch takes first on GPUs of compute capability 9.0 and
    10.0 (its issue 196678). Under a mask, and with 64 tokens more than a multiple of 128, its backward
    pass multiplies exp(-logsumexp) of each row by 0 for the keys that fill up the last tile. Where a
    row's logsumexp is below -88.7, that is infinity times 0. Some heads of Qwen2.5 are at -4,000,
    all of SmolLM2 above -23.

    deterministic: each kernel also adds up in the same order every time. Attention's backward passes
    (FlashAttention, by rows too, and the memory-efficient one) do so where PyTorch is told to, and a
    recorded step keeps the kernels that it was recorded with. Enter before the first matrix product of
    the process. Raises UserError for an operation that has no such kernel.
    """
    memory: Any = torch.utils.deterministic
    cudnn, filled = torch.backends.cuda.cudnn_sdp_enabled(), memory.fill_uninitialized_memory
    strict = torch.are_deterministic_algorithms_enabled()
    warning = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    if deterministic:
        # cuBLAS reads it when it is first called: work space of a fixed size, as large as PyTorch's own.
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
