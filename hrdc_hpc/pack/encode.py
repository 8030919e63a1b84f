"""One image on its way into a shard: is it whole, and is it to be smaller? Torch-free."""

from __future__ import annotations

import io

from PIL import Image

from hrdc_hpc.data.headers import BadImageError, check
from hrdc_hpc.pack.plan import Options

_UNDECODABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What PIL raises for bytes that it cannot decode."""
_DEEP = ("I", "F")
"""Modes of more than 8 bits a channel begin so; they are left as they are, because PIL cuts them to 8 by clipping."""


def pack_image(content: bytes, options: Options) -> tuple[bytes, int, int]:
    """Return the bytes to be packed, their height and width. Raises BadImageError, with the reason."""
    if not content:
        raise BadImageError("empty file")
    file = io.BytesIO(content)
    try:
        width, height = check(file, len(content))
    except OSError as error:
        raise BadImageError(f"damaged header: {error}") from error
    small = options.shorter_side is None or min(height, width) <= options.shorter_side
    if small and options.check == "header":
        return content, height, width
    file.seek(0)
    try:
        with Image.open(file, formats=("JPEG", "PNG")) as image:
            image.load()
            if small or image.mode.startswith(_DEEP):
                return content, height, width
            assert options.shorter_side is not None
            return smaller(image, options.shorter_side, options.quality)
    except _UNDECODABLE as error:
        raise BadImageError(f"damaged: {error}") from error


def smaller(image: Image.Image, side: int, quality: int) -> tuple[bytes, int, int]:
    """Resize to a shorter side of `side` pixels and encode as baseline JPEG, 4:2:0; grey stays grey, the rest is RGB.

    Antialiased by PIL's Lanczos filter; the longer side is truncated, as by torchvision's Resize. EXIF and profile are
    dropped without being applied: the loader ignores them, too, so that an image is seen as before.
    """
    if image.mode != "L":
        image = image.convert("RGB")
    width, height = (side * length // min(image.size) for length in image.size)
    file = io.BytesIO()
    resized = image.resize((width, height), Image.Resampling.LANCZOS)
    resized.save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return file.getvalue(), height, width
