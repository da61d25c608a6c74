"""Pictures of every kind are read the same way, as 8-bit RGB, upright and on white, or refused in words."""

from __future__ import annotations

import base64
import io
import os

import numpy as np
import pytest
from PIL import Image
from refusals import refused

from mmspec.data import open_image
from mmspec.demo.limits import PageLimits
from mmspec.demo.picture import read
from mmspec.errors import MMSpecError
from mmspec.media.pictures import load_image

RAMP = np.array([[0, 1, 64], [128, 200, 255]], dtype=np.uint8)
GREY = np.repeat(RAMP[:, :, None], 3, axis=2)


def saved(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def values(source) -> np.ndarray:
    image = load_image(source)
    assert image.mode == "RGB"
    return np.asarray(image)


def palette() -> Image.Image:
    image = Image.fromarray(RAMP).convert("P", palette=Image.Palette.ADAPTIVE)
    assert image.mode == "P"
    return image


@pytest.mark.parametrize(
    "source",
    [
        Image.fromarray(RAMP),
        Image.fromarray(RAMP.astype(np.uint16) * 257),  # I;16
        Image.fromarray(RAMP.astype(np.int32) * 257),  # I, as older versions of Pillow read 16 bits
        Image.fromarray(RAMP).convert("I"),
        Image.fromarray(RAMP.astype(np.float32) / 255),  # F
        Image.fromarray(GREY).convert("RGBA"),
        palette(),
        saved(Image.fromarray(RAMP.astype(np.uint16) * 257)),
        saved(Image.fromarray(RAMP.astype(np.int32) * 257), "TIFF"),
        saved(Image.fromarray(RAMP.astype(np.float32) / 255), "TIFF"),
        RAMP,
        GREY,
        RAMP[:, :, None],
        RAMP.astype(np.uint16) * 257,
        (RAMP.astype(np.uint16) * 257).astype(">u2"),
        RAMP / 255,
        (GREY / 255).astype(np.float32),
        np.dstack([GREY, np.full_like(RAMP, 255)]),
        "data:image/png;base64," + base64.b64encode(saved(Image.fromarray(RAMP))).decode(),
    ],
    ids=lambda source: getattr(source, "mode", None) or str(getattr(source, "dtype", type(source).__name__)),
)
def test_grey_is_the_same_grey_in_every_form(source):
    assert np.array_equal(values(source), GREY)


def test_what_a_file_holds_in_32_bits_was_measured_in_16():
    """However dark it is, while values in memory that fit 8 bits are meant to be 8 bits."""
    assert values(saved(Image.fromarray(RAMP.astype(np.int32)), "TIFF")).max() <= 1


def test_what_is_transparent_is_white():
    """Black on transparent is what charts and signatures are often saved as: black on black says nothing."""
    clear = np.array([[0, 255, 128]], dtype=np.uint8)
    wanted = np.repeat(255 - clear[:, :, None], 3, axis=2)
    black = np.zeros_like(clear)
    layers = Image.fromarray(np.dstack([black, black, black, clear]))
    grey = Image.merge("LA", [Image.fromarray(black), Image.fromarray(clear)])
    for source in (
        layers,
        saved(layers),
        np.asarray(layers),
        grey,
        grey.convert("La"),
        saved(layers, "WEBP", lossless=True),
    ):
        assert np.abs(values(source).astype(int) - wanted).max() <= 1
    indexed = Image.new("P", (2, 1))
    indexed.putpalette([0, 0, 0, 0, 0, 0])
    indexed.putpixel((1, 0), 1)
    content = saved(indexed, transparency=0)
    assert Image.open(io.BytesIO(content)).mode == "P"
    assert values(content).tolist() == [[[255] * 3, [0] * 3]]
    keyed = saved(Image.fromarray(np.array([[0, 9]], dtype=np.uint8)), transparency=0)
    assert values(keyed).tolist() == [[[255] * 3, [9] * 3]]


def test_inks_become_light():
    ink = np.array([[[0, 0, 0, 0], [0, 0, 0, 255], [255, 0, 0, 0]]], dtype=np.uint8)
    assert values(Image.fromarray(ink, mode="CMYK")).tolist() == [[[255] * 3, [0] * 3, [0, 255, 255]]]


def test_a_photograph_is_turned_upright_at_every_door(tmp_path):
    pixels = np.zeros((8, 16, 3), dtype=np.uint8)
    pixels[:, 8:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    content = saved(Image.fromarray(pixels), "JPEG", exif=exif, quality=95)
    (tmp_path / "a b.jpg").write_bytes(content)
    upright = np.asarray(Image.open(io.BytesIO(content)).transpose(Image.Transpose.ROTATE_270))
    path = tmp_path / "a b.jpg"
    for got in (
        load_image(path),
        load_image(str(path)),
        load_image(path.as_uri()),
        load_image(content),
        load_image(Image.open(path)),
        load_image(load_image(path)),
        open_image("a b.jpg", tmp_path),
        open_image(path.as_uri(), "/elsewhere"),
        open_image(Image.open(io.BytesIO(content))),
        read(path, PageLimits()),
    ):
        assert got.size == (8, 16) and np.array_equal(np.asarray(got), upright)


def test_the_first_frame_of_several():
    frames = [Image.new("RGB", (2, 2), color) for color in ("red", "blue")]
    content = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert values(content)[0, 0].tolist() == [255, 0, 0]
    assert values(Image.new("L", (1, 1), 9)).tolist() == [[[9] * 3]]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (RAMP.astype(np.float32), "image in an array has floating point values from 0 to 255"),
        (np.array([[np.nan, 1.0]]), "from nan to nan"),
        (RAMP / 255 - 0.5, "from -0.5 to 0.5"),
        (RAMP.astype(np.int64), "int64 values, whose black and white are unknown"),
        (np.zeros((3, 8, 8), np.uint8), "shape (3, 8, 8); arrays are read as [height, width]"),
        (Image.fromarray(RAMP.astype(np.float32)), "image in memory has floating point values from 0 to 255"),
        (Image.fromarray(RAMP.astype(np.int32) - 1), "image in memory has 32-bit values from -1 to 254"),
        (Image.new("RGB", (0, 3)), "image in memory is empty: it has 0 x 3 pixels"),
        (b"", "image in bytes is not in a picture format"),
        (saved(Image.effect_noise((64, 64), 9), "JPEG")[:300], "image in bytes cannot be read"),
        ("data:image/png,abc", "another form than data:image/png;base64,"),
        ("data:image/png;base64,*", "image in a data: URL is not base64"),
        ("s3://bucket/a.png", "image 's3://bucket/a.png' is on a network: download it"),
        ("no\0name", "image 'no\\x00name' cannot be read"),
        ("a" * 5000, "image 'aaaa"),
        (3, "an image is a int; pass a PIL image, a path"),
    ],
)
def test_what_is_no_picture_is_refused_in_one_line(source, message):
    refused(lambda: load_image(source), message)


def test_what_is_no_ordinary_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")  # to open it would wait for ever
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    for name, message in (
        ("pipe.png", "cannot be read: it is no ordinary file"),
        (".", "cannot be read: it is a folder"),
        ("a.heic", "format that Pillow reads; save it as JPEG or PNG"),
    ):
        with pytest.raises(MMSpecError, match=message):
            load_image(tmp_path / name)
