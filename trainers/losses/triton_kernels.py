"""Arithmetic on one block of logits as Triton kernels: each reads the block once. See `blocks.Kernels`.

The products stay with cuBLAS: in exact fp32 they are not the tensor cores' work, and a fused kernel gains nothing on
them. What is fused is everything between two products, which in plain torch goes through memory six times.

Shapes: R rows and C columns of a block, M rows and N columns of a tile.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from pairloom.trainers.losses.torch_kernels import SplitSums

TILE = 64


def clip_sums_(logits_RC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """log sum exp of each row [R] and of each column [C], in float64."""
    (num_rows, num_columns), (down, across) = logits_RC.shape, _grid(logits_RC)
    of_rows = logits_RC.new_empty(2, across, num_rows)  # largest logit and sum of exponentials in each tile
    of_columns = logits_RC.new_empty(2, down, num_columns)
    _clip_sums[(down, across)](
        logits_RC, of_rows[0], of_rows[1], of_columns[0], of_columns[1], num_rows, num_columns, TILE=TILE
    )
    return _join(of_rows), _join(of_columns)


def _join(parts: torch.Tensor) -> torch.Tensor:
    """Log sums from the largest logits and the sums [2, tiles, R]."""
    largest, sums = parts.double()
    return torch.logsumexp(largest + sums.log(), dim=0)


def clip_gradient_(logits_RC: torch.Tensor, rows: SplitSums, columns: SplitSums) -> torch.Tensor:
    """The softmaxes of rows and of columns, each times its weight."""
    (sums_R, rests_R, row_weight), (sums_C, rests_C, column_weight) = rows, columns
    _clip_gradient[_grid(logits_RC)](
        logits_RC, sums_R, rests_R, sums_C, rests_C, row_weight, column_weight, *logits_RC.shape, TILE=TILE
    )
    return logits_RC


def siglip_sum_(logits_RC: torch.Tensor) -> torch.Tensor:
    """Sum of softplus over the block, 0-D."""
    parts = logits_RC.new_empty(_grid(logits_RC))
    _siglip_sum[_grid(logits_RC)](logits_RC, parts, *logits_RC.shape, TILE=TILE)
    return parts.sum(dtype=torch.float64)


def siglip_gradient_(logits_RC: torch.Tensor, weight: float) -> torch.Tensor:
    """Sigmoid times a weight."""
    _siglip_gradient[_grid(logits_RC)](logits_RC, weight, *logits_RC.shape, TILE=TILE)
    return logits_RC


def _grid(logits_RC: torch.Tensor) -> tuple[int, int]:
    assert logits_RC.is_contiguous()
    return triton.cdiv(logits_RC.shape[0], TILE), triton.cdiv(logits_RC.shape[1], TILE)


@triton.jit  # type: ignore[untyped-decorator]
def _tile(num_rows, num_columns, TILE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Rows, columns, places in memory and what of it lies inside the block."""
    row_M = tl.program_id(0) * TILE + tl.arange(0, TILE)
    column_N = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside_MN = (row_M < num_rows)[:, None] & (column_N < num_columns)[None, :]
    return row_M, column_N, row_M[:, None] * num_columns + column_N[None, :], inside_MN


@triton.jit  # type: ignore[untyped-decorator]
def _clip_sums(  # type: ignore[no-untyped-def]
    logits, row_largest, row_sums, column_largest, column_sums, num_rows, num_columns, TILE: tl.constexpr
):
    row_M, column_N, place_MN, inside_MN = _tile(num_rows, num_columns, TILE)
    logits_MN = tl.load(logits + place_MN, mask=inside_MN, other=-float("inf"))
    # Rows and columns outside of the block are all -inf; 0 for their largest keeps the difference a number.
    largest_M, largest_N = tl.max(logits_MN, axis=1), tl.max(logits_MN, axis=0)
    largest_M = tl.where(row_M < num_rows, largest_M, 0.0)
    largest_N = tl.where(column_N < num_columns, largest_N, 0.0)
    row_place = tl.program_id(1) * num_rows + row_M
    column_place = tl.program_id(0) * num_columns + column_N
    sums_M = tl.sum(tl.exp(logits_MN - largest_M[:, None]), axis=1)
    sums_N = tl.sum(tl.exp(logits_MN - largest_N[None, :]), axis=0)
    tl.store(row_largest + row_place, largest_M, mask=row_M < num_rows)
    tl.store(row_sums + row_place, sums_M, mask=row_M < num_rows)
    tl.store(column_largest + column_place, largest_N, mask=column_N < num_columns)
    tl.store(column_sums + column_place, sums_N, mask=column_N < num_columns)


@triton.jit  # type: ignore[untyped-decorator]
def _clip_gradient(  # type: ignore[no-untyped-def]
    logits,
    row_sums,
    row_rests,
    column_sums,
    column_rests,
    row_weight,
    column_weight,
    num_rows,
    num_columns,
    TILE: tl.constexpr,
):
    row_M, column_N, place_MN, inside_MN = _tile(num_rows, num_columns, TILE)
    logits_MN = tl.load(logits + place_MN, mask=inside_MN, other=0.0)
    sum_M = tl.load(row_sums + row_M, mask=row_M < num_rows, other=0.0)
    rest_M = tl.load(row_rests + row_M, mask=row_M < num_rows, other=0.0)
    sum_N = tl.load(column_sums + column_N, mask=column_N < num_columns, other=0.0)
    rest_N = tl.load(column_rests + column_N, mask=column_N < num_columns, other=0.0)
    # Sum and rest one after the other: together they would round to the sum.
    of_rows = tl.exp(logits_MN - sum_M[:, None] - rest_M[:, None]) * row_weight
    of_columns = tl.exp(logits_MN - sum_N[None, :] - rest_N[None, :]) * column_weight
    tl.store(logits + place_MN, of_rows + of_columns, mask=inside_MN)


@triton.jit  # type: ignore[untyped-decorator]
def _siglip_sum(logits, parts, num_rows, num_columns, TILE: tl.constexpr):  # type: ignore[no-untyped-def]
    _, _, place_MN, inside_MN = _tile(num_rows, num_columns, TILE)
    logits_MN = tl.load(logits + place_MN, mask=inside_MN, other=0.0)
    # softplus(x) = max(x, 0) + log1p(exp(-|x|)); log1p(y) = log(1 + y) * y / ((1 + y) - 1), or y where 1 + y is 1
    power_MN = tl.exp(-tl.abs(logits_MN))
    one_more_MN = 1.0 + power_MN
    rounded_MN = one_more_MN - 1.0
    log_MN = tl.where(
        rounded_MN == 0.0, power_MN, tl.log(one_more_MN) * (power_MN / tl.where(rounded_MN == 0.0, 1.0, rounded_MN))
    )
    softplus_MN = tl.where(inside_MN, tl.maximum(logits_MN, 0.0) + log_MN, 0.0)
    total = tl.sum(tl.sum(softplus_MN, axis=1), axis=0)
    tl.store(parts + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1), total)


@triton.jit  # type: ignore[untyped-decorator]
def _siglip_gradient(logits, weight, num_rows, num_columns, TILE: tl.constexpr):  # type: ignore[no-untyped-def]
    _, _, place_MN, inside_MN = _tile(num_rows, num_columns, TILE)
    logits_MN = tl.load(logits + place_MN, mask=inside_MN, other=0.0)
    tl.store(logits + place_MN, weight / (1.0 + tl.exp(-logits_MN)), mask=inside_MN)
