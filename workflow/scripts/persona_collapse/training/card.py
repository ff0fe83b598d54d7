"""The model card of an adapter: what it is, for whoever finds its folder without the run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import ModelCardData

#: Licences as the hub spells them.
KNOWN_LICENSE = re.compile(
    r"(apache|bsd|cc|cc0|gpl|lgpl|agpl|llama|mit|mpl|odc|openrail)[a-z0-9.-]*"
)


def text(manifest: Mapping[str, Any], data: Sequence[Mapping[str, Any]], command: str) -> str:
    """README.md of an adapter's folder, YAML front matter included.

    manifest: the adapter's. data: the manifests of what it was trained on, its own rows first. command: what
    makes it again. No row is shown, and no time, so the same training has the same card.
    """
    base = manifest["base"]
    hub = base["source"].get("hub", {})
    name = hub.get("id", base["path"])
    licenses = [str(one["license"]) for one in data if one.get("license")]
    sources = [one.get("source") or {} for one in data]
    # A stage that trained all weights has none.
    lora, size = manifest.get("lora"), ""
    license, names = _license(list(dict.fromkeys(licenses)))
    front = ModelCardData(
        base_model=name,
        base_model_relation="adapter" if lora else "finetune",
        library_name="peft" if lora else None,
        pipeline_tag="text-generation",
        datasets=[s["id"] for s in sources if "id" in s and "local_folder" not in s] or None,
        tags=["lora"] * bool(lora) + ["persona-collapse"],
        license=license,
        license_name=names,
    )
    seen = f"{manifest['epochs_seen']:g} epochs, {manifest['supervised_tokens']} tokens with loss"
    if lora:
        size = f"rank {lora['r']}, alpha {lora['alpha']}, scale {lora['scale']:g}, on "
        size += ", ".join(lora["target_modules"])
    lines = {
        "base model": f"{name} at {hub['revision']}" if hub else name,
        "chain": f"`{manifest['chain']}`",
        "stage": f"`{manifest['stage']}`, kind `{manifest['kind']}`, seed {manifest['seed']}",
        "continues": ", ".join(f"`{one}`" for one in manifest["prefix"]) or "the base model",
        **{f"data: {one['name']}": _said(one) for one in data},
        "trained": f"{manifest['steps']} of {manifest['schedule_steps']} steps, {seen}",
        "LoRA": size,
        "loss": f"{manifest['objective']} on {manifest['loss_on']}",
        "defence": ", ".join(manifest["defence"]),
        "settings": ", ".join(
            f"{key} {value}"
            for key, value in sorted(manifest["hyperparameters"].items())
            if isinstance(value, str | int | float) and key not in ("kind", "r", "alpha")
        ),
        "weights, SHA-256": manifest["adapter_sha256"],
        "code, commit": manifest["commit"],
        "versions": ", ".join(f"{key} {value}" for key, value in manifest["versions"].items()),
    }
    table = "\n".join(f"| {key} | {_cell(value)} |" for key, value in lines.items() if value)
    return f"""---
{front.to_yaml().strip()}
---

# {manifest["chain"]}

{"A LoRA adapter" if lora else "The change of all weights (W' - W)"} of a research run on how
fine-tuning changes a chat model's personas. It is the last stage of its chain alone: the chain's model is the
base model plus the stages that it continues plus this one.
`manifest.json` says more.

| | |
| --- | --- |
{table}

```
{command}
```
"""


def _license(licenses: Sequence[str]) -> tuple[str | None, str | None]:
    """The data's licence as the hub's front matter has it, and the names of those that it lacks (`other`)."""
    if len(licenses) == 1 and KNOWN_LICENSE.fullmatch(licenses[0].lower()):
        return licenses[0].lower(), None
    return ("other", "; ".join(licenses)) if licenses else (None, None)


def _said(data: Mapping[str, Any]) -> str:
    """A data set in a line: source, rows, hash, licence, and its owners' canary string."""
    source = ", ".join(
        f"{key} {value}"
        for key, value in (data.get("source") or {}).items()
        if not isinstance(value, Mapping)
    )
    parts = [source, f"{data['rows']} rows", f"SHA-256 {data['sha256']}"]
    parts += [f"{key} {data[key]}" for key in ("license", "canary") if data.get(key)]
    return "; ".join(part for part in parts if part)


def _cell(value: str) -> str:
    return value.replace("\n", " ").replace("|", r"\|")
