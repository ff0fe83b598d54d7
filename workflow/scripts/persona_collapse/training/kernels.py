"""Which of PyTorch's kernels a training runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def chosen() -> Iterator[None]:
    """Inside, gradients of attention are those of kernels that keep them finite.

    cuDNN's attention is left out, which PyTorch takes first on GPUs of compute capability 9.0 and
    10.0 (its issue 196678). Under a mask, and with 64 tokens more than a multiple of 128, its backward
    pass multiplies exp(-logsumexp) of each row by 0 for the keys that fill up the last tile. Where a
    row's logsumexp is below -88.7, that is infinity times 0. Some heads of Qwen2.5 are at -4,000,
    all of SmolLM2 above -23.
    """
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
