"""A chat model of a given shape with random weights, to measure what a run takes before fetching the
real model."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import atomic, write_json
from . import fetching

#: Note in the model's record and in the report.
NOTE = "The model's weights are random: this run is a rehearsal, and no number of it is a result."


def write(
    settings: Mapping[str, Any], folder: Path, dtype: str, progress: Callable[[str], None]
) -> Path:
    """Write the model and its tokenizer as a Hugging Face model folder; returns the folder.

    `settings`: see `RandomModel` in study/config.py. Weights are drawn in `dtype` (`bfloat16`, ...), on
    the GPU if there is one, and written block by block, so no more than one block or the embeddings is
    in memory. Matrices are normal with the architecture's `initializer_range`, norm weights are 1,
    biases are 0. The same seed gives the same weights on one kind of device. Raises UserError for a
    tokenizer with more tokens than the vocabulary.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = fetching.tokenizer(settings["tokenizer"], progress)
    if len(tokenizer) > settings["vocabulary"]:
        raise UserError(
            f"config: model: random: vocabulary: {settings['vocabulary']} tokens, the tokenizer has "
            f"{len(tokenizer)}; raise it"
        )
    config = Qwen2Config(
        vocab_size=settings["vocabulary"],
        hidden_size=settings["hidden"],
        intermediate_size=settings["intermediate"],
        num_hidden_layers=settings["blocks"],
        num_attention_heads=settings["heads"],
        num_key_value_heads=settings["kv_heads"],
        max_position_embeddings=settings["context"],
        rope_parameters={"rope_type": "default", "rope_theta": float(settings["rope_theta"])},
        tie_word_embeddings=settings["tied"],
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        architectures=["Qwen2ForCausalLM"],
        dtype=dtype,
    )
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in Qwen2ForCausalLM(config).named_parameters()}
    # A model of another shape may have left more files here.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(settings["seed"])
    listed: dict[str, str] = {}
    last, size = settings["blocks"] + 2, 0
    for number in range(1, last + 1):
        tensors = {}
        for name, shape in shapes.items():
            if _file_of(name, last) == number:
                tensor = torch.empty(shape, dtype=getattr(torch, dtype), device=device)
                if name.endswith("norm.weight"):
                    tensor.fill_(1)
                elif name.endswith(".bias"):
                    tensor.zero_()
                else:
                    tensor.normal_(0, config.initializer_range, generator=generator)
                tensors[name] = tensor.cpu()
                size += tensor.nbytes
        path = folder / f"model-{number:05}-of-{last:05}.safetensors"
        with atomic(path) as temporary:
            save_file(tensors, temporary, metadata={"format": "pt"})
        listed |= dict.fromkeys(tensors, path.name)
        progress(f"random weights: file {number} of {last}")
    index = {"metadata": {"total_size": size}, "weight_map": listed}
    write_json(folder / "model.safetensors.index.json", index)
    tokenizer.save_pretrained(folder)
    config.save_pretrained(folder)
    return folder


def _file_of(name: str, last: int) -> int:
    """Number of the file that a parameter is in: embeddings first, then one file per block, others last."""
    block = re.search(r"\.layers\.(\d+)\.", name)
    return int(block[1]) + 2 if block else 1 if "embed_tokens" in name else last
