"""The alpha plane: lossless coding, and what to put under pixels that nobody sees.

The coding is specified in `codec/container.py`: one of four linear filters, then LZMA2, both of which a few lines decode in any
language; on masks it is as small as lossless WebP. An alpha plane is H×W uint8, 255 = opaque; pixels are H×W or H×W×3 uint8.
"""

from __future__ import annotations

import lzma
from typing import Final

import numpy as np
import numpy.typing as npt

from codec.errors import FormatError

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
_SAMPLE: Final = 1 << 20
"""The filter is chosen on the middle rows, of about this many samples."""
_COARSE: Final = 16
"""Blocks of this side are filled at once, from block means that the whole image has a share in."""
_WINDOW: Final = 1024


def _chain(preset: int) -> list[dict[str, int]]:
    return [{"id": lzma.FILTER_LZMA2, "preset": preset, "lc": 0, "lp": 0, "pb": 0, "dict_size": 1 << 20}]


def _filtered(alpha: Pixels, kind: int) -> Pixels:
    if kind & 1:
        alpha = np.diff(alpha, axis=1, prepend=np.uint8(0))
    if kind & 2:
        alpha = np.diff(alpha, axis=0, prepend=np.uint8(0))
    return np.ascontiguousarray(alpha)


def _packed(alpha: Pixels, kind: int, preset: int) -> bytes:
    return lzma.compress(_filtered(alpha, kind).data, lzma.FORMAT_RAW, filters=_chain(preset))


def encode(alpha: Pixels) -> bytes:
    """The alpha chunk of a plane."""
    if (alpha == alpha[0, 0]).all():
        return bytes([alpha[0, 0]])
    height, width = alpha.shape
    rows = max(1, min(height, _SAMPLE // width))
    middle = alpha[(height - rows) // 2 :][:rows]
    kind = min(range(4), key=lambda kind: len(_packed(middle, kind, 1)))
    return bytes([kind]) + _packed(alpha, kind, 6)


def decode(data: bytes, height: int, width: int) -> Pixels:
    """The plane H×W of an alpha chunk. Raises `FormatError`; never allocates more than the plane needs, whatever the data claim."""
    if len(data) == 1:
        return np.full((height, width), data[0], np.uint8)
    if not data or data[0] > 3:
        raise FormatError("the alpha chunk is of an unknown kind")
    try:
        decompressor = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_chain(0))
        plane = decompressor.decompress(data[1:], height * width)
        # The end marker may be still to read when the last byte is out.
        more = b"" if decompressor.eof else decompressor.decompress(b"", 1)
    except (lzma.LZMAError, EOFError) as error:
        raise FormatError("the alpha chunk is damaged") from error
    if len(plane) != height * width or more or not decompressor.eof or decompressor.unused_data:
        raise FormatError("the alpha chunk does not hold one value for each pixel")
    alpha = np.frombuffer(plane, np.uint8).reshape(height, width)
    if data[0] & 2:
        alpha = np.cumsum(alpha, axis=0, dtype=np.uint8)
    if data[0] & 1:
        alpha = np.cumsum(alpha, axis=1, dtype=np.uint8)
    return alpha


def fill(pixels: Pixels, alpha: Pixels) -> Pixels:
    """The pixels, with those under alpha 0 replaced by a smooth continuation of what is visible, which costs few bits."""
    visible = alpha > 0
    if visible.all():
        return pixels
    colours = pixels.reshape(*alpha.shape, -1)
    height, width = alpha.shape
    out = colours.copy()
    coarse = _means(colours, visible)
    for top in range(0, height, _WINDOW):
        for left in range(0, width, _WINDOW):
            part = np.s_[top : top + _WINDOW, left : left + _WINDOW]
            if visible[part].all():
                continue
            blocks = coarse[top // _COARSE : (top + _WINDOW) // _COARSE, left // _COARSE : (left + _WINDOW) // _COARSE]
            mask = visible[part]
            smooth = _push_pull(colours[part].astype(np.float32), mask.astype(np.float32), blocks)
            out[part][~mask] = np.rint(smooth[: mask.shape[0], : mask.shape[1]][~mask]).astype(np.uint8)
    return out.reshape(pixels.shape)


def _means(colours: Pixels, visible: npt.NDArray[np.bool_]) -> Floats:
    """Mean visible colour of each block of 16×16 pixels, the gaps filled from their surroundings: ⌈H/16⌉×⌈W/16⌉×C."""
    height, width, channels = colours.shape
    rows, columns = -(-height // _COARSE), -(-width // _COARSE)
    total = np.zeros((rows, columns, channels), np.float32)
    weight = np.zeros((rows, columns), np.float32)
    edges = np.arange(0, width, _COARSE)
    for row in range(rows):
        band = np.s_[row * _COARSE : (row + 1) * _COARSE]
        mask = visible[band].astype(np.float32)
        weight[row] = np.add.reduceat(mask.sum(axis=0), edges)
        total[row] = np.add.reduceat((colours[band] * mask[..., None]).sum(axis=0), edges, axis=0)
    return _push_pull(total / np.maximum(weight, 1)[..., None], np.minimum(weight, 1), None)


def _push_pull(colours: Floats, weight: Floats, blocks: Floats | None) -> Floats:
    """Colours H×W×C where the weight H×W is above zero, elsewhere interpolated from means over ever larger blocks.

    `blocks` are what to take at a sixteenth of the resolution; None goes on to a single block. The result may be larger by the
    rows and columns that an even size asks for.
    """
    if (blocks is None and weight.size == 1) or weight.all():
        return colours
    odd = ((0, weight.shape[0] % 2), (0, weight.shape[1] % 2))
    colours, weight = np.pad(colours, (*odd, (0, 0))), np.pad(weight, odd)
    height, width = weight.shape
    # Blocks of two by two: the mean of what is visible.
    quads = weight.reshape(height // 2, 2, width // 2, 2)
    mass = quads.sum(axis=(1, 3))
    sums = (colours * weight[..., None]).reshape(height // 2, 2, width // 2, 2, -1).sum(axis=(1, 3))
    means = sums / np.maximum(mass, 1e-6)[..., None]
    if blocks is not None and blocks.shape[0] >= means.shape[0] and blocks.shape[1] >= means.shape[1]:
        coarse = blocks
    else:
        coarse = _push_pull(means, np.minimum(mass, 1), blocks)
    smooth = _doubled(_doubled(coarse[: height // 2, : width // 2], 0), 1)
    return np.where(weight[..., None] > 0, colours, smooth)


def _doubled(values: Floats, axis: int) -> Floats:
    """Linear interpolation to twice as many samples along an axis, at quarter positions."""
    values = np.moveaxis(values, axis, 0)
    before, after = np.concatenate([values[:1], values[:-1]]), np.concatenate([values[1:], values[-1:]])
    out = np.empty((2 * len(values), *values.shape[1:]), np.float32)
    out[::2] = 0.75 * values + 0.25 * before
    out[1::2] = 0.75 * values + 0.25 * after
    return np.moveaxis(out, 0, axis)
