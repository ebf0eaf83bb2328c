"""Pillow's door to `.rdae` files; importing this module, or `codec`, registers it.

`Image.open` reads the header and the metadata only, and decodes when the pixels are needed, with the model that the header names: a
shipped one, or one that `codec.load` loaded before. `Image.save` takes modes L, LA, RGB and RGBA as they are (1 and P, converted),
and the keywords `quality`, `bpp`, `size`, `psnr`, `effort`, `tune`, `model`, `tile`, `icc_profile`, `exif` and `xmp`. As in Pillow's own
plugins, the pixels are not turned by the EXIF orientation, on the way in or out, and EXIF and XMP are written only when they are passed.
"""

from __future__ import annotations

import io
import warnings
from typing import IO, Any

from PIL import Image, ImageFile

from codec import container
from codec.errors import RdaeError, RdaeWarning

FORMAT = "RDAE"
_MODES = {container.RGB: "RGB", container.GREY: "L"}
_EXIF_HEADER = b"Exif\0\0"


class RdaeImageFile(ImageFile.ImageFile):
    """An `.rdae` file."""

    format = FORMAT
    format_description = "Rate–distortion autoencoder image"

    def _open(self) -> None:
        assert self.fp is not None
        try:
            stream = container.peek(self.fp)
            blocks = {tag: stream.metadata(tag) for tag in (container.ICC, container.EXIF, container.XMP)}
        except RdaeError as error:
            raise SyntaxError(str(error)) from error
        self._size = stream.width, stream.height
        self._mode = _MODES[stream.mode] + ("A" if container.ALPHA in [tag for tag, _ in stream.chunks] else "")
        for name, tag, prefix in (("icc_profile", container.ICC, b""), ("exif", container.EXIF, _EXIF_HEADER), ("xmp", container.XMP, b"")):
            if block := blocks[tag]:
                self.info[name] = prefix + block
        self.info["quality"] = stream.quality
        self.info["model"] = stream.model_hash.hex()
        self.tile = [ImageFile._Tile("rdae", (0, 0, *self._size), 0, None)]

    def load(self) -> Any:
        """Decode, once."""
        if self.tile and self.fp:
            from codec import decoder
            from codec import model as models

            self.fp.seek(0)
            try:
                stream = container.read(self.fp.read())
                picture = decoder.decode(models.load_for(stream), stream)
            except RdaeError as error:
                raise OSError(str(error)) from error
            # From here on, Pillow's own way: raw pixels in a file.
            if self._exclusive_fp:
                self.fp.close()
            self.fp = io.BytesIO(picture.array.tobytes())
            self.tile = [ImageFile._Tile("raw", (0, 0, *self._size), 0, (self._mode, 0, 1))]
        return super().load()

    def load_seek(self, pos: int) -> None:
        """The raw pixels begin at once."""


def _accept(prefix: bytes) -> bool:
    return prefix.startswith(container.MAGIC)


def _save(image: Image.Image, file: IO[bytes], filename: str | bytes) -> None:
    if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
        raise OSError(f"cannot write mode {image.mode} as {FORMAT}")
    from dataclasses import replace

    from codec import encoder, picture, rate, tiles
    from codec import model as models

    given = image.encoderinfo
    exif = given.get("exif", b"")
    exif = (exif.tobytes() if isinstance(exif, Image.Exif) else exif).removeprefix(_EXIF_HEADER)
    xmp = given.get("xmp", b"")
    targets = {name: given[name] for name in ("quality", "bpp", "size", "psnr") if name in given}
    try:
        plain = picture.from_pillow(image, orient=False)
        whole = replace(
            plain,
            icc=given.get("icc_profile", image.info.get("icc_profile")) or None,
            exif=exif or None,
            xmp=(xmp.encode() if isinstance(xmp, str) else xmp) or None,
        )
        settings = {"tile": given.get("tile", tiles.TILE), "effort": given.get("effort"), "tune": given.get("tune", encoder.TUNES[0])}
        prepared = encoder.Encoder(models.load(given.get("model")), whole, keep=bool(targets), **settings)
        coded = rate.encode(prepared, **targets)
    except RdaeError as error:
        raise OSError(str(error)) from error
    if coded.note:
        warnings.warn(coded.note, RdaeWarning, stacklevel=2)
    file.write(coded.data)


Image.register_open(FORMAT, RdaeImageFile, _accept)
Image.register_save(FORMAT, _save)
Image.register_extension(FORMAT, ".rdae")
Image.register_mime(FORMAT, "image/x-rdae")
