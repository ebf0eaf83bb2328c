"""The integer tensors of a model file of profile 2, as `codec/hyperprior.py` computes with them, whatever the file's layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from torch import Tensor

from codec.fixedpoint import LIMIT, MAX_SHIFT
from codec.frozen import STEP_BITS, Integers

BITS: Final = 12
"""The networks give means and logarithms in units of 2⁻¹²."""
RANGES: Final = {
    "limits": (1, LIMIT),
    "side_shift": (0, MAX_SHIFT),
    "context_shift": (0, MAX_SHIFT),
    "spread": (BITS - STEP_BITS, 10),
    "log2_steps": (-LIMIT, LIMIT),
    "z_steps": (1, (1 << 31) - 1),
    "shape.steps": (1, (1 << 31) - 1),
}


def numbers(tensors: Mapping[str, Tensor], wanted: dict[str, tuple[int, ...]]) -> dict[str, Integers]:
    """The integer tensors of these shapes. Raises ValueError or KeyError when they are not there, or out of range.

    The first files of this profile have one shift for all outputs of a layer, no `limits`, and maps in units of 2⁻¹² throughout; the
    features' bias comes after the requantisation, in that unit. What they leave out is filled in here.
    """
    first = "limits" not in tensors
    out: dict[str, Integers] = {}
    for name, shape in wanted.items():
        if first and name in ("limits", "side_shift", "context_shift"):
            continue
        tensor = tensors[name]
        if tensor.is_floating_point() or tuple(tensor.shape) != (() if first and name.endswith(".shift") else shape):
            raise ValueError(f"{name} is not what the sizes ask for")
        out[name] = np.asarray(tensor.numpy(), dtype=np.int64)
    if first:
        for name in [name for name in out if name.endswith(".shift")]:
            out[name] = np.full(wanted[name], out[name])
        if abs(out["features_bias"]).max() > LIMIT:
            raise ValueError("features_bias is out of range")
        out["late_bias"], out["features_bias"] = out["features_bias"], np.zeros_like(out["features_bias"])
        out["limits"] = np.full(3, LIMIT, np.int64)
        out["side_shift"] = np.full(wanted["side_shift"], STEP_BITS - BITS, np.int64)
        out["context_shift"] = out["spread"] + STEP_BITS - BITS
    for name, (lowest, highest) in RANGES.items():
        if out[name].min() < lowest or out[name].max() > highest:
            raise ValueError(f"{name} is out of range")
    return out
