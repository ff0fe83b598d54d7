"""Shifts in vLLM's engine: hooks on its blocks, which learn before each pass whose tokens it has.

The engine's model must be in this process and must run the Python code of its blocks in every pass, so
an engine that serves shifts is started without CUDA graphs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..models import shifts


def tags(persona: str, prompt: int) -> dict[str, Any]:
    """What shifts need to know, in a request's sampling parameters (`extra_args`)."""
    return {"persona": persona, "prompt": prompt}


class Steering:
    """The shifts of the chain that an engine serves."""

    def __init__(self, engine: Any):
        from torch.nn import ModuleList

        (self.runner,) = engine.collective_rpc(lambda worker: worker.model_runner)
        config = engine.llm_engine.vllm_config
        blocks = config.model_config.hf_config.get_text_config().num_hidden_layers
        self.longest = config.scheduler_config.max_num_batched_tokens
        self.blocks = next(
            module
            for module in self.runner.get_model().modules()
            if isinstance(module, ModuleList) and len(module) == blocks
        )
        self.shifts: list[shifts.Shift] = []
        self.hooks: list[Any] = []
        #: Persona and prompt length of each unfinished request.
        self.asked: dict[str, tuple[str, int]] = {}
        self._watch()

    def use(self, folders: Sequence[str | Path]) -> None:
        """Make these shifts act from now on, one after the other."""
        for hook in self.hooks:
            hook.remove()
        self.shifts = [shifts.Shift(folder, self.runner.device) for folder in folders]
        self.hooks = [
            self.blocks[block].register_forward_hook(_changed(shift, block))
            for shift in self.shifts
            for block in shift.vectors
        ]

    def _watch(self) -> None:
        """Hook into each pass before it runs, to read its requests and their order."""
        runner = self.runner
        # The older or the newer of the two runners.
        name = "_prepare_inputs" if hasattr(runner, "_prepare_inputs") else "prepare_inputs"
        prepare = getattr(runner, name)

        def prepared(scheduled: Any, *args: Any, **kwargs: Any) -> Any:
            out = prepare(scheduled, *args, **kwargs)
            if self.shifts:
                order = out.req_ids if hasattr(out, "req_ids") else runner.input_batch.req_ids
                self._aim(scheduled, order)
            return out

        setattr(runner, name, prepared)

    def _aim(self, scheduled: Any, order: Sequence[str]) -> None:
        """Set the row of each token of a pass; `scheduled`: what vLLM's scheduler put into it."""
        import numpy as np
        import torch

        cached = scheduled.scheduled_cached_reqs
        done = dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        for new in scheduled.scheduled_new_reqs:
            tagged = new.sampling_params.extra_args
            self.asked[new.req_id] = tagged["persona"], tagged["prompt"]
            done[new.req_id] = new.num_computed_tokens
        for name in scheduled.finished_req_ids:
            self.asked.pop(name, None)
        counts = np.array([scheduled.num_scheduled_tokens[name] for name in order])
        owner = np.repeat(np.arange(len(order)), counts)
        starts = np.array([done[name] for name in order]) - (counts.cumsum() - counts)
        positions = np.arange(len(owner)) + starts[owner]
        prompts = np.array([self.asked[name][1] for name in order])[owner]
        for shift in self.shifts:
            rows = np.array([shift.row(self.asked[name][0]) for name in order])[owner]
            # Padding of a pass stays unchanged.
            which = torch.zeros(max(self.longest, len(owner)), dtype=torch.long)
            which[: len(owner)] = torch.from_numpy(shift.at(rows, prompts, positions))
            shift.which = which.to(self.runner.device)


def _changed(shift: shifts.Shift, block: int) -> Any:
    """A hook on blocks that return [token, hidden], or two of these, whose sum is the residual stream."""

    def hook(module: Any, given: Any, out: Any) -> Any:
        states, *rest = out if isinstance(out, tuple) else (out,)
        stream = states.float() + rest[0].float() if rest else states.float()
        rows = shift.which[: stream.shape[-2]].expand(stream.shape[:-1])
        moved = shift.changed(block, stream, rows) - stream
        states = (states.float() + moved).to(states.dtype)
        return (states, *rest) if isinstance(out, tuple) else states

    return hook
