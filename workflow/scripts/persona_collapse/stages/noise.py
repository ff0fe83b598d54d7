"""A random adapter as large as another chain's last one: a control of what that one has learnt."""

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
    """noise: put in a random adapter of the shape and size of another chain's last one."""

    of: str = Field(
        description="The chain whose last adapter gives each module's shape and Frobenius norms; the seed "
        "in the chain that has this stage draws it."
    )


@kind("noise")
class Noise(graft.Graft):
    """Nothing is trained: each module's A and update B A are as long as the other adapter's."""

    Settings = Settings
    redraws = True

    def make(self, chain: Chain, files: Mapping[str, Path], folder: Path) -> dict[str, Any]:
        """Draw it, by the chain's seed."""
        from ..models import adapters

        config, tensors = adapters.load(files["weights"].parent)
        adapters.save(config, self.redrawn(tensors, chain.last.seed), folder)
        return {**self.record(files), "seed": chain.last.seed}

    @classmethod
    def redrawn(cls, tensors: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
        """A [rank, in] and B [out, rank] of each module, normally distributed.

        |A| is the other's, and B is scaled so that |B A| is; all Frobenius norms. Of a stage that trained all
        weights: the change of each parameter, as long as the other's.
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
