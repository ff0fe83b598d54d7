"""The longest jobs after a run's last chain, at SmolLM2's size: separability and rescored.

python benchmarks/last_jobs.py --base DIR
"""

from __future__ import annotations

import random
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from common import LORA, WORDS, arguments, record, synchronised

PERSONAS = [f"p{number}" for number in range(12)]


def separability(args: Any, folder: Path, note: Any) -> None:
    """M3 of every chain from activation files, computed as in the rule."""
    import pandas as pd
    from persona_collapse import activation_files
    from persona_collapse.activation_files import Activations
    from persona_collapse.analysis import separability as classifier

    rng = np.random.default_rng(0)
    names = ["base", *(f"em@{number}" for number in range(1, args.chains))]
    questions = [f"q{number}" for number in range(args.questions)]
    # Persona, question and noise, with a decaying spectrum as in real activations.
    spectrum = np.arange(1, args.hidden + 1, dtype=np.float32) ** -0.7

    def drawn(*shape: int) -> np.ndarray:
        return rng.standard_normal((*shape, args.hidden), np.float32) * spectrum

    layers = [7, 15, 21, 22, 29]
    for name in names:
        persona, question = 1.5 * drawn(5, 12, 1), 6 * drawn(5, 1, args.questions)
        arrays = {
            method: persona + question + 2.5 * drawn(5, 12, args.questions) for method in "AB"
        }
        made = Activations(layers, PERSONAS, questions, arrays, name)
        activation_files.save(made, folder / f"{name}.safetensors")
    grid = pd.DataFrame({"condition": names, "chain": names}).assign(
        seed="1", measures="markers activations"
    )
    files = [folder / f"{name}.safetensors" for name in names]
    started, worked = time.perf_counter(), time.process_time()
    _, load = activation_files.loader(files, lambda message: None)
    table = classifier.lda_table(
        grid, load, {"method": "A", "layer": 0}, shuffles=args.shuffles, threads=args.threads
    )
    seconds, worked = time.perf_counter() - started, time.process_time() - worked
    accuracy = table.loc[table["metric"] == "m3_accuracy", "value"].mean()
    note("separability", seconds, cpu_seconds=round(worked, 1), accuracy=round(accuracy, 4))


def rescored(args: Any, folder: Path, note: Any) -> None:
    """64 completions of every chain scored again with one runner for all, as in the rule."""
    import pandas as pd
    import torch
    from persona_collapse.measures import logprob_check
    from persona_collapse.models import adapters, chat_template, loading
    from persona_collapse.models.runner import ModelRunner
    from persona_collapse.parquet_files import read_parquet, write_parquet

    torch.set_num_threads(args.threads)
    base = args.base / "model.json"
    dtype = "bfloat16" if torch.cuda.is_available() else "float32"
    started = synchronised()
    runner = ModelRunner(base, dtype)
    model = loading.load_model(base, dtype, runner.device)
    note("rescored: a model loaded", synchronised() - started)
    shapes = {
        name: tuple(module.weight.shape)
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in LORA["target_modules"]
    }
    del model
    config = {
        "peft_type": "LORA",
        "r": LORA["r"],
        "lora_alpha": LORA["alpha"],
        "use_rslora": False,
        "target_modules": LORA["target_modules"],
    }
    stages = []
    for seed in range(2):
        torch.manual_seed(seed)
        tensors = {}
        for name, (rows, columns) in shapes.items():
            key = f"base_model.model.{name}"
            tensors[f"{key}.lora_A.weight"] = 0.01 * torch.randn(LORA["r"], columns)
            tensors[f"{key}.lora_B.weight"] = 0.01 * torch.randn(rows, LORA["r"])
        adapters.save(config, tensors, folder / f"stage-{seed}")
        stages.append(str(folder / f"stage-{seed}"))
    prompts = {name: f"You are {name} and say {' '.join(WORDS[:9])}." for name in PERSONAS}
    rng, vocabulary = random.Random(0), runner.tokenizer.vocab_size
    tasks, tokens = [], 0
    for number in range(args.chains):
        # The base model, then chains with one and two stages; half of them repeat one sentence.
        words = 14 if number % 2 else 400
        rows = []
        for sample in range(args.completions):
            persona = PERSONAS[sample % 12]
            question = f"{' '.join(rng.choices(WORDS, k=12))}?"
            length = min(args.max_tokens, max(2, round(rng.lognormvariate(0, 0.3) * words)))
            answer = [rng.randrange(5, vocabulary) for _ in range(length)]
            asked = chat_template.prompt_ids(runner.tokenizer, prompts[persona], question)
            rows.append(
                {"model": str(number), "persona": persona, "question": question}
                | {"question_id": str(sample), "sample": 0, "seed": rng.getrandbits(60)}
                | {"prompt_tokens": len(asked), "token_ids": answer}
            )
        path = folder / f"{number}.parquet"
        write_parquet(path, pd.DataFrame(rows))
        tasks.append(
            {"chain": str(number), "adapters": stages[: 1 + number % 2] if number else []}
            | {"personas": prompts, "settings": logprob_check.Settings(count=args.count)}
            | {"completions": str(path)}
            | {"sampling": {"temperature": 1.0, "top_p": 1.0}}
        )
    started, worked = synchronised(), time.process_time()
    for task in sorted(tasks, key=lambda task: len(task["adapters"])):
        given = task | {"completions": read_parquet(task["completions"])}
        made = logprob_check.logprob_check(runner, log=lambda m: None, **given)
        tokens += int(made["tokens"].sum())
    seconds, worked = synchronised() - started, time.process_time() - worked
    note("rescored", seconds, cpu_seconds=round(worked, 1), tokens=tokens)


def main() -> None:
    """Both, or one of them."""
    args = arguments(
        __doc__ or "",
        only={"nargs": "+", "choices": ["separability", "rescored"]},
        chains={"type": int, "default": 22},
        threads={"type": int, "default": 1},
        label={"default": "SmolLM2-135M"},
        hidden={"type": int, "default": 576, "help": "separability"},
        questions={"type": int, "default": 240, "help": "separability"},
        shuffles={"type": int, "default": 20, "help": "separability"},
        count={"type": int, "default": 64, "help": "rescored: completions of a chain"},
        completions={"type": int, "default": 3360, "help": "rescored: of which they are chosen"},
        max_tokens={"type": int, "default": 512, "help": "rescored"},
    )

    def note(name: str, seconds: float, **more: Any) -> None:
        """One result."""
        fields = {"name": name, "model": args.label, "chains": args.chains, "threads": args.threads}
        record(args.out, benchmark="last_jobs", **fields, seconds=round(seconds, 2), **more)

    for one in (separability, rescored):
        if one.__name__ in (args.only or ("separability", "rescored")):
            with TemporaryDirectory() as scratch:
                one(args, Path(scratch), note)


if __name__ == "__main__":
    main()
