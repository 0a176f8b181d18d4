"""Reduce the compute of CLIP and SigLIP towers in training, with equal outputs and gradients up to rounding.

Weights, their names and the outputs of exports do not change.
Legend: B samples, L positions (tokens, patches), D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import CLIPVisionModel, Siglip2TextModel, SiglipTextModel
from transformers.activations import QuickGELUActivation

_SLOPE = 1.702


def prune_unused_compute(model: nn.Module) -> None:
    """Skip compute that the pooled outputs of a model's towers do not depend on, and use `QuickGelu`, in place."""
    for module in list(model.modules()):
        if isinstance(module, CLIPVisionModel):
            _end_at_pooled_position(module.encoder.layers[-1], 0)
        elif isinstance(module, SiglipTextModel | Siglip2TextModel):
            _end_at_pooled_position(module.encoder.layers[-1], -1)
        for name, child in module.named_children():
            if isinstance(child, QuickGELUActivation):
                setattr(module, name, QuickGelu())


def _end_at_pooled_position(layer: Any, position: int) -> None:
    """Make the last layer of a tower return only the pooled position, [B, 1, D]: 0 (first) or -1 (last).

    Other positions serve as keys and values only; for a 12-layer tower this saves about 1/12 of the compute.
    """
    attention = layer.self_attn
    where = slice(0, 1) if position == 0 else slice(-1, None)

    def heads(states_BLD: torch.Tensor) -> torch.Tensor:
        return states_BLD.view(*states_BLD.shape[:2], attention.num_heads, -1).transpose(1, 2)

    def forward(states_BLD: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any) -> torch.Tensor:
        assert attention_mask is None, "these towers attend to all of their positions"
        normed_BLD = layer.layer_norm1(states_BLD)
        pooled = functional.scaled_dot_product_attention(
            heads(attention.q_proj(normed_BLD[:, where])),
            heads(attention.k_proj(normed_BLD)),
            heads(attention.v_proj(normed_BLD)),
            dropout_p=attention.dropout if attention.training else 0.0,
            scale=attention.scale,
        )
        pooled_B1D = states_BLD[:, where] + attention.out_proj(pooled.transpose(1, 2).flatten(2))
        result: torch.Tensor = pooled_B1D + layer.mlp(layer.layer_norm2(pooled_B1D))
        return result

    layer.forward = forward


class QuickGelu(nn.Module):
    """x * sigmoid(1.702 x), computed as silu(1.702 x) / 1.702.

    The backward pass reads one saved tensor once; autograd of the plain form makes five passes over two tensors.
    """

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Apply elementwise to a tensor of any shape."""
        result: torch.Tensor = _QuickGelu.apply(states)  # type: ignore[no-untyped-call]
        return result


class _QuickGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        scaled = states * _SLOPE
        ctx.save_for_backward(scaled)
        return functional.silu(scaled).mul_(1 / _SLOPE)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        (scaled,) = ctx.saved_tensors
        result: torch.Tensor = torch.ops.aten.silu_backward(gradient, scaled)
        return result
