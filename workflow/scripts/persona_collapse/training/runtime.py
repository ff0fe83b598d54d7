"""How a training uses its machine: what changes no result but in roundings, so that no hash knows it."""

from __future__ import annotations

from pydantic import Field, model_validator

from ..settings import Count, Settings


class Runtime(Settings):
    """How a training is computed."""

    accumulation_steps: Count = Field(
        1,
        description="Micro-batches per optimiser step; batch_size must be a multiple. Larger values "
        "need less memory.",
    )
    gradient_checkpointing: bool = Field(False, description="Trade time for memory.")
    padding_free: bool = Field(
        False,
        description="Put the rows of a step into sequences of max_batch_tokens instead of padding "
        "them: the same steps on the same rows, faster on a GPU. Needs accumulation_steps: 1.",
    )
    max_batch_tokens: Count = Field(
        4096,
        description="Most tokens of such a sequence, which has at least one row; this bounds the memory.",
    )
    fused_lora: bool = Field(
        True,
        description="On a GPU, compute a layer with its adapters in few large operations instead of "
        "PEFT's many small ones: the same sums with other rounding.",
    )
    cuda_graphs: bool = Field(
        True,
        description="On a GPU, with padding_free and without gradient_checkpointing or a loss "
        "of one's own: record the kernels of a step once for each size and replay them. The same "
        "sums; random numbers of the dropout differ.",
    )

    deterministic: bool = Field(
        False,
        description="On a GPU, train the same adapter each time, byte for byte, given the same GPU model, "
        "library versions and settings of this block: sums are added up in a fixed order, which takes "
        "longer. On a CPU with one thread, trainings always are.",
    )

    @model_validator(mode="after")
    def _agree(self) -> Runtime:
        if self.padding_free and self.accumulation_steps != 1:
            raise ValueError(
                "padding_free cuts steps into pieces of max_batch_tokens; set accumulation_steps: 1"
            )
        return self
