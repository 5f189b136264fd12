"""From an image file's bytes to pixels, and what may be wrong with it on the way."""

import io
import warnings
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps

# What becomes of an image that is not plain: the run stops; the image is left out; it is made plain. What cannot be
# decoded cannot be made plain either, and is left out under "convert" too. Whatever is left out is named and counted.
Policy = Literal["raise", "skip", "convert"]

PLAIN_MODES = {1: "L", 3: "RGB"}
# Pillow refuses at twice its limit and warns at once it; here both are bad images.
warnings.simplefilter("error", Image.DecompressionBombWarning)


class BadImageError(ValueError):
    """An image that cannot be decoded, or that is not plain where only plain ones are wanted."""


def read(encoded: bytes, channels: int, policy: Policy) -> Image.Image:
    """The image in mode L (1 channel) or RGB (3), upright.

    Under "convert": CMYK by Pillow's formula, 16-bit grey divided by 257, transparent parts over white, EXIF rotation
    applied. Torchvision differs in the last three: it clips 16-bit values, drops the alpha channel, ignores EXIF.

    Raises:
      BadImageError: where `encoded` cannot be decoded and, unless `policy` is "convert", where it has a `flaw`.
    """
    image = _decoded(encoded)
    found = flaw(image, channels)
    if found and policy != "convert":
        raise BadImageError(found)
    return _plain(image, channels) if found else image


def flaw(image: Image.Image, channels: int) -> str:
    """In what way a decoded image is not plain, empty if it is: 8 bits, the right channels, upright, 2x2 or more."""
    rotated = image.getexif().get(ExifTags.Base.Orientation, 1) not in (0, 1)
    flaws = {
        "1x1": max(image.size) == 1,
        "rotated by EXIF": rotated,
        "palette with alpha": image.mode == "P" and image.has_transparency_data,
        "palette": image.mode == "P" and not image.has_transparency_data,
        "alpha": image.mode != "P" and image.has_transparency_data,
        "16-bit": image.mode.startswith("I;16"),
        "grayscale": image.mode == "L" and channels == 3,
        "colour": image.mode == "RGB" and channels == 1,
        image.mode: image.mode not in ("P", "L", "RGB", "RGBA", "LA", "PA", "RGBa", "La") and image.mode[:4] != "I;16",
    }
    return ", ".join(name for name, present in flaws.items() if present)


def pixels(image: Image.Image) -> np.ndarray:
    """The image as uint8 (h, w, c)."""
    values = np.asarray(image)
    return values[..., None] if values.ndim == 2 else values


def png(values: np.ndarray) -> bytes:
    """Uint8 (h, w), (h, w, 1) or (h, w, 3) as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(values.squeeze(-1) if values.shape[-1] == 1 else values).save(buffer, format="png")
    return buffer.getvalue()


def _decoded(encoded: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(encoded))
        image.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImageError(f"decompression bomb: {error}") from error
    except Image.UnidentifiedImageError as error:
        raise BadImageError("not an image") from error
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        OverflowError,
        MemoryError,
    ) as error:  # decoders raise all these
        raise BadImageError(f"cannot be decoded: {error}") from error
    return image


def _plain(image: Image.Image, channels: int) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image = Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise BadImageError(f"mode {image.mode}, whose range is not known")
    elif image.has_transparency_data:
        opaque = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", opaque.size, "white"), opaque)
    return image.convert(PLAIN_MODES[channels])
