"""GradCache (Gao et al., arXiv 2101.06983): a contrastive step over more samples than one forward has memory for.

The share of a rank goes through the towers in micro-batches twice. The first time only features are kept, and the loss
of all of them gives their gradients. The second time each micro-batch's random state is put back, so its features come
out the same, and their gradients go on into the towers. Negatives are those of the whole global batch, as plain
gradient accumulation cannot have them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from pairloom.trainers.models.contrastive import Features
from pairloom.trainers.task import Batch

T = TypeVar("T")


def cached_step(
    batches: Sequence[Batch],
    features_of: Callable[[Batch], Features],
    loss_of: Callable[[Features], torch.Tensor],
    backward: Callable[[torch.Tensor], T],
    own_loss: Callable[[Features, Batch], torch.Tensor | None] = lambda *_: None,
) -> tuple[torch.Tensor, T]:
    """The loss (own losses included), and the result of `backward` for the last micro-batch.

    `backward` is called once per micro-batch with a value whose gradients add up to those of the loss. `own_loss` is
    computed in the second pass only: a loss of one micro-batch needs no features of the others.
    """
    states, parts = [], []
    with torch.no_grad():
        for batch in batches:
            states.append(RandomState.now())
            parts.append(features_of(batch))
    leaves = _join(parts)
    loss = loss_of(leaves)
    loss.backward()  # type: ignore[no-untyped-call]
    del parts
    total, size, result = loss.detach(), len(leaves.image) // len(batches), None
    after = RandomState.now()
    for index, (batch, state) in enumerate(zip(batches, states, strict=True)):
        state.restore()
        rows = slice(index * size, (index + 1) * size)
        features = features_of(batch)
        value = _share_of_loss(features, leaves, rows, has_scalars=index == 0)
        own = own_loss(features, batch)
        if own is not None:
            value, total = value + own, total + own.detach()
        result = backward(value)
    after.restore()
    assert result is not None
    return total, result


def _join(parts: Sequence[Features]) -> Features:
    """The features of all micro-batches, as leaves that collect gradients."""
    image, text = torch.cat([part.image for part in parts]), torch.cat([part.text for part in parts])
    joined = Features(image, text, parts[0].logit_scale.clone(), parts[0].logit_bias.clone())
    return Features(*(tensor.detach().requires_grad_() for tensor in joined))


def _share_of_loss(features: Features, leaves: Features, rows: slice, has_scalars: bool) -> torch.Tensor:
    """A value whose gradients are the loss's through these features; those of scale and bias count once."""
    image, text, scale, bias = (torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves)
    total = (features.image * image[rows]).sum() + (features.text * text[rows]).sum()
    # Zeros where they do not count: every parameter then has a gradient in every micro-batch, as ZeRO expects.
    counts = 1.0 if has_scalars else 0.0
    total = total + (features.logit_scale * scale * counts).sum()
    return total + (features.logit_bias * bias * counts).sum()


@dataclass(frozen=True)
class RandomState:
    """What dropout and other draws in a forward depend on."""

    cpu: torch.Tensor
    cuda: torch.Tensor | None

    @classmethod
    def now(cls) -> RandomState:
        """Of this process and its GPU."""
        return cls(torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None)

    def restore(self) -> None:
        """Draw again what was drawn since."""
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda)
