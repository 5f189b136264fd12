"""From an image file's bytes to pixels, and what may be wrong with it on the way."""

import io
import logging
import warnings
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps

# What becomes of an image that is not plain: the run stops; the image is left out; it is made plain. What cannot be
# decoded cannot be made plain either, and is left out under "convert" too. Whatever is left out is named and counted.
Policy = Literal["raise", "skip", "convert"]

PLAIN_MODES = {1: "L", 3: "RGB"}
# Those that image data sets come in. Pillow knows more, of which some, such as EPS, start other programs.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
LONGEST = 200  # sides that the longer one may have of the shorter: resized to 256 pixels, 2 x 30,000 would be a billion
# Pillow refuses at twice its limit and warns at once it; here both are bad images.
warnings.filterwarnings("ignore", module="PIL")  # of EXIF and TIFF entries, a line for every image
warnings.simplefilter("error", Image.DecompressionBombWarning)
logging.getLogger("PIL").setLevel(logging.CRITICAL)  # what is wrong with a file is said once, with its name


class BadImageError(ValueError):
    """An image that cannot be decoded, or that is not plain where only plain ones are wanted."""


def read(encoded: bytes, channels: int, policy: Policy) -> Image.Image:
    """The image in mode L (1 channel) or RGB (3), upright.

    Under "convert": CMYK by Pillow's formula, 16-bit grey divided by 257, transparent parts over white, EXIF rotation
    applied. Torchvision differs in the last three: it clips 16-bit values, drops the alpha channel, ignores EXIF.

    Raises:
      BadImageError: where `encoded` cannot be decoded and, unless `policy` is "convert", where it has a `flaw`.
    """
    try:
        image = Image.open(io.BytesIO(encoded), formats=FORMATS)
        if max(image.size) > LONGEST * min(image.size):
            raise BadImageError(f"{image.width} x {image.height}: one side over {LONGEST} times the other")
        image.load()
        found = flaw(image, channels)
        if found and policy != "convert":
            raise BadImageError(found)
        return _plain(image, channels) if found else image
    except BadImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImageError(f"decompression bomb: {error}") from error
    except Image.UnidentifiedImageError as error:
        raise BadImageError(f"not an image of the formats {', '.join(FORMATS)}") from error
    except Exception as error:  # of a damaged file decoders raise OSError, SyntaxError, struct.error, TypeError, ...
        raise BadImageError(f"cannot be decoded: {error}") from error


def flaw(image: Image.Image, channels: int) -> str:
    """In what way a decoded image is not plain, empty if it is: 8 bits, the right channels, upright, 2x2 or more."""
    orientation = _orientation(image)
    flaws = {
        "1x1": max(image.size) == 1,
        "rotated by EXIF": orientation not in (0, 1, None),
        "damaged EXIF": orientation is None,
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


def _orientation(image: Image.Image) -> int | None:
    """As EXIF has it, None where that is damaged: the pixels may be whole."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # SyntaxError, struct.error, AttributeError, ... by what is damaged
        return None


def _plain(image: Image.Image, channels: int) -> Image.Image:
    if _orientation(image) not in (0, 1, None):
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image = Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise BadImageError(f"mode {image.mode}, whose range is not known")
    elif image.has_transparency_data:
        opaque = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", opaque.size, "white"), opaque)
    return image.convert(PLAIN_MODES[channels])
