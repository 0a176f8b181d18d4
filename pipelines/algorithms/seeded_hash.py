"""Random numbers that are functions of (seed, uid) alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pairloom.pipelines.engine.mix64 import mix64


def draws(uids: npt.NDArray[np.uint64], seed: int) -> npt.NDArray[np.float64]:
    """One number in [0, 1) per uid. `uids` is [rows, 2]: high and low half."""
    return (mixed(uids, seed) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def mixed(uids: npt.NDArray[np.uint64], seed: int) -> npt.NDArray[np.uint64]:
    """64 uniform bits per uid, a function of (seed, uid): the mixer of SplitMix64 (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        start = _mix(np.full(len(uids), seed, np.int64).view(np.uint64))
        return _mix(uids[:, 1] ^ _mix(uids[:, 0] ^ start))


def _mix(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    return mix64(state + np.uint64(0x9E3779B97F4A7C15))
