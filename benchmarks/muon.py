"""One step of Muon over the hidden matrices of a transformer: pairloom's and `torch.optim.Muon`.

`python -m benchmarks.muon --width 768 --num-layers 4`

Prints the seconds per step of both and how far the singular values of each step are from 1. torch orthogonalises in
bf16 on every device; pairloom does so in fp32 on CPUs.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from pairloom.trainers.optimizers.optimizers import Muon

LEARNING_RATE, WEIGHT_DECAY = 0.02, 0.0


def matrices(width: int, num_layers: int) -> list[torch.nn.Parameter]:
    """Queries, keys and values in one, output, and the two of the MLP, of each layer; with gradients."""
    torch.manual_seed(0)
    shapes = [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)] * num_layers
    made = [torch.nn.Parameter(torch.randn(shape) / shape[1] ** 0.5) for shape in shapes]
    for weight in made:
        weight.grad = torch.randn_like(weight)
    return made


def seconds_per_step(optimizer: torch.optim.Optimizer, num_steps: int) -> float:
    """Median, after one step that warms up."""
    optimizer.step()
    times = []
    for _ in range(num_steps):
        start = time.perf_counter()
        optimizer.step()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def singular_values(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Singular values of one step, without its scale."""
    scale = LEARNING_RATE * 0.2 * max(before.shape) ** 0.5
    return torch.linalg.svdvals((before - after) / scale)


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--num-layers", type=int, default=4)
    parser.add_argument("--num-steps", type=int, default=5)
    arguments = parser.parse_args()
    found = {}
    for name in ("pairloom", "torch"):
        weights = matrices(arguments.width, arguments.num_layers)
        first = weights[0].detach().clone()
        optimizer: torch.optim.Optimizer
        if name == "pairloom":
            group = {"params": weights, "lr": LEARNING_RATE, "weight_decay": WEIGHT_DECAY, "is_hidden": True}
            optimizer = Muon([group], (0.9, 0.95), 1e-8)
        else:
            optimizer = torch.optim.Muon(
                weights, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"
            )
        optimizer.step()
        values = singular_values(first, weights[0].detach())
        found[name] = seconds_per_step(optimizer, arguments.num_steps)
        print(f"{name:8} {found[name]:.3f} s per step, singular values {values.min():.3f} .. {values.max():.3f}")
    print(f"torch takes {found['torch'] / found['pairloom']:.2f} times as long")


if __name__ == "__main__":
    main()
