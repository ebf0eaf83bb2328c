"""The first entropy model: one static table for each latent channel and quality (profile 1)."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from codec import coder, container
from codec.coder import Symbols, Tables
from codec.frozen import STEP_BITS, FrozenDensity
from codec.rounding import Savings


class Factorized:
    """Codes the latents of a tile. A decoded latent is the symbol round(y / Δ) itself."""

    profile: Final = container.FACTORIZED

    def __init__(self, density: FrozenDensity, steps: npt.NDArray[np.int64], thrift: npt.NDArray[np.float64] | None = None) -> None:
        """`steps` are the Q×M quantiser steps, `thrift` that of each quality (`codec/rounding.py`), None for none.

        Raises ValueError when the density has another number of channels.
        """
        if len(density.scale) != steps.shape[1]:
            raise ValueError("steps and density do not fit each other")
        self.density = density
        self.steps = steps
        self.thrift = np.zeros(len(steps)) if thrift is None else thrift
        self._tables: dict[int, Tables] = {}
        self._savings: dict[int, Savings] = {}

    def in_precision(self, precision: str) -> Factorized:
        """The same model: it has no floating-point network."""
        return self

    def tables(self, quality: int) -> Tables:
        """The integer coding tables of a quality; made once."""
        if quality not in self._tables:
            self._tables[quality] = self.density.tables(self.steps[quality - 1])
        return self._tables[quality]

    def quantise(self, y: npt.NDArray[np.float32], quality: int, thrifty: bool = True) -> Symbols:
        """Symbols round(y / Δ), int32, or thriftily rounded ones, of latents M×h×w. Raises `ModelError` when they are out of range."""
        gain = ((1 << STEP_BITS) / self.steps[quality - 1])[:, None, None]
        thrift = float(self.thrift[quality - 1]) if thrifty else 0.0
        if quality not in self._savings:
            self._savings[quality] = Savings(self.tables(quality))
        savings = self._savings[quality]
        symbols = np.empty(y.shape, np.int32)
        for first, last in coder.groups(y.shape):
            scaled = y[first:last] * gain[first:last]
            tables = torch.arange(first, last)[:, None, None].expand(scaled.shape)
            symbols[first:last] = savings.rounded(torch.from_numpy(scaled), tables, thrift)
        return symbols

    def encode(self, y: npt.NDArray[np.float32], quality: int, side: Symbols | None = None, thrifty: bool = True) -> bytes:
        """The payload of latents M×h×w; there is no side information. Raises `ModelError` when they are out of range."""
        return coder.encode(self.quantise(y, quality, thrifty), self.tables(quality))

    def trial(
        self, y: npt.NDArray[np.float32], quality: int, side: Symbols | None = None, thrifty: bool = True
    ) -> tuple[tuple[float, float], Symbols]:
        """The code lengths -Σ log2 P of side information, of which there is none, and of latents M×h×w, and what will be decoded."""
        symbols = self.quantise(y, quality, thrifty)
        return (0.0, float(self.tables(quality).bits(symbols).sum())), symbols

    def bits(self, y: npt.NDArray[np.float32], quality: int) -> tuple[float, float]:
        """The code lengths alone."""
        return self.trial(y, quality)[0]

    def check_length(self, data: bytes, quality: int, height: int, width: int) -> None:
        """Raises `FormatError` when a payload is too short for latents M×h×w."""
        coder.check_length(data, self.tables(quality), (self.steps.shape[1], height, width))

    def decode(self, data: bytes, quality: int, height: int, width: int) -> Symbols:
        """The symbols M×h×w. Raises `FormatError` for a payload that `encode` does not write."""
        return coder.decode(data, self.tables(quality), (self.steps.shape[1], height, width))

    def dequantise(self, symbols: Symbols, quality: int) -> npt.NDArray[np.float32]:
        """What the synthesis takes, symbol · Δ."""
        step = (self.steps[quality - 1] / (1 << STEP_BITS)).astype(np.float32)
        latents: npt.NDArray[np.float32] = symbols.astype(np.float32) * step[:, None, None]
        return latents
