"""AdamW, LAMB and Muon, and an exponential moving average (EMA) of the weights in the optimizer state.

Every state tensor, apart from the step count, has its parameter's shape, so that ZeRO can partition it and checkpoints
can be loaded on another number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from pairloom.schemas.recipes.train import OptimizerRecipe
from pairloom.trainers.task import ParameterGroup

AVERAGE = "average"


def build_optimizer(recipe: OptimizerRecipe, groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
    """Build the recipe's optimizer for a task's parameter groups."""
    settings = [
        {
            "params": list(group.parameters),
            "lr": group.learning_rate,
            "weight_decay": group.weight_decay,
            "is_hidden": group.is_hidden,
        }
        for group in groups
    ]
    optimizer: torch.optim.Optimizer
    if recipe.name == "lamb":
        optimizer = Lamb(settings, recipe.betas, recipe.eps)
    elif recipe.name == "muon":
        optimizer = Muon(settings, recipe.betas, recipe.eps)
    else:
        optimizer = torch.optim.AdamW(settings, betas=recipe.betas, eps=recipe.eps, fused=True)
    if recipe.average_decay is not None:
        keep_average(optimizer, recipe.average_decay)
    return optimizer


def keep_average(optimizer: torch.optim.Optimizer, decay: float) -> None:
    """Keep an EMA of the weights: after each step, average = decay * average + (1 - decay) * weight, in fp32.

    The average starts as the weights after the first step.
    """

    @torch.no_grad()
    def update(of: torch.optim.Optimizer, _: Any, __: Any) -> None:
        for group in of.param_groups:
            for weight in group["params"]:
                if weight.grad is None and weight not in of.state:
                    continue  # reading of.state[weight] would add an empty entry
                state = of.state[weight]
                if AVERAGE in state:
                    state[AVERAGE].lerp_(weight.float(), 1 - decay)
                else:
                    state[AVERAGE] = weight.detach().float().clone()

    optimizer.register_step_post_hook(update)


class _Whole(torch.optim.Optimizer):
    """Base class of optimizers that update one whole parameter after another."""

    def __init__(self, params: Any, betas: tuple[float, float], eps: float) -> None:
        super().__init__(params, {"betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; `closure` is ignored."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._step_one(weight, group)

    def _step_one(self, weight: torch.Tensor, group: dict[str, Any]) -> None:
        raise NotImplementedError

    def _direction_of_adam(self, weight: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        """Adam's update for a learning rate of 1, without weight decay, in the weight's shape."""
        state, (beta1, beta2) = self.state[weight], group["betas"]
        if "step" not in state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
        assert weight.grad is not None
        state["step"] += 1
        step = float(state["step"])
        state["exp_avg"].lerp_(weight.grad, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(weight.grad, weight.grad, value=1 - beta2)
        spread = (state["exp_avg_sq"] / (1 - beta2**step)).sqrt_().add_(group["eps"])
        direction: torch.Tensor = (state["exp_avg"] / (1 - beta1**step)).div_(spread)
        return direction


class Lamb(_Whole):
    """LAMB (You et al., arXiv 1904.00962): Adam's update of each matrix is scaled to the norm of the matrix.

    Parameters without weight decay (vectors, scalars) get Adam's update unscaled, as in the paper's experiments.
    """

    def _step_one(self, weight: torch.Tensor, group: dict[str, Any]) -> None:
        update, length = self._direction_of_adam(weight, group), 1.0
        if group["weight_decay"]:
            update.add_(weight, alpha=group["weight_decay"])
            of_weight, of_update = float(weight.norm()), float(update.norm())
            length = of_weight / of_update if of_weight > 0 and of_update > 0 else 1.0
        weight.add_(update, alpha=-group["lr"] * length)


class Muon(_Whole):
    """Muon (Jordan, 2024): matrices in layers are updated by their orthogonalised momentum, all others as in AdamW.

    Orthogonal updates are scaled by 0.2 * sqrt(max(rows, columns)) to the RMS of AdamW's updates, so that both use the
    same learning rate and weight decay (Liu et al., arXiv 2502.16982).
    """

    MOMENTUM = 0.95

    def _step_one(self, weight: torch.Tensor, group: dict[str, Any]) -> None:
        if group["is_hidden"]:
            update = orthogonal(self._momentum(weight)).mul_(0.2 * math.sqrt(max(weight.shape)))
        else:
            update = self._direction_of_adam(weight, group)
        weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])

    def _momentum(self, weight: torch.Tensor) -> torch.Tensor:
        """Nesterov momentum, in the weight's shape."""
        state = self.state[weight]
        if "step" not in state:
            state["step"], state["exp_avg"] = torch.zeros(()), torch.zeros_like(weight)
        assert weight.grad is not None
        state["step"] += 1
        state["exp_avg"].lerp_(weight.grad, 1 - self.MOMENTUM)
        ahead: torch.Tensor = weight.grad.lerp(state["exp_avg"], self.MOMENTUM)
        return ahead


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """Orthogonalise a 2-D matrix: five Newton-Schulz iterations bring its singular values to about 0.7 .. 1.2."""
    first, second, third = 3.4445, -4.7750, 2.0315  # from Jordan (2024), chosen for the largest slope at 0
    dtype = torch.bfloat16 if matrix.is_cuda else torch.float32  # CPUs round bf16 differently
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.to(dtype).T if is_tall else matrix.to(dtype)
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        square = x @ x.T
        x = first * x + (second * square + third * square @ square) @ x
    result: torch.Tensor = (x.T if is_tall else x).to(matrix.dtype)
    return result
