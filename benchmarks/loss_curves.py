"""Loss curves on real instructions, with and without each optimisation of the trainer: they should
overlap.

python benchmarks/loss_curves.py --base DIR --variant recorded --out curves.jsonl   # and the others
python benchmarks/loss_curves.py --draw curves.jsonl                                # loss_curves.svg
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from common import ROOT, arguments, record

#: What each variant adds to the one before.
VARIANTS: dict[str, dict[str, Any]] = {
    "padded": {"padding_free": False, "fused_lora": False, "cuda_graphs": False},
    "without padding": {"padding_free": True, "fused_lora": False, "cuda_graphs": False},
    "fused": {"padding_free": True, "fused_lora": True, "cuda_graphs": False},
    "recorded": {"padding_free": True, "fused_lora": True, "cuda_graphs": True},
}


def train(args: Any) -> None:
    """One variant on the shipped instructions, without dropout, whose random numbers would differ."""
    from persona_collapse.files import read_jsonl, write_json, write_jsonl
    from persona_collapse.models import loading
    from persona_collapse.training import model
    from persona_collapse.training import train as workflow
    from persona_collapse.training.run import TrainingRun
    from persona_collapse.training.runtime import Runtime
    from training import RUNTIME, SETTINGS

    # On a CPU too: the same passes, with recorded ones run unrecorded.
    model.FAST_DEVICES = ("cuda", "cpu")
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        rows = read_jsonl(ROOT / "workflow/resources/data/benign_instruct.jsonl")[:960]
        write_jsonl(
            folder / "rows.jsonl", [{"id": str(r["id"]), "messages": r["messages"]} for r in rows]
        )
        write_json(folder / "rows.manifest.json", {"supervise": "last", "system": "template"})
        dtype = "bfloat16" if loading.pick_device() == "cuda" else "float32"
        run = TrainingRun(
            chain="benign@1",
            name="benign",
            seed=1,
            stop=None,
            settings=SETTINGS | {"steps": args.steps, "dropout": 0.0, "dtype": dtype},
            base=args.base / "model.json",
            prefix=[],
            data=folder / "rows.jsonl",
        )
        runtime = Runtime(**RUNTIME | VARIANTS[args.variant])
        made = workflow.train(run, folder / "adapter", lambda message: None, runtime=runtime)
    record(
        args.out,
        benchmark="loss curves",
        name=args.variant,
        model=args.label,
        steps=args.steps,
        seconds=made["seconds"],
        curve=[[point["step"], point["loss"]] for point in made["loss"]],
    )


def draw(records: Path) -> None:
    """loss_curves.svg in the folder of the records: the curves and, below, their differences from the
    first."""
    import altair as alt
    import pandas as pd

    lines = [json.loads(line) for line in records.read_text().splitlines()]
    curves = {r["name"]: r for r in lines if r["benchmark"] == "loss curves"}
    plain, first = dict(curves["padded"]["curve"]), curves["padded"]
    points = [
        (f"{name}: {curves[name]['seconds']:.0f} s", step, loss, loss - plain[step])
        for name in VARIANTS
        for step, loss in curves[name]["curve"]
    ]
    rows = pd.DataFrame(points, columns=["variant", "step", "loss", "apart"])
    looks = {"sort": list(dict.fromkeys(rows["variant"])), "title": None}
    base = alt.Chart(rows, width=500).mark_line(interpolate="linear")
    base = base.encode(
        x=alt.X("step", title="optimiser step"),
        color=alt.Color("variant", **looks),
        strokeDash=alt.StrokeDash("variant", **looks),
    )
    above = base.encode(y=alt.Y("loss").scale(zero=False)).properties(height=220)
    below = base.encode(y=alt.Y("apart", title="minus padded")).properties(height=110)
    chart = (above & below).properties(title=f"{first['model']}, {first['device']}")
    chart.configure_legend(orient="top").save(records.with_name("loss_curves.svg"))


def main() -> None:
    """Train or draw."""
    args = arguments(
        __doc__ or "",
        variant={"choices": list(VARIANTS)},
        steps={"type": int, "default": 100},
        label={"default": "SmolLM2-135M-Instruct"},
        draw={"type": Path, "help": "records of the variants"},
    )
    if args.draw:
        draw(args.draw)
    else:
        train(args)


if __name__ == "__main__":
    main()
