"""Uploads: what is too large, too many pixels, or no picture is refused in words, with the name its owner knows."""

from __future__ import annotations

import struct
import zlib

import pytest
from PIL import Image

from mmspec.demo.picture import PageLimits, read
from mmspec.errors import MMSpecError

pytestmark = pytest.mark.product


def refused(path, name="holiday.png", limits=None) -> str:
    with pytest.raises(MMSpecError) as caught:
        read(path, limits or PageLimits(), name)
    message = str(caught.value)
    assert str(path) not in message and "\n" not in message
    return message


def png(path, width: int, height: int):
    """A file that says it is a large picture, and has none of its pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_pictures_are_read_as_rgb(kind, tmp_path):
    path = tmp_path / "x"  # what it is called says nothing
    Image.new("L", (8, 4), 200).save(path, format=kind)
    image = read(path, PageLimits())
    assert (image.mode, image.size) == ("RGB", (8, 4))


def test_a_text_file_named_png(tmp_path):
    path = tmp_path / "x.png"
    path.write_text("not a picture")
    assert refused(path) == (
        "image 'holiday.png' is not in a picture format that this page reads: PNG, JPEG, WEBP, GIF, BMP or TIFF"
    )


def test_a_format_that_needs_another_program(tmp_path):
    path = tmp_path / "x.eps"
    Image.new("RGB", (8, 8)).save(path)
    assert "is not in a picture format that this page reads" in refused(path)


def test_a_large_file_is_not_opened(tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    path.write_bytes(b"\x89PNG" + bytes(20_000_000))
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("it was opened"))
    assert refused(path).startswith(
        "image 'holiday.png' has 20.0 MB, but this page takes 10 MB at most: make it smaller"
    )


@pytest.mark.parametrize(
    ("width", "height", "words"),
    [
        (8000, 6000, "has 8000 x 6000 pixels, 48.0 million, but this page takes 40 million at most"),
        (10_000, 10_000, "has 10000 x 10000 pixels, 100.0 million"),  # where Pillow warns
        (60_000, 60_000, "has far more pixels, but this page takes 40 million at most"),  # where Pillow refuses
    ],
)
def test_pixel_bombs_are_not_decoded(width, height, words, tmp_path, recwarn):
    assert words in refused(png(tmp_path / "x.png", width, height))
    assert not recwarn.list


def test_a_damaged_picture(tmp_path):
    path = tmp_path / "x.png"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:900])
    assert "image 'holiday.png' cannot be read" in refused(path)


def test_a_picture_that_was_cleared_away(tmp_path):
    assert "is no longer there: drop it again" in refused(tmp_path / "x.png")
