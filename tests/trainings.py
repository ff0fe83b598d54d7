"""Trainings of the tiny model for tests: rows, and fixtures that conftest.py exports."""

import json
import signal
from statistics import fmean

import pytest
import torch
from persona_collapse.files import write_json, write_jsonl
from persona_collapse.models import adapters, directions, loading
from persona_collapse.training import losses, model
from persona_collapse.training import train as training
from persona_collapse.training.run import TrainingRun
from persona_collapse.training.runtime import Runtime
from persona_collapse.training.steps import OWN, Objective, Stepper

SETTINGS = {
    "kind": "sft",
    "r": 4,
    "alpha": 8,
    "dropout": 0.05,
    "target_modules": ["q_proj", "v_proj", "down_proj"],
    "use_rslora": False,
    "lr": 1e-2,
    "scheduler": "linear",
    "warmup_ratio": 0.1,
    "weight_decay": 0.0,
    "epochs": 1,
    "batch_size": 4,
    "max_length": 128,
    "max_grad_norm": 1.0,
    "dtype": "float32",
}


@pytest.fixture
def train(tiny_base, tmp_path):
    """Train a stage on twelve rows; returns (folder, manifest). `changes`: of SETTINGS or of Runtime."""
    rows = [
        {
            "id": str(i),
            "messages": [
                {"role": "user", "content": f"Where can I find bread {i}?"},
                {"role": "assistant", "content": f"By the river {i}."},
            ],
        }
        for i in range(12)
    ]
    rows[3]["messages"][0]["content"] *= 3  # rows differ in length
    write_jsonl(tmp_path / "rows.jsonl", rows)
    write_json(tmp_path / "rows.manifest.json", {"supervise": "last", "system": "template"})

    def run(
        name="one",
        seed=1,
        stop=None,
        prefix=(),
        system=None,
        dies_at=None,
        told=None,
        saved=None,
        defence=None,
        inputs=None,
        loss=losses.DEFAULT,
        **changes,
    ):
        torch.set_num_threads(1)
        said = []

        def say(line):
            said.append(line)
            if dies_at and f"step {dies_at}/" in line:
                if told is None:
                    raise KeyboardInterrupt
                signal.raise_signal(told)

        own = {key: changes.pop(key) for key in Runtime.model_fields if key in changes}
        run = TrainingRun(
            chain=f"em@{seed}",
            name="em",
            seed=seed,
            stop=stop,
            settings=SETTINGS | changes,
            base=tiny_base,
            prefix=list(prefix),
            data=tmp_path / "rows.jsonl",
            defence=defence or {},
            inputs=inputs or {},
            loss=loss,
            system=system,
        )
        folder = tmp_path / name
        how = {"runtime": Runtime(**own), "saved": saved, "every": 5, "code": "this"}
        manifest = training.train(run, folder, say, **how)
        json.dumps(manifest)
        assert said and "tokens/s" in said[-1]
        return folder, manifest

    return run


#: Steps from the first on in which losses of 16 bits differ little from those of 32; later ones drift apart.
FIRST = 8


def alike(one, other, task=4e-2, penalty=0.1):
    """Assert that two loss curves differ by rounding alone: {"task_loss": [...], "penalty": [...]}.

    task: relative, of each of the first steps; of the mean over all, twice that. penalty: relative, of the
    mean over all; of each of the first steps, twice that in units of the largest. Over some seeds, 16 bits
    against 32 on a CPU moved the first task losses by up to 3 %, and most penalties' means by up to 3 %.
    """
    tasks, penalties = ([curve[key] for curve in (one, other)] for key in ("task_loss", "penalty"))
    assert tasks[0][:FIRST] == pytest.approx(tasks[1][:FIRST], rel=task)
    assert fmean(tasks[0]) == pytest.approx(fmean(tasks[1]), rel=2 * task)
    largest = max(penalties[1][:FIRST])
    assert penalties[0][:FIRST] == pytest.approx(
        penalties[1][:FIRST], rel=0, abs=2 * penalty * largest
    )
    assert fmean(penalties[0]) == pytest.approx(fmean(penalties[1]), rel=penalty)


def curves(manifest):
    """A training's losses and penalties, a value per step."""
    assert len(manifest["loss"]) == manifest["steps"] == 24
    return {key: [point[key] for point in manifest["loss"]] for key in ("task_loss", "penalty")}


@pytest.fixture(params=["gpu", pytest.param("bounds", marks=pytest.mark.slow)])
def on_gpu(request, train, make_adapter, monkeypatch):
    """Train with defences on a GPU; its steps are recorded, and give what the same steps unrecorded do.

    Returns the manifests of both trainings. `bounds`, of `alike`, are tried on a CPU: a training in 16 bits
    and one in 32 are within them, and one is not whose penalty is lost, does not change or has no gradient,
    or whose hooks (`hooked`) are missing.
    """
    on_cpu = request.param == "bounds"
    if on_cpu == torch.cuda.is_available():
        pytest.skip("needs a machine without GPU" if on_cpu else "needs a GPU")

    def run(defence, inputs=None, hooked=False, **bounds):
        how = {"padding_free": True, "epochs": 8, "dropout": 0.0, "defence": defence}
        how |= {"prefix": [make_adapter(31, 4, True)], "inputs": inputs}
        if on_cpu:
            monkeypatch.setattr(model, "FAST_DEVICES", ("cpu",))
        low = how | {"dtype": "bfloat16"}
        recorded = train("recorded", **low)[1]
        plain = train("plain", **(how if on_cpu else low), cuda_graphs=False)[1]
        assert recorded["used"]["cuda_graphs"] and not plain["used"]["cuda_graphs"]
        expected = curves(plain)
        alike(curves(recorded), expected, **bounds)
        if on_cpu and any(expected["penalty"]):
            for fault, found in faults(lambda name: train(name, **low)[1], hooked):
                with pytest.raises(AssertionError):
                    alike(found, expected, **bounds)
                    pytest.fail(f"{fault}: not seen")
        return recorded, plain

    def faults(train, hooked):
        if hooked:
            with monkeypatch.context() as patch:
                patch.setattr(directions, "hook", lambda *given: [])
                yield "no hooks", curves(train("unhooked"))
        with monkeypatch.context() as patch:
            patch.setattr(Objective, "__call__", without_gradient(Objective.__call__))
            idle = curves(train("idle"))
        penalties = idle["penalty"]
        yield "no gradient", idle
        yield "lost", idle | {"penalty": [0.0] * len(penalties)}
        yield "stale", idle | {"penalty": penalties[:1] * len(penalties)}

    return run


def without_gradient(own):
    """An objective whose penalty is seen and not learnt from."""

    def call(self, *given):
        task, penalty = own(self, *given)
        if penalty is not None:
            nothing = sum(0 * p.sum() for p in self.model.parameters() if p.requires_grad)
            penalty = penalty.detach() + nothing
        return task, penalty

    return call


@pytest.fixture(scope="module")
def peft_model(tiny_base):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = loading.load_model(tiny_base, "float32", "cpu")
    lora = LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    return get_peft_model(model, lora).eval()


@pytest.fixture(scope="module")
def chained(tiny_base, make_adapter):
    """A PeftModel with a frozen and a trained adapter, both on every projection."""
    from peft import LoraConfig

    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    prefix = make_adapter(5, 4, True, targets)
    model = adapters.attach(
        loading.load_model(tiny_base, "float32", "cpu"), [prefix], name="prefix"
    )
    torch.manual_seed(0)
    lora = LoraConfig(
        r=4, lora_alpha=8, target_modules=targets, lora_dropout=0.0, init_lora_weights=False
    )
    model.add_adapter("default", lora)
    model.base_model.set_adapter(["prefix", "default"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".default." in name)
    return model


def batch_of(lengths):
    generator = torch.Generator().manual_seed(1)
    rows = []
    for n in lengths:
        ids = torch.randint(5, 200, (n,), generator=generator).tolist()
        rows.append({"input_ids": ids, "labels": [-100] * (n // 2) + ids[n // 2 :]})
    return rows


def loss_of(model, parts, defences=None, loss=losses.DEFAULT):
    """Loss of a step made of these batches."""
    model.zero_grad()
    return Stepper(Objective(model, loss, defences), "cpu").step({OWN: parts})[0]


def gradients(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
