"""Convert state dicts between transformers' CLIP and SigLIP and open_clip.

One table of names and shape changes serves both directions, so a round trip verifies that nothing is lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from pairloom.schemas.errors import InputError

State = dict[str, torch.Tensor]
Change = Literal["same", "transpose", "add_axis", "to_scalar"]


@dataclass(frozen=True)
class Move:
    """Concatenate `sources` along axis 0, apply `change`, and split into `targets` in the proportions `cuts`."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    change: Change = "same"
    cuts: tuple[int, ...] = (1,)


def convert(state: Mapping[str, torch.Tensor], moves: Sequence[Move]) -> State:
    """Convert from transformers to open_clip. Raises InputError when a tensor is missing or unexpected."""
    _check_names(state, [name for move in moves for name in move.sources])
    result: State = {}
    for move in moves:
        joined = _changed(torch.cat([_with_axis(state[name]) for name in move.sources]), move.change)
        unit = joined.shape[0] // sum(move.cuts) if joined.ndim else 1
        pieces = torch.split(joined, [unit * part for part in move.cuts]) if len(move.cuts) > 1 else (joined,)
        result |= {name: piece.contiguous() for name, piece in zip(move.targets, pieces, strict=True)}
    return result


def convert_back(state: Mapping[str, torch.Tensor], moves: Sequence[Move], shapes: Mapping[str, torch.Size]) -> State:
    """Convert from open_clip to transformers; `shapes` are the target shapes by name.

    Raises InputError when a tensor is missing or unexpected.
    """
    _check_names(state, [name for move in moves for name in move.targets])
    result: State = {}
    for move in moves:
        joined = torch.cat([_with_axis(state[name]) for name in move.targets])
        if move.change == "transpose":
            joined = joined.T
        elif move.change == "add_axis":
            joined = joined.squeeze(0)
        pieces = joined.chunk(len(move.sources))
        result |= {n: p.reshape(shapes[n]).contiguous() for n, p in zip(move.sources, pieces, strict=True)}
    return result


def _with_axis(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(1) if tensor.ndim == 0 else tensor


def _changed(joined: torch.Tensor, change: Change) -> torch.Tensor:
    if change == "transpose":
        return joined.T
    if change == "add_axis":
        return joined[None]
    return joined.reshape(()) if change == "to_scalar" else joined


def _check_names(state: Mapping[str, torch.Tensor], expected: Sequence[str]) -> None:
    wrong = sorted(set(state) ^ set(expected))
    if wrong:
        raise InputError(f"open_clip export: tensors without a counterpart: {', '.join(wrong[:5])}")


def _both(source: str, target: str) -> Iterator[Move]:
    for part in ("weight", "bias"):
        yield Move((f"{source}.{part}",), (f"{target}.{part}",))


def _clip_layers(source: str, target: str, num_layers: int) -> Iterator[Move]:
    """Layers of open_clip's own transformer, which packs query, key and value into one tensor."""
    for index in range(num_layers):
        old, new = f"{source}.encoder.layers.{index}", f"{target}.resblocks.{index}"
        for part in ("weight", "bias"):
            packed = tuple(f"{old}.self_attn.{name}_proj.{part}" for name in "qkv")
            yield Move(packed, (f"{new}.attn.in_proj_{part}",))
        yield from _both(f"{old}.self_attn.out_proj", f"{new}.attn.out_proj")
        yield from _both(f"{old}.layer_norm1", f"{new}.ln_1")
        yield from _both(f"{old}.layer_norm2", f"{new}.ln_2")
        yield from _both(f"{old}.mlp.fc1", f"{new}.mlp.c_fc")
        yield from _both(f"{old}.mlp.fc2", f"{new}.mlp.c_proj")


def _text(target: str, num_layers: int) -> Iterator[Move]:
    embeddings = "text_model.embeddings"
    yield Move((f"{embeddings}.token_embedding.weight",), (f"{target}token_embedding.weight",))
    yield Move((f"{embeddings}.position_embedding.weight",), (f"{target}positional_embedding",))
    yield from _clip_layers("text_model", f"{target}transformer", num_layers)
    yield from _both("text_model.final_layer_norm", f"{target}ln_final")


def clip_moves(num_vision_layers: int, num_text_layers: int) -> list[Move]:
    """Table from CLIPModel to open_clip.CLIP."""
    embeddings = "vision_model.embeddings"
    return [
        Move((f"{embeddings}.class_embedding",), ("visual.class_embedding",)),
        Move((f"{embeddings}.position_embedding.weight",), ("visual.positional_embedding",)),
        Move((f"{embeddings}.patch_embedding.weight",), ("visual.conv1.weight",)),
        *_both("vision_model.pre_layrnorm", "visual.ln_pre"),
        *_clip_layers("vision_model", "visual.transformer", num_vision_layers),
        *_both("vision_model.post_layernorm", "visual.ln_post"),
        Move(("visual_projection.weight",), ("visual.proj",), "transpose"),
        *_text("", num_text_layers),
        Move(("text_projection.weight",), ("text_projection",), "transpose"),
        Move(("logit_scale",), ("logit_scale",), "to_scalar"),
    ]


def _timm_layers(num_layers: int) -> Iterator[Move]:
    for index in range(num_layers):
        old, new = f"vision_model.encoder.layers.{index}", f"visual.trunk.blocks.{index}"
        for part in ("weight", "bias"):
            yield Move(tuple(f"{old}.self_attn.{name}_proj.{part}" for name in "qkv"), (f"{new}.attn.qkv.{part}",))
        yield from _both(f"{old}.self_attn.out_proj", f"{new}.attn.proj")
        yield from _both(f"{old}.layer_norm1", f"{new}.norm1")
        yield from _both(f"{old}.layer_norm2", f"{new}.norm2")
        yield from _both(f"{old}.mlp.fc1", f"{new}.mlp.fc1")
        yield from _both(f"{old}.mlp.fc2", f"{new}.mlp.fc2")


def siglip_moves(num_vision_layers: int, num_text_layers: int) -> list[Move]:
    """Table from SiglipModel to open_clip.CustomTextCLIP with timm's vision transformer and attention pooling."""
    head, pool = "vision_model.head", "visual.trunk.attn_pool"
    packed = [
        Move((f"{head}.attention.in_proj_{part}",), (f"{pool}.q.{part}", f"{pool}.kv.{part}"), cuts=(1, 2))
        for part in ("weight", "bias")
    ]
    return [
        *_both("vision_model.embeddings.patch_embedding", "visual.trunk.patch_embed.proj"),
        Move(("vision_model.embeddings.position_embedding.weight",), ("visual.trunk.pos_embed",), "add_axis"),
        *_timm_layers(num_vision_layers),
        *_both("vision_model.post_layernorm", "visual.trunk.norm"),
        Move((f"{head}.probe",), (f"{pool}.latent",)),
        *packed,
        *_both(f"{head}.attention.out_proj", f"{pool}.proj"),
        *_both(f"{head}.layernorm", f"{pool}.norm"),
        *_both(f"{head}.mlp.fc1", f"{pool}.mlp.fc1"),
        *_both(f"{head}.mlp.fc2", f"{pool}.mlp.fc2"),
        *_text("text.", num_text_layers),
        *_both("text_model.head", "text.text_projection"),
        Move(("logit_scale",), ("logit_scale",), "to_scalar"),
        Move(("logit_bias",), ("logit_bias",), "to_scalar"),
    ]
