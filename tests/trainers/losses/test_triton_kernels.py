"""The Triton kernels give the numbers of the torch form: on a GPU, or under Triton's interpreter on a CPU.

On a CPU: `TRITON_INTERPRET=1 pytest tests/test_triton_kernels.py`, with triton installed.
"""

import os

import pytest
import torch

from pairloom.trainers.losses import torch_kernels
from pairloom.trainers.losses.blocks import NUM_COPIES, BlockSettings
from pairloom.trainers.losses.clip import clip_loss
from pairloom.trainers.losses.siglip import siglip_loss

pytest.importorskip("triton", reason="triton is not installed; pip install triton")
if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("no GPU; TRITON_INTERPRET=1 runs the kernels on a CPU", allow_module_level=True)

from pairloom.trainers.losses import triton_kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [(64, 64), (1, 1), (70, 130), (200, 64)]


def logits(rows: int, columns: int) -> torch.Tensor:
    """Between -100 and 100, as the bounded scale allows."""
    generator = torch.Generator().manual_seed(rows + columns)
    return (torch.rand(rows, columns, generator=generator) * 200 - 100).to(DEVICE)


def split(sums: torch.Tensor, weight: float) -> tuple[torch.Tensor, torch.Tensor, float]:
    return sums.float(), (sums - sums.float()).float(), weight


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_kernels_equal_torch(rows: int, columns: int) -> None:
    values = logits(rows, columns)
    sums = triton_kernels.clip_sums_(values.clone())
    for found, expected in zip(sums, torch_kernels.clip_sums_(values.clone()), strict=True):
        assert found.dtype == torch.float64
        assert torch.allclose(found, expected, rtol=1e-7, atol=1e-6)
    sides = split(sums[0], 0.25), split(sums[1], 0.5)
    gradient = triton_kernels.clip_gradient_(values.clone(), *sides)
    assert torch.allclose(gradient, torch_kernels.clip_gradient_(values.clone(), *sides), rtol=2e-6, atol=1e-9)
    assert torch.allclose(
        triton_kernels.siglip_sum_(values.clone()), torch_kernels.siglip_sum_(values.clone()), rtol=1e-6
    )
    found = triton_kernels.siglip_gradient_(values.clone(), 0.125)
    assert torch.allclose(found, torch_kernels.siglip_gradient_(values.clone(), 0.125), rtol=2e-6, atol=1e-12)


def test_small_softplus_keeps_its_digits() -> None:
    values = torch.full((70, 70), -20.0, device=DEVICE)
    assert float(triton_kernels.siglip_sum_(values)) == pytest.approx(70 * 70 * 2.0611536e-9, rel=1e-5)


def test_no_number_stays_no_number() -> None:
    values = logits(70, 70)
    values[3, 68] = torch.nan
    rows, columns = triton_kernels.clip_sums_(values.clone())
    assert rows.isnan().nonzero().tolist() == [[3]]
    assert columns.isnan().nonzero().tolist() == [[68]]
    assert triton_kernels.siglip_sum_(values.clone()).isnan()


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_losses_equal_torch(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(2, 150, 16, generator=generator), dim=-1).to(DEVICE)
    found = {}
    for kernels in (torch_kernels, triton_kernels):
        settings = BlockSettings(90 * 90 * 4 * NUM_COPIES, kernels)  # 2 x 2 blocks of 2 x 2 tiles
        image, text = (part.clone().requires_grad_() for part in features)
        scale, bias = (torch.full((1,), value, device=DEVICE, requires_grad=True) for value in (20.0, -5.0))
        if name == "clip":
            loss = clip_loss(image, text, scale, settings)
        else:
            loss = siglip_loss(image, text, scale, bias, settings)
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = [leaf.grad for leaf in (image, text, scale, bias) if leaf.grad is not None]
        found[kernels] = [loss.detach(), *gradients]
    for ours, expected in zip(found[triton_kernels], found[torch_kernels], strict=True):
        assert float((ours - expected).norm()) <= 1e-6 * float(expected.norm())
