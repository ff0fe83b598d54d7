"""LoRA layers, norms and attention in fewer, larger operations, for GPUs.

PEFT's layer runs a dozen small kernels forwards and three dozen backwards, most of them casts between
32 and 16 bit and sums over the whole output. Here the matrix product itself adds the update (y = x W' +
s (x A') B' as one product and one product-and-sum), and the backward pass is written out. The result is
the same up to rounding. A chain's frozen stages are a second term.

Attention over rows that are concatenated in one sequence uses PyTorch's own FlashAttention kernel with
the rows' bounds. A mask over all pairs would compute, and throw away, every row's attention to every
other row.
"""

from __future__ import annotations

import sys
from types import MethodType
from typing import Any

import torch
from torch.autograd.function import once_differentiable

#: Architectures whose attention is plain (no soft cap, no bias), as transformers names them.
PLAIN_ATTENTION = frozenset({"llama", "qwen2", "qwen3"})
#: Their norm layers: x / rms(x) times a weight.
NORMS = frozenset({"LlamaRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm"})
ATTENTION = "persona_collapse_rows"
#: Flat batches are padded to a multiple of this many tokens, which bounds the number of sizes.
TOKENS = 128


class _LoraLinear(torch.autograd.Function):
    """x [tokens, in] -> x W' + bias + sum of scale * dropout(x) A' B', [tokens, out]."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Any,
        weight: Any,
        bias: Any,
        terms: tuple[tuple[float, float], ...],
        *factors: Any,
    ) -> Any:
        """`terms`: (scale, dropout) of each adapter; `factors`: its A [rank, in] and B [out, rank]."""
        out: Any = None
        saved: list[Any] = [weight]
        for number, (scale, dropout) in enumerate(terms):
            a, b = (factor.to(x.dtype) for factor in factors[2 * number : 2 * number + 2])
            given, mask = torch.native_dropout(x, dropout, True) if dropout else (x, None)
            inner = given @ a.T
            if out is None:
                out = (
                    inner.mul(scale) @ b.T if bias is None else bias.addmm(inner, b.T, alpha=scale)
                )
            else:
                out.addmm_(inner, b.T, alpha=scale)
            learns = ctx.needs_input_grad[4 + 2 * number]
            saved += [a, b, mask, *((given, inner) if learns else (None, None))]
        # The large product adds in place, which saves a pass.
        out = (
            torch.nn.functional.linear(x, weight, bias) if out is None else out.addmm_(x, weight.T)
        )
        ctx.save_for_backward(*saved)
        ctx.terms, ctx.dtypes = terms, [factor.dtype for factor in factors]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Any) -> Any:
        """Gradients of x and of the trainable factors; the base is frozen."""
        weight, *saved = ctx.saved_tensors
        into_x: Any = None
        into_factors: list[Any] = []
        unmasked = []
        for number, (scale, dropout) in enumerate(ctx.terms):
            a, b, mask, given, inner = saved[5 * number : 5 * number + 5]
            small = (grad @ b).mul_(scale)
            if given is None:
                into_factors += [None, None]
            else:
                into_factors += [
                    (small.T @ given).to(ctx.dtypes[2 * number]),
                    (grad.T @ inner).to(ctx.dtypes[2 * number + 1]).mul_(scale),
                ]
            if mask is None:
                unmasked.append((small, a))
            elif ctx.needs_input_grad[0]:
                part = torch.ops.aten.native_dropout_backward(small @ a, mask, 1 / (1 - dropout))
                into_x = part if into_x is None else into_x.add_(part)
        if ctx.needs_input_grad[0]:
            into_x = grad @ weight if into_x is None else into_x.addmm_(grad, weight)
            for small, a in unmasked:
                into_x.addmm_(small, a)
        return into_x, None, None, None, *into_factors


def _forward(layer: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    """A PEFT LoRA layer's output by `_LoraLinear`."""
    if layer.disable_adapters or layer.merged or args or kwargs:
        return type(layer).forward(layer, x, *args, **kwargs)
    terms, factors = [], []
    for name in layer.active_adapters:
        if name in layer.lora_A:
            dropout = layer.lora_dropout[name]
            rate = dropout.p if layer.training and isinstance(dropout, torch.nn.Dropout) else 0.0
            terms.append((float(layer.scaling[name]), float(rate)))
            factors += [layer.lora_A[name].weight, layer.lora_B[name].weight]
    base = layer.get_base_layer()
    flat = x.reshape(-1, x.shape[-1]).to(base.weight.dtype)
    out = _LoraLinear.apply(flat, base.weight, base.bias, tuple(terms), *factors)
    return out.view(*x.shape[:-1], -1)


def _norm(layer: Any, x: Any) -> Any:
    """The output of a norm layer by PyTorch's single kernel."""
    shape = layer.weight.shape
    return torch.nn.functional.rms_norm(x, shape, layer.weight, layer.variance_epsilon)


def fuse(model: Any) -> Any:
    """Make a model's plain LoRA layers and norm layers compute as above; returns the model."""
    from peft.tuners.lora import Linear

    for layer in model.modules():
        # Not GPT-2's Conv1D, whose weight is transposed.
        if type(layer) is Linear and not layer.lora_variant and not layer.fan_in_fan_out:
            layer.forward = MethodType(_forward, layer)  # type: ignore[method-assign]
        elif type(layer).__name__ in NORMS:
            layer.forward = MethodType(_norm, layer)
    return model


def _attention(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    scaling: float | None = None,
    cu_seq_lens_q: Any = None,
    max_length_q: int = 0,
    **kwargs: Any,
) -> tuple[Any, None]:
    """Causal attention within each row, called by transformers; query [1, heads, tokens, size]."""
    rows = [states[0].transpose(0, 1) for states in (query, key, value)]
    bounds, longest = cu_seq_lens_q, max_length_q
    out = torch.ops.aten._flash_attention_forward(
        *rows, bounds, bounds, longest, longest, 0.0, True, False, scale=scaling
    )[0]
    return out[None], None


class _Rotated(torch.autograd.Function):
    """Rotary position embedding of queries or keys [1, heads, tokens, size], without copies of halves.

    Both halves of `cos` and `sin` [1, 1, tokens, size] are equal (Su et al. 2021, arXiv 2104.09864, in
    the layout of halves). The gradient is the inverse rotation.
    """

    @staticmethod
    def forward(ctx: Any, states: Any, cos: Any, sin: Any) -> Any:
        """Rotate forwards."""
        ctx.save_for_backward(cos, sin)
        return _rotated(states, cos, sin, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Any) -> Any:
        """Rotate back."""
        cos, sin = ctx.saved_tensors
        return _rotated(grad, cos, sin, -1), None, None


def _rotated(states: Any, cos: Any, sin: Any, sign: int) -> Any:
    half = states.shape[-1] // 2
    cos, sin = cos[..., :half], sin[..., :half]
    out = torch.empty_like(states)
    one, two = states[..., :half], states[..., half:]
    torch.mul(one, cos, out=out[..., :half]).addcmul_(two, sin, value=-sign)
    torch.mul(two, cos, out=out[..., half:]).addcmul_(one, sin, value=sign)
    return out


def _rotate(query: Any, key: Any, cos: Any, sin: Any, unsqueeze_dim: int = 1) -> tuple[Any, Any]:
    """Replacement for `apply_rotary_pos_emb` in transformers' models."""
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return _Rotated.apply(query, cos, sin), _Rotated.apply(key, cos, sin)


def attend_by_rows(model: Any) -> bool:
    """Switch a model to the attention above, if it and its GPU support it; it then takes only flat
    batches.

    The decoder is then called with `cu_seq_lens_q` (rows' bounds, int32 [rows + 1]) and
    `max_length_q`.
    """
    from transformers import AttentionInterface

    config, weight = model.config, next(model.parameters())
    able = (
        config.model_type in PLAIN_ATTENTION
        and set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
        and weight.is_cuda
        and weight.dtype in (torch.bfloat16, torch.float16)
        and torch.cuda.get_device_capability(weight.device) >= (8, 0)
    )
    if able:
        AttentionInterface.register(ATTENTION, _attention)
        model.set_attn_implementation(ATTENTION)
        # Its attention looks the function up by this name in its own module. From here on, all models
        # of the architecture in this process use it; only rounding differs.
        sys.modules[type(model).__module__].apply_rotary_pos_emb = _rotate  # type: ignore[attr-defined]
    return able


def by_rows(model: Any) -> bool:
    """Was the model switched to that attention?"""
    return bool(model.config._attn_implementation == ATTENTION)
