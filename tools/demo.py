"""`python -m tools.demo IMAGE`: compress and restore a photograph, beside the JPEG that has the same PSNR.

Writes IMAGE.rdae, the restored IMAGE.png and IMAGE.jpg to the folder given by --out, and prints sizes, bits per pixel and PSNR as
measured on these files. Needs nothing but the installed package.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

import codec
from codec import image as images

Pixels = npt.NDArray[np.uint8]


def psnr(a: Pixels, b: Pixels) -> float:
    """Peak signal-to-noise ratio in dB over all channels."""
    error = np.mean((a.astype(np.float64) - b) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def jpeg(image: Pixels, quality: int) -> bytes:
    """JPEG 4:2:0, with optimised Huffman tables and progressive scans."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, optimize=True, progressive=True)
    return buffer.getvalue()


def jpeg_at(image: Pixels, target: float) -> tuple[bytes, float]:
    """The smallest JPEG whose PSNR is not below the target in dB, and its PSNR; the best there is when none reaches it."""
    low, high = 1, 95
    while low < high:
        middle = (low + high) // 2
        reached = psnr(image, np.asarray(Image.open(io.BytesIO(jpeg(image, middle)))))
        low, high = (low, middle) if reached >= target else (middle + 1, high)
    data = jpeg(image, low)
    return data, psnr(image, np.asarray(Image.open(io.BytesIO(data))))


def main(argv: list[str] | None = None) -> int:
    """Exit status 0, or 2 with one line on standard error."""
    parser = argparse.ArgumentParser(prog="python -m tools.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for the files (default: demo)")
    parser.add_argument("--model", help="a shipped model or a .safetensors file")
    parser.add_argument("--quality", type=int, help="quality of the model")
    arguments = parser.parse_args(argv)
    stem = arguments.image.stem
    try:
        original = images.read(arguments.image)
        data = codec.compress(original, model=arguments.model, quality=arguments.quality)
        restored = codec.decompress(data, model=arguments.model)
        reached = psnr(original, restored)
        rival, rival_psnr = jpeg_at(original, reached)
        arguments.out.mkdir(parents=True, exist_ok=True)
        images.write_bytes(data, arguments.out / f"{stem}.rdae")
        images.write(restored, arguments.out / f"{stem}.png")
        images.write_bytes(rival, arguments.out / f"{stem}.jpg")
    except (codec.RdaeError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    height, width = original.shape[:2]
    rows = [("original", arguments.image.stat().st_size, ""), ("rdae", len(data), f"{reached:.2f} dB")]
    rows.append(("JPEG", len(rival), f"{rival_psnr:.2f} dB"))
    print(f"{arguments.image}: {width}×{height}")
    for name, size, quality in rows:
        print(f"  {name:9}{size:>9} bytes {8 * size / (width * height):7.3f} bpp  {quality}")
    print(f"rdae needs {100 * (1 - len(data) / len(rival)):.0f} % fewer bytes than JPEG at this PSNR; files are in {arguments.out}/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
