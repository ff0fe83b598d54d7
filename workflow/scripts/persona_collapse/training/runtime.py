"""Runtime settings of a training. They change results only by rounding, so no hash includes them."""

from __future__ import annotations

from pydantic import Field, model_validator

from ..settings import Count, Settings


class Runtime(Settings):
    """How trainings are computed."""

    accumulation_steps: Count = Field(
        1,
        description="Micro-batches per optimiser step; batch_size must be a multiple. Larger values "
        "need less memory.",
    )
    gradient_checkpointing: bool = Field(False, description="Trade time for memory.")
    padding_free: bool = Field(
        False,
        description="Concatenate the rows of a step into sequences of max_batch_tokens instead of "
        "padding them: the same steps on the same rows, faster on a GPU. Needs accumulation_steps: 1.",
    )
    max_batch_tokens: Count = Field(
        4096,
        description="Largest number of tokens in such a sequence, which has at least one row; this "
        "bounds the memory.",
    )
    fused_lora: bool = Field(
        True,
        description="On a GPU, compute a layer with its adapters in few large operations instead "
        "of PEFT's many small ones: the same result up to rounding.",
    )
    cuda_graphs: bool = Field(
        True,
        description="On a GPU, with padding_free and without gradient_checkpointing or a custom "
        "loss: record the kernels of a step once per size and replay them. The same result, except "
        "that the random numbers of dropout differ.",
    )

    deterministic: bool = Field(
        False,
        description="On a GPU, train the same adapter each time, byte for byte, given the same GPU "
        "model, library versions and settings of this block. Sums are then computed in a fixed "
        "order, which can take longer. On a CPU with one thread, trainings are always deterministic.",
    )

    @model_validator(mode="after")
    def _agree(self) -> Runtime:
        if self.padding_free and self.accumulation_steps != 1:
            raise ValueError(
                "padding_free cuts steps into pieces of max_batch_tokens; set accumulation_steps: 1"
            )
        return self
