"""Memory of the contrastive losses: computed for one of many ranks, and measured for one rank here.

    python -m benchmarks.loss_memory --samples 32768 --width 512 --loss clip

Prints the memory that forward and backward add to the peak of a fresh process after its imports, and the computed sum
of the features, gradients and blocks of a rank for --global-samples over --ranks.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time


def count_bytes(samples: int, width: int, ranks: int) -> dict[str, int]:
    """Memory of a rank with `samples` samples at the peak of the backward, by name."""
    from pairloom.trainers.losses.blocks import BLOCK_BYTES

    features = samples * width * 4
    return {
        "own features": 2 * features,
        "their gradients, one of them on the ring": 2 * features,
        "texts of another rank, and those arriving": 0 if ranks == 1 else 2 * features,
        "gradient arriving": 0 if ranks == 1 else features,
        "products of the gradients with the scale and features": features,
        "vectors in float64": 8 * 8 * samples,
        "one block and its copies": BLOCK_BYTES,
    }


def measure(samples: int, width: int, loss_name: str) -> dict[str, float]:
    """One forward and backward in this process."""
    import torch

    from pairloom.trainers.losses.clip import clip_loss
    from pairloom.trainers.losses.siglip import siglip_loss

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    generator = torch.Generator().manual_seed(0)
    image, text = (
        torch.randn(samples, width, generator=generator).mul_(width**-0.5).requires_grad_() for _ in range(2)
    )
    scale, bias = torch.full((1,), 14.3, requires_grad=True), torch.full((1,), -10.0, requires_grad=True)
    start = time.monotonic()
    loss = clip_loss(image, text, scale) if loss_name == "clip" else siglip_loss(image, text, scale, bias)
    loss.backward()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    return {"loss": float(loss.detach()), "bytes": peak - before, "seconds": round(time.monotonic() - start, 1)}


def main() -> None:
    """Count, then measure in a fresh process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=32_768, help="of one rank, measured here")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--loss", choices=["clip", "siglip"], default="clip")
    parser.add_argument("--global-samples", type=int, default=65_536, help="counted")
    parser.add_argument("--ranks", type=int, default=8, help="counted")
    parser.add_argument("--in-process", action="store_true", help="measure here; for the process that main starts")
    options = parser.parse_args()
    if options.in_process:
        print(json.dumps(measure(options.samples, options.width, options.loss)))
        return
    counted = count_bytes(options.global_samples // options.ranks, options.width, options.ranks)
    for name, num_bytes in {**counted, "sum": sum(counted.values())}.items():
        print(f"{num_bytes / 1e6:9.1f} MB  {name}")
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.loss_memory", *sys.argv[1:], "--in-process"],
        stdout=subprocess.PIPE,
        check=True,
    )
    measured = json.loads(result.stdout)
    plain = 4 * options.samples**2
    print(
        f"{options.loss} {options.samples} x {options.samples} x {options.width}: "
        f"{measured['bytes'] / 1e6:.1f} MB above the imports in {measured['seconds']} s, loss {measured['loss']:.5f} "
        f"(one copy of all logits: {plain / 1e6:.1f} MB)"
    )


if __name__ == "__main__":
    main()
