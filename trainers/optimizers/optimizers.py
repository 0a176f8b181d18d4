"""torch's and our optimizers, and a moving average of the weights kept beside their state.

What an optimizer keeps of a parameter has the parameter's shape, so that ZeRO can cut it up and a checkpoint can put it
together again for other ranks.
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
    """The recipe's optimizer over a task's groups."""
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
    """After each step: average = decay * average + (1 - decay) * weight, in fp32; it begins with the first step's."""

    @torch.no_grad()
    def update(of: torch.optim.Optimizer, _: Any, __: Any) -> None:
        for group in of.param_groups:
            for weight in group["params"]:
                if weight.grad is None and weight not in of.state:
                    continue  # reading its state would make an empty one
                state = of.state[weight]
                if AVERAGE in state:
                    state[AVERAGE].lerp_(weight.float(), 1 - decay)
                else:
                    state[AVERAGE] = weight.detach().float().clone()

    optimizer.register_step_post_hook(update)


class _Whole(torch.optim.Optimizer):
    """Steps one whole parameter after another."""

    def __init__(self, params: Any, betas: tuple[float, float], eps: float) -> None:
        super().__init__(params, {"betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One step of every parameter that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._step_one(weight, group)

    def _step_one(self, weight: torch.Tensor, group: dict[str, Any]) -> None:
        raise NotImplementedError

    def _direction_of_adam(self, weight: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        """Adam's step at a learning rate of 1, without decay."""
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
    """LAMB (You et al., arXiv 1904.00962): Adam's step, scaled for each matrix to the length of the matrix.

    Parameters without weight decay (vectors, scalars) take Adam's step, as in the paper's own experiments.
    """

    def _step_one(self, weight: torch.Tensor, group: dict[str, Any]) -> None:
        update, length = self._direction_of_adam(weight, group), 1.0
        if group["weight_decay"]:
            update.add_(weight, alpha=group["weight_decay"])
            of_weight, of_update = float(weight.norm()), float(update.norm())
            length = of_weight / of_update if of_weight > 0 and of_update > 0 else 1.0
        weight.add_(update, alpha=-group["lr"] * length)


class Muon(_Whole):
    """Muon (Jordan, 2024): a matrix inside of a layer steps along its momentum, made orthogonal; all else as AdamW.

    Orthogonal steps are scaled by 0.2 sqrt(longer side), so that they are as large as AdamW's and share its learning
    rate and decay (Liu et al., arXiv 2502.16982).
    """

    MOMENTUM = 0.95

    def _step_one(self, weight: torch.Tensor, group: dict[str, Any]) -> None:
        if group["is_hidden"]:
            update = orthogonal(self._momentum(weight)).mul_(0.2 * math.sqrt(max(weight.shape)))
        else:
            update = self._direction_of_adam(weight, group)
        weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])

    def _momentum(self, weight: torch.Tensor) -> torch.Tensor:
        """Nesterov's: one step ahead."""
        state = self.state[weight]
        if "step" not in state:
            state["step"], state["exp_avg"] = torch.zeros(()), torch.zeros_like(weight)
        assert weight.grad is not None
        state["step"] += 1
        state["exp_avg"].lerp_(weight.grad, 1 - self.MOMENTUM)
        ahead: torch.Tensor = weight.grad.lerp(state["exp_avg"], self.MOMENTUM)
        return ahead


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """The matrix with singular values of about 1 (0.7 .. 1.2), by five steps of Newton and Schulz."""
    first, second, third = 3.4445, -4.7750, 2.0315  # of Jordan: steepest at 0
    dtype = torch.bfloat16 if matrix.is_cuda else torch.float32  # CPUs round bf16 differently
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.to(dtype).T if is_tall else matrix.to(dtype)
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        square = x @ x.T
        x = first * x + (second * square + third * square @ square) @ x
    result: torch.Tensor = (x.T if is_tall else x).to(matrix.dtype)
    return result
