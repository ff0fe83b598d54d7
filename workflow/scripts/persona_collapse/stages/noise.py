"""A random adapter of the same size as another chain's last one: a control for what that one has learnt."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from ..chains import Chain
from . import graft, kind

if TYPE_CHECKING:
    from torch import Tensor


class Settings(graft.Settings):
    """noise: insert a random adapter of the shape and size of another chain's last one."""

    of: str = Field(
        description="The chain whose last adapter gives each module's shape and Frobenius norms. "
        "The stage's seed in the chain draws the random adapter."
    )


@kind("noise")
class Noise(graft.Graft):
    """Nothing is trained: each module's A and its update B A have the norms of the other adapter's."""

    Settings = Settings
    redraws = True

    def make(self, chain: Chain, files: Mapping[str, Path], folder: Path) -> dict[str, Any]:
        """Draw the adapter with the stage's seed."""
        from ..models import adapters

        config, tensors = adapters.load(files["weights"].parent)
        adapters.save(config, self.redrawn(tensors, chain.last.seed), folder)
        return {**self.record(files), "seed": chain.last.seed}

    @classmethod
    def redrawn(cls, tensors: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
        """A [rank, in] and B [out, rank] of each module, normally distributed.

        |A| equals the other adapter's, and B is scaled so that |B A| does too; all are Frobenius norms.
        For a stage that trained all weights: a random change of each parameter, with the norm of the
        other's change.
        """
        import torch

        generator = torch.Generator().manual_seed(seed)
        drawn: dict[str, Tensor] = {}
        for name in sorted(name for name in tensors if ".lora_" not in name):
            change = tensors[name].double()
            new = torch.randn(change.shape, generator=generator, dtype=change.dtype)
            drawn[name] = (new * (change.norm() / new.norm())).to(tensors[name].dtype)
        for name in sorted(name for name in tensors if ".lora_A." in name):
            other = name.replace(".lora_A.", ".lora_B.")
            a, b = tensors[name].double(), tensors[other].double()
            new_a = torch.randn(a.shape, generator=generator, dtype=a.dtype)
            new_b = torch.randn(b.shape, generator=generator, dtype=b.dtype)
            new_a *= a.norm() / new_a.norm()
            new_b *= (b @ a).norm() / (new_b @ new_a).norm()
            drawn[name] = new_a.to(tensors[name].dtype)
            drawn[other] = new_b.to(tensors[other].dtype)
        return drawn
