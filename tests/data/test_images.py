import io
import struct

import numpy as np
import pytest
from PIL import Image

from train.data.images import BadImageError, pixels, read

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)


def encoded(image: Image.Image, form: str = "png", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=form, **options)
    return buffer.getvalue()


def _palette_with_alpha() -> tuple[bytes, np.ndarray]:
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8) % 3, mode=None).convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    expected = np.array([[10, 20, 30], [255, 255, 255], [70, 80, 90]], np.uint8)[np.arange(48).reshape(6, 8) % 3]
    return encoded(image, transparency=1), expected


def _cmyk() -> tuple[bytes, np.ndarray]:
    inks = RNG.integers(0, 256, (6, 8, 4))
    light = 255 - inks
    expected = np.rint(light[..., :3] * light[..., 3:] / 255)
    return encoded(Image.frombytes("CMYK", (8, 6), inks.astype(np.uint8).tobytes()), "tiff"), expected


def _sixteen_bit() -> tuple[bytes, np.ndarray]:
    values = RNG.integers(0, 65536, (6, 8)).astype(np.uint16)
    return encoded(Image.fromarray(values)), np.repeat(np.rint(values / 257)[..., None], 3, axis=2)


def _rotated() -> tuple[bytes, np.ndarray]:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    return encoded(Image.fromarray(COLOURS), exif=exif.tobytes()), np.rot90(COLOURS, -1)


def _alpha() -> tuple[bytes, np.ndarray]:
    alpha = np.repeat(np.array([[0], [255]], np.uint8), 24).reshape(6, 8, 1)
    image = Image.fromarray(np.concatenate([COLOURS, alpha], axis=2))
    return encoded(image), np.where(alpha == 255, COLOURS, 255)


CONVERTIBLE = {
    "CMYK": _cmyk(),
    "16-bit": _sixteen_bit(),
    "grayscale": (encoded(Image.fromarray(COLOURS[..., 0])), np.repeat(COLOURS[..., :1], 3, axis=2)),
    "palette with alpha": _palette_with_alpha(),
    "alpha": _alpha(),
    "1x1": (encoded(Image.fromarray(COLOURS[:1, :1])), COLOURS[:1, :1]),
    "rotated by EXIF": _rotated(),
}
PHOTOGRAPH = encoded(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)), "jpeg")
UNREADABLE = {
    "cannot be decoded": PHOTOGRAPH[: len(PHOTOGRAPH) // 2],
    "not an image": b"<html>404 Not Found</html>",
    "decompression bomb": encoded(Image.new("1", (20_000, 10_000))),
    "decompression bomb: Image size (90250000": encoded(Image.new("1", (9_500, 9_500))),
}


@pytest.mark.parametrize("kind", CONVERTIBLE)
def test_an_image_that_is_not_plain_is_named_or_made_plain(kind):
    file, expected = CONVERTIBLE[kind]
    for policy in ("raise", "skip"):
        with pytest.raises(BadImageError, match=f"^{kind}"):
            read(file, 3, policy)
    image = read(file, 3, "convert")
    assert image.mode == "RGB"
    # CMYK: Pillow rounds its product of two bytes to within one.
    np.testing.assert_allclose(pixels(image).astype(int), expected.astype(int), atol=kind == "CMYK")


@pytest.mark.parametrize("kind", UNREADABLE)
@pytest.mark.parametrize("policy", ["raise", "skip", "convert"])
def test_what_cannot_be_decoded_is_named_under_every_policy(kind, policy):
    with pytest.raises(BadImageError) as error:
        read(UNREADABLE[kind], 3, policy)
    assert str(error.value).startswith(kind)


@pytest.mark.parametrize("policy", ["raise", "skip", "convert"])
def test_plain_images_come_through_bit_for_bit(policy):
    np.testing.assert_array_equal(pixels(read(encoded(Image.fromarray(COLOURS)), 3, policy)), COLOURS)
    grey = COLOURS[..., :1]
    np.testing.assert_array_equal(pixels(read(encoded(Image.fromarray(grey[..., 0])), 1, policy)), grey)


def test_a_colour_image_is_not_plain_where_grey_is_wanted():
    file = encoded(Image.fromarray(COLOURS))
    with pytest.raises(BadImageError, match="colour"):
        read(file, 1, "raise")
    grey = pixels(read(file, 1, "convert"))[..., 0]
    np.testing.assert_allclose(grey, COLOURS @ np.array([0.299, 0.587, 0.114]), atol=0.51)


def test_a_format_that_starts_programs_is_no_image(monkeypatch):
    """An EPS file would be handed to Ghostscript, whatever its name says."""
    started = []
    monkeypatch.setattr(
        "PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: started.append(1) or Image.new("RGB", (8, 6))
    )
    for file in (encoded(Image.fromarray(COLOURS), "eps"), encoded(Image.fromarray(COLOURS), "dds")):
        with pytest.raises(BadImageError, match="not an image"):
            read(file, 3, "convert")
    assert not started


def test_an_image_that_no_crop_could_be_cut_from_cheaply_is_refused():
    with pytest.raises(BadImageError, match="2 x 30000: one side over 200 times the other"):
        read(encoded(Image.new("RGB", (2, 30_000))), 3, "convert")
    assert read(encoded(Image.new("RGB", (4, 800))), 3, "raise").size == (4, 800)


BROKEN_EXIF = (b"not a TIFF header", b"MM\0\x2a\0\0\0", b"II\x2a\0\x08\0\0\0\xff\xff", b"")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("exif", BROKEN_EXIF)
@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
def test_whole_pixels_beside_a_damaged_exif_are_kept(form, exif):
    image = encoded(Image.fromarray(COLOURS), form, exif=b"Exif\0\0" + exif if form != "png" else exif)
    plain = encoded(Image.fromarray(COLOURS), form)
    np.testing.assert_array_equal(pixels(read(image, 3, "convert")), pixels(read(plain, 3, "raise")))


def test_whatever_a_decoder_raises_is_a_bad_image(monkeypatch):
    for error in (struct.error("x"), AttributeError("x"), IndexError("x"), TypeError("x"), AssertionError("x")):

        def broken(*_, error=error):
            raise error

        monkeypatch.setattr(Image.Image, "load", broken)
        with pytest.raises(BadImageError, match="cannot be decoded: x"):
            read(encoded_plain, 3, "convert")


encoded_plain = encoded(Image.fromarray(COLOURS))
