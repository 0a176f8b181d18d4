"""torch's and our optimizers, and a moving average of the weights kept beside their state.

What an optimizer keeps of a parameter has the parameter's shape, so that ZeRO can cut it up and a checkpoint can put it
together again for other ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from schemas.train_recipe import OptimizerRecipe
from trainers.task import ParameterGroup

AVERAGE = "average"


def build_optimizer(recipe: OptimizerRecipe, groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
    """The recipe's optimizer over a task's groups."""
    settings = [
        {"params": list(group.parameters), "lr": group.learning_rate, "weight_decay": group.weight_decay}
        for group in groups
    ]
    optimizer: torch.optim.Optimizer
    if recipe.name == "lamb":
        optimizer = Lamb(settings, recipe.betas, recipe.eps)
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
                state = of.state[weight]
                if weight.grad is None and not state:
                    continue
                if AVERAGE in state:
                    state[AVERAGE].lerp_(weight.float(), 1 - decay)
                else:
                    state[AVERAGE] = weight.detach().float().clone()

    optimizer.register_step_post_hook(update)


class Lamb(torch.optim.Optimizer):
    """LAMB (You et al., arXiv 1904.00962): Adam's step, scaled for each matrix to the length of the matrix.

    Parameters without weight decay (vectors, scalars) take Adam's step, as in the paper's own experiments.
    """

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
        state, (beta1, beta2) = self.state[weight], group["betas"]
        if "step" not in state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
        state["step"] += 1
        step = float(state["step"])
        state["exp_avg"].lerp_(weight.grad, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(weight.grad, weight.grad, value=1 - beta2)
        spread = (state["exp_avg_sq"] / (1 - beta2**step)).sqrt_().add_(group["eps"])
        update = (state["exp_avg"] / (1 - beta1**step)).div_(spread)
        length = 1.0
        if group["weight_decay"]:
            update.add_(weight, alpha=group["weight_decay"])
            of_weight, of_update = float(weight.norm()), float(update.norm())
            length = of_weight / of_update if of_weight > 0 and of_update > 0 else 1.0
        weight.add_(update, alpha=-group["lr"] * length)
