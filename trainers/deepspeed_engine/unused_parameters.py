"""Freeze parameters that the loss of a task does not depend on, such as DINOv2's `mask_token`.

Without this, the result depends on the number of ranks: ZeRO 0 skips a parameter that has no gradient, while ZeRO 1-3
give it a gradient of zeros, and weight decay then shrinks it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import torch
from torch import nn

from pairloom.trainers.task import Task

logger = logging.getLogger("pairloom.train")
NUM_NAMES_SHOWN = 5


def freeze_unused(task: Task, device: torch.device) -> tuple[str, ...]:
    """Freeze trainable parameters that the loss does not reach, with one log line; returns their names.

    Every rank calls it before the optimizer and the engine are built, and gets the same names.
    """
    used = _used_parameters(task, device)
    unused = {name: p for name, p in task.model.named_parameters() if p.requires_grad and id(p) not in used}
    for parameter in unused.values():
        parameter.requires_grad_(False)
    if unused:
        shown = ", ".join(list(unused)[:NUM_NAMES_SHOWN])
        more = f" and {len(unused) - NUM_NAMES_SHOWN} more" if len(unused) > NUM_NAMES_SHOWN else ""
        logger.info("frozen, for the loss does not depend on them: %s%s", shown, more)
    return tuple(unused)


def _used_parameters(task: Task, device: torch.device) -> set[int]:
    """Ids of the parameters in the autograd graph of the loss of a tiny batch.

    A probe needs no list per model family, and works for plug-in tasks. The graph is walked instead of computing
    gradients, so that no gradients are held: at ZeRO 3 they would not fit. All ranks take the same artificial batch,
    so no rank differs from another.
    """
    modes = {module: module.training for module in task.model.modules()}
    try:
        # eval: batch statistics stay, and activation checkpointing, which hides a layer's graph, is off.
        # force_eager: a probe must not add a compiled variant, which would change last bits of later steps.
        with torch.random.fork_rng(devices=_cuda(device)), torch.compiler.set_stance("force_eager"):
            task.model.eval()
            batch = {name: tensor.to(device) for name, tensor in task.probe_batch().items()}
            loss, _ = task.loss(task.model, batch, task.counts(batch))
            return {id(variable) for variable in _leaves(loss)}
    finally:
        for module, mode in modes.items():
            module.training = mode


def _cuda(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []


def _leaves(loss: torch.Tensor) -> Iterator[nn.Parameter]:
    """The leaves of a tensor's autograd graph."""
    nodes = [loss.grad_fn]
    seen = set(nodes)
    while nodes:
        node = nodes.pop()
        if node is None:
            continue
        if hasattr(node, "variable"):  # AccumulateGrad
            yield node.variable
        for following, _ in node.next_functions:
            if following not in seen:
                seen.add(following)
                nodes.append(following)
