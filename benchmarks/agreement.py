"""Do the fast implementations compute the same? Gradients and log-probabilities compared with PEFT's.

python benchmarks/agreement.py --base DIR                 # a training step
python benchmarks/generation.py --base DIR --agreement    # vLLM's log-probabilities

The reference is PEFT in float32, and each error is given together with that of PEFT in 16 bit. For
gradients it is ||fast - reference|| / ||reference||, for log-probabilities the differences in nats.
Every request is also sampled twice.
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any

from common import LORA, WORDS, arguments, free, record


def error(found: list[Any], wanted: list[Any]) -> float:
    """Relative error over all tensors, in float64."""
    pairs = [(a.double(), b.double()) for a, b in zip(found, wanted, strict=True)]
    squares = sum(float((a - b).pow(2).sum()) for a, b in pairs)
    return float((squares / sum(float(b.pow(2).sum()) for _, b in pairs)) ** 0.5)


def stages(base: Path, folder: Path) -> dict[str, list[Path]]:
    """Chains of random adapters: plain LoRA, rank-stabilised LoRA, and one after the other."""
    import json

    from generation import adapter

    made = [adapter(folder / str(i), base, i) for i in range(2)]
    config = made[1] / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_rslora": True}))
    return {"plain": made[:1], "rank-stabilised": made[1:], "two stages": made}


def note(args: Any, name: str, **fields: Any) -> None:
    """One result."""
    record(args.out, benchmark="agreement", name=name, model=args.label, **fields)


def gradients(args: Any, chain: list[Path]) -> None:
    """A training step of 8 rows on top of a chain: recorded and fused, compared with PEFT's."""
    import torch
    from peft import LoraConfig
    from persona_collapse.models import adapters, fused, loading
    from persona_collapse.training import batches, graphs, steps

    rng = random.Random(0)
    rows = []
    for _ in range(8):
        ids = [rng.randrange(5, 40000) for _ in range(rng.randint(60, 200))]
        rows.append({"input_ids": ids, "labels": [-100] * (len(ids) // 3) + ids[len(ids) // 3 :]})
    # Other rows of other sizes first: recorded steps must not depend on them.
    others = [{key: value[3:] for key, value in row.items()} for row in rows[:6]]

    def model_of(dtype: str, fast: bool) -> tuple[Any, bool]:
        base = loading.load_model(args.base / "model.json", dtype, loading.pick_device())
        by_rows = fast and fused.attend_by_rows(base)
        model = adapters.attach(base, chain, name="prefix")
        torch.manual_seed(1)
        settings = {key: LORA[key] for key in ("r", "use_rslora", "target_modules")}
        lora = LoraConfig(lora_alpha=LORA["alpha"], lora_dropout=0.0, **settings)
        model.add_adapter("default", lora)
        model.base_model.set_adapter(["prefix", "default"])
        generator = torch.Generator().manual_seed(2)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".default." in name)
            if ".default." in name and "lora_B" in name:
                noise = torch.randn(parameter.shape, generator=generator) * 1e-3
                parameter.data.copy_(noise)
        return model.train(), by_rows

    def slow(dtype: str) -> tuple[float, list[Any]]:
        model, _ = model_of(dtype, False)
        device = next(model.parameters()).device
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
            stepper = steps.Stepper(steps.Objective(model), device)
            loss, _ = stepper.step({steps.OWN: [batches.flatten(rows)]})
        return float(loss), [p.grad.cpu() for p in model.parameters() if p.requires_grad]

    reference_loss, reference = slow("float32")
    peft_loss, peft = slow("bfloat16")
    model, by_rows = model_of("bfloat16", True)
    fused.fuse(model)
    recorder = graphs.Recorder(steps.Objective(model), 8, by_rows=by_rows)
    recorder.step({steps.OWN: [batches.flatten(others, fused.TOKENS)]})
    for _ in range(2):
        loss, _ = recorder.step({steps.OWN: [batches.flatten(rows, fused.TOKENS)]})
    ours = [p.grad.cpu() for p in model.parameters() if p.requires_grad]
    note(
        args,
        "gradients of a recorded, fused step",
        error=error(ours, reference),
        error_of_peft=error(peft, reference),
        loss=[reference_loss, peft_loss, float(loss)],
        attention_by_rows=by_rows,
    )


def engine(args: Any, chains: dict[str, list[Path]], backend: Any) -> None:
    """Log-probabilities of vLLM's samples by vLLM and by PEFT in 16 bit, compared with PEFT in float32."""
    import pandas as pd
    from persona_collapse.analysis import logprob_tests
    from persona_collapse.measures import logprob_check
    from persona_collapse.models import loading
    from persona_collapse.models.runner import ModelRunner
    from vllm import SamplingParams

    tokenizer = loading.load_tokenizer(args.base / "model.json")
    rng = random.Random(0)
    prompts = [
        tokenizer(" ".join(rng.choices(WORDS, k=50)))["input_ids"]
        for _ in range(min(200, args.completions))
    ]
    sampled: dict[str, list[tuple[list[int], list[int], list[float]]]] = {}
    for name, chain in {"base": [], **chains}.items():
        asked = [{"prompt_token_ids": ids} for ids in prompts]
        how = [
            SamplingParams(temperature=1.0, seed=i, max_tokens=32, logprobs=0, ignore_eos=True)
            for i in range(len(prompts))
        ]
        outputs = []
        for _ in range(2):
            backend.use(chain)
            outputs.append(
                backend.engine.generate(asked, how, lora_request=backend.lora, use_tqdm=False)
            )
        first, again = outputs
        drawn = [[list(o.outputs[0].token_ids) for o in outputs] for outputs in (first, again)]
        same = sum(a == b for a, b in zip(*drawn, strict=True))
        sampled[name] = [
            (prompt, ids, [s[t].logprob for t, s in zip(ids, o.outputs[0].logprobs, strict=True)])
            for prompt, ids, o in zip(prompts, drawn[0], first, strict=True)
        ]
        note(args, f"samples drawn twice, {name}", same=same, of=len(prompts))
    runner = ModelRunner(
        args.base / "model.json", "bfloat16" if loading.pick_device() == "cuda" else "float32"
    )
    for name, chain in {"base": [], **chains}.items():
        # As in the workflow for the completions of every chain.
        own = [(prompt, ids) for prompt, ids, _ in sampled[name]]
        with runner.chain(chain) as model:
            found = logprob_check.scores(model, own, 1.0, 1.0, tokenizer.pad_token_id)
        table = pd.DataFrame(found, columns=logprob_check.SUMS)
        table["tokens"] = [len(ids) for _, ids in own]
        judged = {
            key: round(z, 2)
            for key, z in logprob_tests.distances(table).items()
            if "z_" in key and z == z  # the base has no gain
        }
        note(args, f"rescored, {name}", **judged)
    del runner, model  # a GPU of 80 GB cannot hold these as well as the engine and float32
    free()
    for name, chain in {"base": [], **chains}.items():
        some = sampled[name][:50]
        ours = [value for _, _, given in some for value in given]
        exact, without = _scores(args, chain, "float32", some)
        peft, _ = _scores(args, chain, "bfloat16", some)
        note(
            args,
            f"log-probabilities, {name}",
            vllm=_distance(ours, exact),
            peft=_distance(peft, exact),
            without_adapter=_distance(without, exact),
        )


def _distance(found: list[float], wanted: list[float]) -> dict[str, float]:
    """Differences of log-probabilities, in nats; the signed mean shows a bias."""
    differences = [a - b for a, b in zip(found, wanted, strict=True)]
    absolute = [abs(difference) for difference in differences]
    count = len(differences)
    return {
        "mean": round(sum(absolute) / count, 5),
        "largest": round(max(absolute), 4),
        "shift": round(sum(differences) / count, 5),
    }


def _scores(
    args: Any, chain: list[Path], dtype: str, sampled: list[Any]
) -> tuple[list[float], list[float]]:
    """Log-probabilities of the sampled tokens by transformers, with and without PEFT's own layers."""
    from contextlib import nullcontext

    import torch
    from persona_collapse.models import adapters, loading

    device = loading.pick_device()
    base = loading.load_model(args.base / "model.json", dtype, device)
    model = adapters.apply(base, chain, merge=False)
    found: tuple[list[float], list[float]] = ([], [])
    for scores, off in zip(found, (False, True), strict=True):
        with model.disable_adapter() if chain and off else nullcontext():
            for prompt, answer, _ in sampled:
                with torch.inference_mode():
                    logits = model(input_ids=torch.tensor([prompt + answer], device=device)).logits
                all_scores = logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
                scores += all_scores[torch.arange(len(answer)), answer].tolist()
    return found


def main() -> None:
    """Gradients."""
    args = arguments(__doc__ or "", label={"default": "qwen2.5-7b shape"})
    with tempfile.TemporaryDirectory() as scratch:
        gradients(args, stages(args.base, Path(scratch))["rank-stabilised"])


if __name__ == "__main__":
    main()
