"""The integer arithmetic of the second profile once more, in plain NumPy on int64, written from the format's description.

It shares no code with the package: what both compute must be equal, bit for bit. It works on the tensors of a model file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

BITS = 12
Array = np.ndarray


def convolve(x: Array, weight: Array) -> Array:
    """C×h×w and O×C×k×k to O×h×w: the definition, with zeros outside."""
    k = weight.shape[2]
    height, width = x.shape[1:]
    out = np.zeros((len(weight), height, width), np.int64)
    for dy in range(k):
        for dx in range(k):
            for row in range(height):
                for column in range(width):
                    y, z = row + dy - k // 2, column + dx - k // 2
                    if 0 <= y < height and 0 <= z < width:
                        out[:, row, column] += weight[:, :, dy, dx] @ x[:, y, z]
    return out


def requantise(total: Array, bias: Array, shift: Array, lowest: int, highest: int) -> Array:
    """(The sum plus bias) over 2^shift, rounded half up, clamped."""
    down, up = np.maximum(shift, 0)[:, None, None], np.maximum(-shift, 0)[:, None, None]
    # Clipped first, so that 64 bits are enough.
    return np.clip(np.clip((total + bias[:, None, None] + 2**down // 2) >> down, -(2**24), 2**24) * 2**up, lowest, highest)


def shuffle(x: Array) -> Array:
    """4C×h×w to C×2h×2w: channel 4c + 2i + j holds the pixels at rows 2y + i and columns 2x + j."""
    channels, height, width = len(x) // 4, *x.shape[1:]
    out = np.zeros((channels, 2 * height, 2 * width), np.int64)
    for i in range(2):
        for j in range(2):
            out[:, i::2, j::2] = x[2 * i + j :: 4]
    return out


SQUARES = {1: ["0"], 2: ["01", "10"], 4: ["02", "31"], 7: ["0525", "6464", "3515", "6464"]}


def decode(
    tensors: Mapping[str, Array],
    slices: list[int],
    turns: list[int],
    fine: int,
    quality: int,
    z: Array,
    shape: tuple[int, int],
    symbols_of: Callable[..., Array],
) -> tuple[Array, Array, Array]:
    """Latents in units of 2⁻¹⁶, means and choices of table, all M×h×w. `turns` is empty for the first models; `fine` slices are fine.

    For each turn, `symbols_of(first channel, places, means, tables)` gives the symbols, as many rows as channels and columns as places.
    """
    t = {
        name: np.asarray(value).astype(np.int64)
        for name, value in tensors.items()
        if not np.issubdtype(np.asarray(value).dtype, np.floating)
    }
    height, width = shape
    q = quality - 1
    first_kind = "limits" not in t
    side, context, inner = [2**24] * 3 if first_kind else t["limits"].tolist()
    side_shift = t.get("side_shift", np.full(len(z), 4))
    context_shift = t.get("context_shift", t["spread"] + 4)

    def layer(name: str, x: Array, lowest: int, highest: int, added: Sequence[tuple[str, Array]] = (), extra: Array | int = 0) -> Array:
        total = convolve(x, t[f"{name}.weight"])
        bias = t[f"{name}.bias"] + extra
        for part, maps in added:
            total = total + convolve(maps, t[f"{part}.weight"])
            bias = bias + t.get(f"{part}.bias", 0)
        return requantise(total, bias, np.broadcast_to(t[f"{name}.shift"], bias.shape), lowest, highest)

    def seen(exact: Array, shift: int, limit: int) -> Array:
        return np.clip((exact + 2**shift // 2) >> shift, -limit, limit)

    x = np.array([seen(plane * step, int(s), side) for plane, step, s in zip(z.astype(np.int64), t["z_steps"][q], side_shift, strict=True)])
    x = shuffle(layer("hyper_synthesis.conv1", x, 0, inner))
    bias = t["features_bias"][q]
    if first_kind:
        x = shuffle(layer("hyper_synthesis.conv2", x, -inner, inner)) + bias[:, None, None]
        features = np.clip(x, 0, inner)[:, :height, :width]
    else:
        features = shuffle(layer("hyper_synthesis.conv2", x, 0, inner, extra=np.repeat(bias, 4)))[:, :height, :width]
    latents, means, tables, shown, finely = np.zeros((5, sum(slices), height, width), np.int64)

    def view(maps: Array) -> Array:
        return np.concatenate([maps, abs(maps)]) if turns else maps

    start = 0
    for k, size in enumerate(slices):
        count = turns[k] if turns else 1
        square = SQUARES[count]
        looks, most = (finely, 2**24) if k < fine else (shown, inner)
        for turn in range(count):
            added = []
            if start:
                added.append((f"slices.{k}.context", view(looks[:start])))
            if turn:
                added.append((f"slices.{k}.own.{turn - 1}", view(looks[start : start + size])))
            x = layer(f"slices.{k}.hidden", layer(f"slices.{k}.features", features, 0, most, added), 0, most)
            direct = [(f"slices.{k}.direct.{turn - 1}", looks[start : start + size])] if turn and count == 7 else []
            x = layer(f"slices.{k}.last", x, -(2**24), 2**24, direct)
            where = [(i, j) for i in range(height) for j in range(width) if int(square[i % len(square)][j % len(square)]) == turn]
            if not where:
                continue
            mean, table = np.zeros((2, size, len(where)), np.int64)
            for c in range(size):
                m = start + c
                spread = int(t["spread"][m])
                for n, (i, j) in enumerate(where):
                    octave = x[size + c, i, j] + (spread + 4) * 2**BITS - t["log2_steps"][q, m]
                    mean[c, n] = x[c, i, j] * 2 ** (spread + 4)
                    table[c, n] = np.clip((6 * octave + 2 ** (BITS - 1)) >> BITS, 0, 79)
            symbols = symbols_of(start, where, mean, table)
            for c in range(size):
                m = start + c
                for n, (i, j) in enumerate(where):
                    exact = int(symbols[c, n]) * int(t["steps"][q, m]) + int(mean[c, n])
                    means[m, i, j], tables[m, i, j] = mean[c, n], table[c, n]
                    latents[m, i, j] = np.clip(exact, -(2**31 - 1), 2**31 - 1)
                    shown[m, i, j] = seen(np.int64(exact), int(context_shift[m]), context)
                    finely[m, i, j] = seen(np.int64(exact), int(t["spread"][m]) + 4, 2**24)
        start += size
    return latents, means, tables
