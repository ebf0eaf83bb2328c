"""The encoder's search for latents that cost less and show more: `--effort`. Neither the stream's format nor its decoder know of it.

An effort is some rounds of gradient steps (`codec/refine.py`) over the latents of each tile, window by window, so that memory stays
bounded. In the end, what was found is coded by the exact entropy model and synthesised as a decoder does it, and is kept only if
bits + λ·255²·MSE for each pixel, λ being what the quality was trained for, is below that of the latents as the analysis gives them.
`--tune ms-ssim` puts 1 - MS-SSIM in the place of the MSE (`codec/distortion.py`), of which each window has its own.

It starts from thriftily rounded latents (`codec/rounding.py`). What those do not know is that errors towards zero add up in the synthesis
(the largest eigenvalue of JᵀJ, J its Jacobian in steps of the quantiser, is some 30 times a mean one). Only its gradient knows of that.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
import torch

from codec import distortion, refine, tiles
from codec.coder import Symbols
from codec.encoder import TUNES
from codec.errors import ModelError
from codec.frozen import STEP_BITS
from codec.hyperprior import Hyperprior
from codec.soft import SoftFactorized, SoftHyperprior
from codec.tiles import Box
from codec.transforms import STRIDE

if TYPE_CHECKING:
    from codec.model import Model

SCHEDULES: Final = ((0, 0), (1, 3), (2, 3), (2, 4), (3, 4), (4, 4), (5, 4), (6, 4), (6, 5), (6, 7))
"""Of each effort, how many rounds it takes, and how many gradient steps there are in each."""
ITERATIONS: Final = tuple(rounds * steps for rounds, steps in SCHEDULES)
"""Gradient steps of each effort."""
Latents = npt.NDArray[np.float32]


class Search:
    """The search for one picture, at any quality."""

    @refine.gradients()
    def __init__(
        self,
        model: Model,
        pixels: npt.NDArray[np.uint8],
        alpha: npt.NDArray[np.uint8] | None,
        effort: int,
        tick: Callable[[], None] = lambda: None,
        tune: str = TUNES[0],
    ) -> None:
        """`pixels` H×W×3 or, grey, H×W; those with `alpha` (H×W) zero do not count. `tick` is called after each of the `steps`.

        Raises `ModelError` when the model was trained for something else, or does not say what λ its qualities were trained for.
        """
        distortion.weight(model, tune, 1)
        self._model = model
        self._tune, self._measure = tune, distortion.measure(tune)
        self._pixels = pixels
        self._alpha = alpha
        self._schedule = SCHEDULES[effort]
        self._tick = tick
        # Latents around a window that are searched with it and then dropped; side information has one position to 4×4.
        self._margin = 4 * -(-model.halos[1] // 4)
        self._whole = Box(0, 0, *tiles.latents_of(*pixels.shape[:2]))
        self._shows: dict[int, refine.Synthesis] = {}
        self._soft: dict[int, SoftFactorized | SoftHyperprior] = {}

    def steps(self, box: Box) -> int:
        """How many gradient steps a tile takes."""
        return math.prod(self._schedule) * sum(map(len, tiles.grid(box.height, box.width, tiles.WINDOW)))

    def _synthesis(self, quality: int) -> refine.Synthesis:
        """The synthesis of a quality, made once."""
        if quality not in self._shows:
            self._shows[quality] = refine.synthesiser(self._model, quality)
        return self._shows[quality]

    def _entropy(self, quality: int) -> SoftFactorized | SoftHyperprior:
        if quality not in self._soft:
            exact = self._model.entropy
            self._soft = {quality: SoftHyperprior(exact, quality) if isinstance(exact, Hyperprior) else SoftFactorized(exact, quality)}
        return self._soft[quality]

    @refine.gradients()
    def tile(self, box: Box, y: Latents, quality: int) -> tuple[Latents, int, Symbols | None, bool]:
        """What to encode for a tile with latents y, as `encode` of the entropy model takes it.

        That is: latents M×h×w, still to be rounded, the quality, side information (None: what follows from the latents), and whether to
        round thriftily, which suits latents that were not searched for.

        Raises `ModelError` when the model gives latents that are out of range.
        """
        weight = distortion.weight(self._model, self._tune, quality)
        # What lies around the tile; other tiles' latents are taken as they are before rounding.
        context = box.grown(2 * self._margin, self._whole)
        around = y
        if context != box:
            around = self._model.analyse_window(self._pixels, context)
            place = box.seen_from(context)
            around[:, place.slices[0], place.slices[1]] = y
        plain, entropy = (y, quality, None, True), self._model.entropy
        coded = entropy.trial(*plain)
        found, side = self._refined(box, context, around, self._start(y, coded[1], quality), quality, weight)
        better = (found, quality, side, False)
        try:
            after = self._cost(box, context, around, weight, quality, *entropy.trial(*better))
        except ModelError:  # the search has left the range of what can be coded
            return plain
        return better if after < self._cost(box, context, around, weight, quality, *coded) else plain

    def _start(self, y: Latents, coded: Symbols, quality: int) -> Latents:
        """Latents near y whose nearest symbols are those that y is thriftily rounded to."""
        entropy = self._model.entropy
        decoded = entropy.dequantise(coded, quality)
        reach = (refine.NEAR * entropy.steps[quality - 1] / (1 << STEP_BITS)).astype(np.float32)[:, None, None]
        start: Latents = decoded + np.clip(y - decoded, -reach, reach)
        return start

    def _refined(self, box: Box, context: Box, around: Latents, y: Latents, quality: int, weight: float) -> tuple[Latents, Symbols | None]:
        """What the gradients find."""
        soft = self._entropy(quality)
        found = np.empty_like(y)
        side = sides = None
        if isinstance(soft, SoftHyperprior):
            assert isinstance(self._model.entropy, Hyperprior)
            sides = self._model.entropy.real_side_information(y).float() / soft.side_step
            side = np.empty(sides.shape, np.int32)
        extent = Box(0, 0, box.height, box.width)
        for part in itertools.chain(*tiles.grid(box.height, box.width, tiles.WINDOW)):
            # From here on: `part` is what is wanted, `seen` what is searched, both in the tile; `frame` what is synthesised, in the image.
            seen = part.grown(self._margin, extent)
            place = Box(box.top + seen.top, box.left + seen.left, box.top + seen.bottom, box.left + seen.right)
            frame = place.grown(2 * self._margin, self._whole)
            coarse, own = seen.around(4), part.around(4)
            y_found, side_found = refine.refine(
                torch.from_numpy(y[:, seen.slices[0], seen.slices[1]])[None],
                None if sides is None else sides[None, :, coarse.slices[0], coarse.slices[1]],
                soft,
                self._scene(frame, place, around[:, frame.seen_from(context).slices[0], frame.seen_from(context).slices[1]]),
                self._synthesis(quality),
                weight,
                self._schedule,
                self._tick,
                self._tune,
            )
            inner = part.seen_from(seen).slices
            found[:, part.slices[0], part.slices[1]] = y_found[0, :, inner[0], inner[1]].numpy()
            if side is not None and side_found is not None:
                inner = own.seen_from(coarse).slices
                side[:, own.slices[0], own.slices[1]] = np.rint(side_found[0, :, inner[0], inner[1]].numpy())
        return found, side

    def _scene(self, frame: Box, place: Box, around: Latents) -> refine.Scene:
        """The pixels of a frame, of which those count that can be seen and that no latent beyond the frame has a part in."""
        weight = self._weight(frame, place.grown(self._margin, self._whole))
        inner = place.seen_from(frame).slices
        return refine.Scene(
            self._wanted(frame).float(), torch.from_numpy(weight)[None, None], torch.from_numpy(around.copy())[None], *inner, self._measure
        )

    def _wanted(self, frame: Box) -> torch.Tensor:
        """The pixels of a frame, 1×C×16H×16W."""
        return _planes(tiles.mirrored(self._pixels, frame * STRIDE))

    def _weight(self, frame: Box, counted: Box) -> npt.NDArray[np.float32]:
        """16H×16W of a frame: one for each pixel of the image that is not fully transparent, in the box that counts; else zero."""
        weight = np.zeros((frame.height * STRIDE, frame.width * STRIDE), np.float32)
        height, width = self._pixels.shape[:2]
        visible = counted * STRIDE & Box(0, 0, height, width)
        rows, columns = visible.seen_from(frame * STRIDE).slices
        weight[rows, columns] = 1 if self._alpha is None else self._alpha[visible.slices] > 0
        return weight

    def _cost(
        self, box: Box, context: Box, around: Latents, weight: float, quality: int, bits: tuple[float, float], latents: Symbols
    ) -> float:
        """Bits + weight · measure of a tile, both as they will be: by the exact tables, and in pixels of eight bits."""
        decoded = around.copy()
        place = box.seen_from(context).slices
        decoded[:, place[0], place[1]] = self._model.entropy.dequantise(latents, quality)
        error = 0.0
        counted = box.grown(self._margin, self._whole)
        halo, grey = self._model.halos[1], self._pixels.ndim == 2
        for window in itertools.chain(*tiles.grid(counted.height, counted.width, tiles.WINDOW)):
            part = Box(counted.top + window.top, counted.left + window.left, counted.top + window.bottom, counted.left + window.right)
            frame = part.grown(halo, context)
            rows, columns = frame.seen_from(context).slices
            shown = self._model.restore_window(decoded[:, rows, columns], quality, part.seen_from(frame), grey)
            counts = torch.from_numpy(self._weight(part, part))[None, None]
            error += float(self._measure(self._wanted(part).float(), counts)(_planes(shown).float()))
        return sum(bits) + weight * error


def _planes(pixels: npt.NDArray[np.uint8]) -> torch.Tensor:
    """Pixels H×W×C or H×W as 1×C×H×W."""
    return torch.tensor(np.atleast_3d(pixels)).permute(2, 0, 1)[None]
