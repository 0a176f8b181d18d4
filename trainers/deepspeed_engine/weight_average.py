"""The moving average of the weights as a whole state dict, from any ZeRO stage."""

from __future__ import annotations

from collections import defaultdict

import torch
import torch.distributed as dist

from pairloom.trainers.deepspeed_engine.engine import Engine
from pairloom.trainers.deepspeed_engine.optimizer_state import Piece, base_optimizer, pieces
from pairloom.trainers.optimizers.optimizers import AVERAGE
from pairloom.trainers.ranks import rank, world_size


def averaged_state(engine: Engine) -> dict[str, torch.Tensor]:
    """Averages of all trained parameters on the CPU of rank 0 (empty on the others); every rank calls it."""
    own: dict[str, list[Piece]] = defaultdict(list)
    for piece in pieces(engine):
        own[piece.name].append(piece)
    averages = base_optimizer(engine).state
    state = {}
    for name, parameter in engine.deepspeed.module.named_parameters():
        if not parameter.requires_grad:
            continue
        whole = torch.zeros(getattr(parameter, "ds_shape", parameter.shape), device=parameter.device)
        for piece in own[name]:
            average = averages.get(piece.flat, {}).get(AVERAGE, piece.flat)  # no step yet: the weight itself
            whole.view(-1)[piece.start : piece.start + piece.length] = piece.of(average)
        if engine.zero_stage > 0 and world_size() > 1:
            dist.reduce(whole, 0)
        if rank() == 0:
            state[name] = whole.cpu()
    return state
