"""Learning rate schedules as pure functions of the number of samples seen."""

from __future__ import annotations

import math

from pairloom.schemas.recipes.train import OptimizerRecipe


def rate_factor(optimizer: OptimizerRecipe, total_samples: int, samples_seen: int) -> float:
    """Learning rate as a fraction (0..1) of its peak, for the step that starts after `samples_seen` samples.

    Linear warmup from 0 over `warmup_samples`, then one of three schedules: constant; cosine, a half cosine to 0 at
    `total_samples`; wsd, constant and then a 1 - sqrt decay to 0 over the last `decay_samples` (Haegele et al., arXiv
    2405.18392). With wsd, a longer run can resume from any checkpoint before the decay.
    """
    warmup = optimizer.warmup_samples
    if samples_seen < warmup:
        return samples_seen / warmup
    if optimizer.schedule == "constant":
        return 1.0
    if optimizer.schedule == "wsd":
        into_decay = samples_seen - (total_samples - optimizer.decay_samples)
        return 1 - math.sqrt(min(1.0, max(0, into_decay) / optimizer.decay_samples))
    done = (samples_seen - warmup) / max(1, total_samples - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
