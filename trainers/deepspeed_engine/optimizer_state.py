"""Save and load optimizer state by parameter name, independent of ZeRO stage and number of ranks.

DeepSpeed splits flattened parameters into partitions that depend on the ZeRO stage and the number of ranks. Each rank
writes its partition as pieces: the elements [start, start + length) of a named parameter. When loading, each rank reads
the elements of its current partition from all files that contain them. No rank holds more than its partition, and
loading cannot run code (DeepSpeed's own files are pickles).

Kinds of tensors: `weight` (the fp32 values that the optimizer updates), and the optimizer's state, e.g. `exp_avg` and
`exp_avg_sq`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from pairloom.schemas.errors import InputError
from pairloom.trainers.deepspeed_engine.engine import Engine
from pairloom.trainers.ranks import rank, world_size

WEIGHT = "weight"


@dataclass(frozen=True)
class Piece:
    """Elements [start, start + length) of a flattened parameter, stored in `flat` at [offset, offset + length)."""

    name: str
    numel: int  # of the whole parameter
    start: int
    length: int
    flat: torch.Tensor  # the tensor that the optimizer updates, and the key of its state
    offset: int

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """A 1-D view [length] of this piece in `flat` or in a state tensor of the same shape."""
        return tensor.detach().view(-1).narrow(0, self.offset, self.length)


@dataclass(frozen=True)
class Snapshot:
    """One rank's pieces, copied to the CPU so that training can continue while they are written."""

    tensors: Mapping[str, torch.Tensor]  # "<kind>/<name>"
    metadata: Mapping[str, str]


def take_snapshot(engine: Engine) -> Snapshot:
    """Copy this rank's share of the optimizer's state to the CPU."""
    tensors: dict[str, torch.Tensor] = {}
    pieces = {}
    state = base_optimizer(engine).state
    for piece in _own_share(engine):
        values = {WEIGHT: piece.flat, **_shaped(state.get(piece.flat, {}), piece.flat)}
        for kind, value in values.items():
            tensors[f"{kind}/{piece.name}"] = piece.of(value).to("cpu", copy=True)
        step = float(state.get(piece.flat, {}).get("step", 0.0))  # 0: not updated yet
        pieces[piece.name] = {"numel": piece.numel, "start": piece.start, "length": piece.length, "step": step}
    return Snapshot(tensors, {"pieces": json.dumps(pieces)})


def base_optimizer(engine: Engine) -> Any:
    """The torch optimizer that DeepSpeed wraps."""
    outer = engine.deepspeed.optimizer
    return outer if engine.zero_stage == 0 else outer.optimizer


def _shaped(state: Mapping[str, Any], flat: torch.Tensor) -> dict[str, torch.Tensor]:
    """The state tensors with one value per element of `flat`."""
    return {kind: t for kind, t in state.items() if torch.is_tensor(t) and t.shape == flat.shape and t.ndim}


def _own_share(engine: Engine) -> Iterator[Piece]:
    """The pieces that this rank writes; at stage 0, where every rank holds all state, an equal share per parameter."""
    for piece in pieces(engine):
        if engine.zero_stage > 0:
            yield piece
            continue
        start, end = (piece.numel * number // world_size() for number in (rank(), rank() + 1))
        if end > start:
            yield replace(piece, start=start, length=end - start, offset=start)


def pieces(engine: Engine) -> Iterator[Piece]:
    """The pieces of trained parameters in this rank's optimizer.

    Reads private attributes of DeepSpeed's ZeRO optimizers.
    """
    outer = engine.deepspeed.optimizer
    for name, parameter in engine.deepspeed.module.named_parameters():
        if not parameter.requires_grad:
            continue
        if engine.zero_stage == 0:
            yield Piece(name, parameter.numel(), 0, parameter.numel(), parameter, 0)
        elif engine.zero_stage < 3:
            mapping = parameter._hp_mapping  # None if other ranks hold all of it
            if mapping is not None:
                inside, place = mapping.lp_fragment_address, mapping.hp_fragment_address
                flat = outer.single_partition_of_fp32_groups[mapping.param_group_index]
                yield Piece(name, parameter.numel(), inside.start, inside.numel, flat, place.start)
        else:
            group, offset, partition = outer.grad_position[outer.get_param_id(parameter)]
            start = rank() * partition
            length = min(partition, parameter.ds_numel - start)  # the last partitions are padded
            if length > 0:
                yield Piece(name, parameter.ds_numel, start, length, outer.fp32_partitioned_groups_flat[group], offset)


@dataclass(frozen=True)
class _Stored:
    """A piece in a checkpoint file."""

    file: Any
    kinds: Sequence[str]
    start: int
    length: int
    step: float


def restore(engine: Engine, paths: Sequence[Path]) -> dict[str, torch.Tensor]:
    """Load the optimizer state and the trained parameters from the files of all ranks.

    Returns the 1-D weights of parameters that are frozen now but were trained when the files were written: pairloom
    0.1.0 did not freeze parameters that the loss does not depend on. Raises InputError when the files have other
    parameters than the model, or lack elements.
    """
    stored = _read_index(paths)
    is_trained = {name: p.requires_grad for name, p in engine.deepspeed.module.named_parameters()}
    trained = {name for name in is_trained if is_trained[name]}
    frozen_since = set(stored) & set(is_trained) - trained
    if wrong := sorted(trained ^ set(stored) - frozen_since):
        raise InputError(f"{paths[0].parent}: has other trained parameters than the recipe: {', '.join(wrong[:3])}")
    optimizer = base_optimizer(engine)
    for piece in pieces(engine):
        _restore_piece(optimizer, piece, stored[piece.name], paths[0].parent)
    _spread_weights(engine)
    return {name: _whole_weight(name, stored[name]) for name in sorted(frozen_since)}


def _whole_weight(name: str, stored: Sequence[_Stored]) -> torch.Tensor:
    """All elements of a parameter [numel], joined from the files of all ranks."""
    parts = sorted(stored, key=lambda part: part.start)
    return torch.cat([part.file.get_tensor(f"{WEIGHT}/{name}").view(-1) for part in parts])


def _read_index(paths: Sequence[Path]) -> Mapping[str, Sequence[_Stored]]:
    stored = defaultdict(list)
    for path in paths:
        file: Any = safe_open(path, "pt")
        kinds = defaultdict(list)
        for key in file.keys():  # noqa: SIM118  a safetensors file is no mapping
            kind, _, name = key.partition("/")
            kinds[name].append(kind)
        for name, place in json.loads(file.metadata()["pieces"]).items():
            stored[name].append(_Stored(file, kinds[name], place["start"], place["length"], place["step"]))
    return stored


def _restore_piece(optimizer: Any, piece: Piece, stored: Sequence[_Stored], folder: Path) -> None:
    num_found = 0
    for part in stored:
        start, end = max(piece.start, part.start), min(piece.start + piece.length, part.start + part.length)
        if start >= end:
            continue
        num_found += end - start
        for kind in part.kinds:
            target = piece.flat if kind == WEIGHT else _state_tensor(optimizer, piece.flat, kind, part.step)
            values = part.file.get_slice(f"{kind}/{piece.name}")[start - part.start : end - part.start]
            piece.of(target).narrow(0, start - piece.start, end - start).copy_(values)
    if num_found != piece.length:
        raise InputError(f"{folder}: holds {num_found} of {piece.length} elements of {piece.name}")


def _state_tensor(optimizer: Any, flat: torch.Tensor, kind: str, step: float) -> torch.Tensor:
    """A tensor of the optimizer's state, created if missing: torch creates state only in the first step."""
    state = optimizer.state[flat]
    if "step" not in state:
        device = flat.device if optimizer.defaults.get("fused") or optimizer.defaults.get("capturable") else None
        state["step"] = torch.tensor(step, dtype=torch.float32, device=device)
    if kind not in state:
        state[kind] = torch.zeros_like(flat)
    found: torch.Tensor = state[kind]
    return found


def _spread_weights(engine: Engine) -> None:
    """Copy the fp32 partitions of the optimizer to the model's parameters on all ranks."""
    outer = engine.deepspeed.optimizer
    if engine.zero_stage in (1, 2):
        outer.update_lp_params()
    elif engine.zero_stage == 3:
        if outer.persistent_parameters:  # small parameters that every rank holds in full
            outer.persistent_parameters[0].partition(outer.persistent_parameters)
        for group in range(len(outer.fp32_partitioned_groups_flat)):
            outer._reassign_or_swap_out_partitioned_parameters(group)
        # Parameters stay partitioned: in its first step DeepSpeed records which module gathers which parameter. A
        # parameter that is gathered already (attention's out_proj, whose module is never called) would not be recorded.
