"""The optimizer's state by parameter name, from any partitioning into any other.

DeepSpeed cuts flattened parameters into partitions that depend on the ZeRO stage and the number of ranks. Each rank
writes what it holds as pieces, "elements start .. start + length of this parameter", and a rank that reads takes the
elements that it holds now from whichever files have them. So files alone are enough, on any number of ranks and at any
stage, no rank ever holds more than its part, and nothing that is read can run code (DeepSpeed's own files are pickles).

Kinds of tensors: `weight` (the fp32 values that the optimizer steps), and the optimizer's own, `exp_avg`, `exp_avg_sq`.
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
    """Elements start .. start + length of a flattened parameter, which lie in `flat` from `offset` on."""

    name: str
    numel: int  # of the whole parameter
    start: int
    length: int
    flat: torch.Tensor  # what the optimizer steps, and the key of its state
    offset: int

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """This piece of `flat`, or of a tensor of the optimizer's state that has its shape; a view."""
        return tensor.detach().view(-1).narrow(0, self.offset, self.length)


@dataclass(frozen=True)
class Snapshot:
    """What one rank writes: copies on the CPU, so that training goes on meanwhile."""

    tensors: Mapping[str, torch.Tensor]  # "<kind>/<name>"
    metadata: Mapping[str, str]


def take_snapshot(engine: Engine) -> Snapshot:
    """Copy this rank's share of the optimizer's state to the CPU."""
    tensors: dict[str, torch.Tensor] = {}
    places = {}
    state = base_optimizer(engine).state
    for piece in _own_share(engine):
        values = {WEIGHT: piece.flat, **_shaped(state.get(piece.flat, {}), piece.flat)}
        for kind, value in values.items():
            tensors[f"{kind}/{piece.name}"] = piece.of(value).to("cpu", copy=True)
        step = float(state.get(piece.flat, {}).get("step", 0.0))  # 0: the optimizer has not stepped it yet
        places[piece.name] = {"numel": piece.numel, "start": piece.start, "length": piece.length, "step": step}
    return Snapshot(tensors, {"pieces": json.dumps(places)})


def base_optimizer(engine: Engine) -> Any:
    """The torch optimizer inside of DeepSpeed's."""
    outer = engine.deepspeed.optimizer
    return outer if engine.zero_stage == 0 else outer.optimizer


def _shaped(state: Mapping[str, Any], flat: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tensors of the state that have a value for each element."""
    return {kind: t for kind, t in state.items() if torch.is_tensor(t) and t.shape == flat.shape and t.ndim}


def _own_share(engine: Engine) -> Iterator[Piece]:
    """The pieces that this rank writes: at stage 0, where all hold everything, an equal share of each parameter."""
    for piece in pieces(engine):
        if engine.zero_stage > 0:
            yield piece
            continue
        start, end = (piece.numel * number // world_size() for number in (rank(), rank() + 1))
        if end > start:
            yield replace(piece, start=start, length=end - start, offset=start)


def pieces(engine: Engine) -> Iterator[Piece]:
    """What this rank's optimizer holds of each trained parameter."""
    outer = engine.deepspeed.optimizer
    for name, parameter in engine.deepspeed.module.named_parameters():
        if not parameter.requires_grad:
            continue
        if engine.zero_stage == 0:
            yield Piece(name, parameter.numel(), 0, parameter.numel(), parameter, 0)
        elif engine.zero_stage < 3:
            mapping = parameter._hp_mapping  # None where another rank has all of it
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
    """A piece in a file."""

    file: Any
    kinds: Sequence[str]
    start: int
    length: int
    step: float


def restore(engine: Engine, paths: Sequence[Path]) -> dict[str, torch.Tensor]:
    """Load the optimizer's state and the trained parameters from the files of all ranks. Raises InputError.

    Returns the weights of parameters that are frozen now and were trained when the files were written: pairloom 0.1.0
    did not freeze parameters that the loss does not depend on.
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
    """All elements of a parameter, 1-D."""
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
    """A tensor of the optimizer's state, made where this process has not stepped yet; torch makes them at a step."""
    state = optimizer.state[flat]
    if "step" not in state:
        device = flat.device if optimizer.defaults.get("fused") or optimizer.defaults.get("capturable") else None
        state["step"] = torch.tensor(step, dtype=torch.float32, device=device)
    if kind not in state:
        state[kind] = torch.zeros_like(flat)
    found: torch.Tensor = state[kind]
    return found


def _spread_weights(engine: Engine) -> None:
    """Partitions of the optimizer -> the model's parameters on all ranks."""
    outer = engine.deepspeed.optimizer
    if engine.zero_stage in (1, 2):
        outer.update_lp_params()
    elif engine.zero_stage == 3:
        if outer.persistent_parameters:  # small ones that every rank holds whole
            outer.persistent_parameters[0].partition(outer.persistent_parameters)
        for group in range(len(outer.fp32_partitioned_groups_flat)):
            outer._reassign_or_swap_out_partitioned_parameters(group)
        # They stay apart, as at a fresh start: DeepSpeed's first step records who gathers what, and a weight that is
        # whole by then (out_proj of an attention, used without a call of its module) would be missed for good.
