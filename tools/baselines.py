"""The codecs that are measured: rdae, and its rivals at the settings that serve them best.

Settings were chosen for PSNR on photographs, each against the alternatives that the library offers:

- JPEG: optimised Huffman tables, progressive scans; in 4:2:0 and in 4:4:4.
- JPEG 2000: irreversible 9/7 wavelet, irreversible colour transform, rate control; as a bare codestream, which saves 85 bytes.
- WebP: method 6, the slowest.
- AVIF: 4:4:4 by AOM at speed 4; as Pillow does it, tuned for visual quality ("iq"), and tuned for PSNR, on one thread and in one tile,
  which saves 9 % for PSNR. Speed 2 would save another 4 % in three times the time, speed 0 another 1 % in ten times.
- JPEG XL: effort 7. Efforts 8 and 9 give smaller files at lower PSNR, on the same curve or slightly below.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, __version__, features

import codec
from codec.errors import ModelError
from codec.model import Model
from codec.search import SCHEDULES

Pixels = npt.NDArray[np.uint8]
Setting = float | int | str


class UnavailableError(Exception):
    """A codec cannot be measured here; the message says how to get it."""


@dataclass(frozen=True)
class Codec:
    """One rate–distortion curve in the making. Everything in it can be sent to another process."""

    key: str
    name: str
    settings: str
    """What is fixed along the curve, in the library's own words."""
    library: str
    parameter: str
    """What varies along the curve."""
    ladder: tuple[Setting, ...]
    encode: Callable[[Pixels, Setting], bytes]
    """A whole file."""
    decode: Callable[[bytes, Setting], Pixels]
    limits: tuple[float, float] = (0, 100)


def _pillow(feature: str) -> str:
    if not features.check(feature):
        raise UnavailableError(f"this Pillow is built without it: pip install --upgrade pillow (feature {feature})")
    library = {"jpg": "libjpeg-turbo", "jpg_2000": "OpenJPEG", "webp": "libwebp", "avif": "libavif"}[feature]
    version = features.version("libjpeg_turbo" if feature == "jpg" else feature)
    return f"Pillow {__version__}, {library} {version}"


def _save(image: Pixels, value: Setting, *, file_format: str, parameter: str, options: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, file_format, **{parameter: [value] if parameter == "quality_layers" else value}, **options)
    return buffer.getvalue()


def _open(data: bytes, _: Setting) -> Pixels:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def _through_pillow(key: str, name: str, feature: str, file_format: str, ladder: Sequence[Setting], **options: Any) -> Codec:
    settings = ", ".join(f"{option}={value!r}" for option, value in options.items())
    encode = partial(_save, file_format=file_format, parameter="quality", options=options)
    return Codec(key, name, settings, _pillow(feature), "quality", tuple(ladder), encode, _open)


def jpeg() -> list[Codec]:
    """JPEG, with chroma at half and at full resolution."""
    ladder = (3, 5, 10, 15, 20, 30, 40, 50, 60, 70, 80, 90)
    return [
        _through_pillow(f"jpeg-{short}", f"JPEG {long}", "jpg", "JPEG", ladder, subsampling=long, optimize=True, progressive=True)
        for short, long in (("420", "4:2:0"), ("444", "4:4:4"))
    ]


def jpeg2000() -> list[Codec]:
    """JPEG 2000; the parameter is the compression ratio, 24 / bpp."""
    options: dict[str, Any] = {"irreversible": True, "mct": 1, "quality_mode": "rates", "no_jp2": True}
    codec_ = _through_pillow("jpeg2000", "JPEG 2000", "jpg_2000", "JPEG2000", (320, 240, 160, 120, 80, 60, 48, 34, 24, 16, 12), **options)
    encode = partial(_save, file_format="JPEG2000", parameter="quality_layers", options=options)
    return [replace(codec_, encode=encode, parameter="ratio", limits=(1, 10_000))]


def webp() -> list[Codec]:
    """WebP, which knows 4:2:0 only."""
    return [_through_pillow("webp", "WebP", "webp", "WEBP", (0, 2, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95), method=6)]


def avif() -> list[Codec]:
    """AVIF by AOM, tuned for PSNR and for visual quality."""
    common: dict[str, Any] = {"codec": "aom", "subsampling": "4:4:4", "speed": 4}
    ordinary = {**common, "max_threads": 2, "advanced": {"tune": "iq"}}  # the stream depends on whether there is more than one thread
    best = {**common, "max_threads": 1, "autotiling": False, "advanced": {"tune": "psnr"}}
    return [
        _through_pillow("avif-iq", "AVIF, tune=iq", "avif", "AVIF", (10, 20, 30, 40, 50, 60, 70, 80), **ordinary),
        _through_pillow("avif-psnr", "AVIF, tune=psnr", "avif", "AVIF", (4, 8, 14, 20, 28, 36, 44, 52, 60, 70), **best),
    ]


def _jxl_encode(image: Pixels, value: Setting) -> bytes:
    import imagecodecs

    return bytes(imagecodecs.jpegxl_encode(image, distance=float(value), effort=7, lossless=False, numthreads=1))


def _jxl_decode(data: bytes, _: Setting) -> Pixels:
    import imagecodecs

    return np.asarray(imagecodecs.jpegxl_decode(data, numthreads=1))


def jxl() -> list[Codec]:
    """JPEG XL; the parameter is the Butteraugli distance."""
    try:
        import imagecodecs

        available = imagecodecs.JPEGXL.available
    except ImportError:
        available = False
    if not available:
        raise UnavailableError("not installed: pip install imagecodecs")
    library = f"imagecodecs {imagecodecs.__version__}, {imagecodecs.jpegxl_version()}"
    ladder = (22, 16, 12, 9, 7, 5, 3.5, 2.5, 1.8, 1.2, 0.8)
    return [Codec("jxl", "JPEG XL", "effort=7, lossless=False", library, "distance", ladder, _jxl_encode, _jxl_decode, (0.01, 25))]


@lru_cache(maxsize=16)
def _warm(model: str, quality: int) -> Model:
    """A model that is loaded, has its tables and has run once, so that none of this is counted as encoding."""
    loaded = codec.load(model)
    loaded.decode(loaded.encode(np.zeros((64, 64, 3), np.uint8), quality))
    return loaded


def _rdae_encode(image: Pixels, value: Setting, *, models: dict[str, str], effort: int = 0, tune: str = "psnr") -> bytes:
    model, quality = _chosen(value, models)
    return model.encode(image, quality, effort, tune)


def _rdae_decode(data: bytes, value: Setting, *, models: dict[str, str]) -> Pixels:
    return _chosen(value, models)[0].decode(data)


def _chosen(value: Setting, models: dict[str, str]) -> tuple[Model, int]:
    """A setting is the name of a fixed-λ model, or the quality of the only, variable-rate one."""
    model, quality = (models[value], 1) if isinstance(value, str) else (models[""], int(value))
    return _warm(model, quality), quality


def _distortion(model: Model) -> str:
    return str(model.metadata.get("distortion", "mse"))


def rdae(models: Sequence[str] = (), qualities: Sequence[int] = ()) -> list[Codec]:
    """The fixed-λ models as one curve (for each distortion they were trained for), each variable-rate model as one of its own.

    `models` are names or files, by default all that ship. Raises `UnavailableError` when none does, `ModelError` for a bad one.
    """
    import torch

    names = list(models) or codec.models()
    if not names:
        raise UnavailableError("no model ships yet: name model files with --models")
    loaded = {str(Path(name).resolve()) if Path(name).is_file() else name: codec.load(name) for name in names}
    library = f"rdae {codec.__version__}, PyTorch {torch.__version__}"
    curves = []
    for distortion in ("mse", "ms-ssim"):
        fixed = {name: model for name, model in loaded.items() if model.qualities == 1 and _distortion(model) == distortion}
        if fixed:
            # The hash is part of the setting, so that a model that was trained anew is measured anew.
            by_rate = sorted(fixed, key=lambda name: fixed[name].metadata.get("lambdas", [0])[0])
            paths = {f"{fixed[name].name}@{fixed[name].sha256[:8]}": name for name in by_rate}
            suffix, title = ("", "") if distortion == "mse" else ("-ms-ssim", ", for MS-SSIM")
            encode, decode = partial(_rdae_encode, models=paths), partial(_rdae_decode, models=paths)
            name = f"rdae, one model per λ{title}"
            settings = f"fixed-λ models, trained for {distortion}, computed in {next(iter(fixed.values())).precision}"
            curves.append(Codec(f"rdae-fixed{suffix}", name, settings, library, "model", tuple(paths), encode, decode))
    for name, model in loaded.items():
        if model.qualities > 1:
            ladder = tuple(qualities) or tuple(round(q) for q in np.linspace(1, model.qualities, 10))
            if not all(1 <= q <= model.qualities for q in ladder):
                raise ModelError(f"model {model.name} has qualities 1…{model.qualities}")
            encode, decode = partial(_rdae_encode, models={"": name}), partial(_rdae_decode, models={"": name})
            about = f"trained for {_distortion(model)}, computed in {model.precision}"
            settings = f"variable-rate model {model.name}@{model.sha256[:8]}, {about}"
            limits = (1, model.qualities)
            curves.append(Codec(f"rdae-{model.name}", f"rdae {model.name}", settings, library, "quality", ladder, encode, decode, limits))
    return curves


def with_effort(plain: Codec, effort: int, tune: str = "psnr") -> Codec:
    """An rdae codec whose encoder searches."""
    assert isinstance(plain.encode, partial)
    encode = partial(plain.encode.func, **plain.encode.keywords, effort=effort, tune=tune)
    key, name = ("", "") if tune == "psnr" else (f"-{tune}", f", tune {tune}")
    rounds, steps = SCHEDULES[effort]
    searched = replace(plain, key=f"{plain.key}{key}-effort-{effort}", name=f"{plain.name}{name}, effort {effort}", encode=encode)
    return replace(searched, settings=f"{plain.settings}, {rounds} rounds of {steps} steps") if effort else searched


def with_ladder(codec_: Codec, ladder: Sequence[Setting]) -> Codec:
    """The codec at other settings. Raises ValueError for one that it does not have."""
    low, high = codec_.limits
    for value in ladder:
        if isinstance(value, str) or not low <= value <= high:
            raise ValueError(f"{codec_.parameter} must be {low:g}…{high:g}, not {value}")
        if codec_.parameter == "quality" and not isinstance(value, int):
            raise ValueError(f"quality must be a whole number, not {value}")
    return replace(codec_, ladder=tuple(ladder))


RIVALS: dict[str, Callable[[], list[Codec]]] = {"jpeg": jpeg, "jpeg2000": jpeg2000, "webp": webp, "avif": avif, "jxl": jxl}
