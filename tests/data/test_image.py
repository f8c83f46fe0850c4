import contextlib
import io
import os
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data2vec.data.image import FORMATS, decode_image, pixels_from_array
from data2vec.data.sources.formats import MEDIA
from data2vec.errors import CorruptExample

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
GRAY = np.repeat(PIXELS[:, :, :1], 3, axis=2)


def encode(form, image=None, **options):
    file = io.BytesIO()
    (image or Image.fromarray(PIXELS)).save(file, form, **options)
    return file.getvalue()


def strays():
    """Readable JPEG files that strict decoders refuse."""
    content = encode("JPEG")
    return {
        "before the scan": content.replace(b"\xff\xda", b"\x00\x12\xff\xda", 1),
        "before a table": content.replace(b"\xff\xc4", b"\x00\x00\x00\xff\xc4", 1),
        "at the end": content + b"\0" * 40 + b"words",
    }


@pytest.mark.parametrize("where", strays())
@pytest.mark.parametrize("fast", [True, False])
def test_jpeg_with_stray_bytes_is_read_with_and_without_simplejpeg(monkeypatch, where, fast):
    if not fast:
        monkeypatch.setitem(sys.modules, "simplejpeg", None)
    found = decode_image({"bytes": strays()[where], "path": "a.jpg"})
    assert torch.equal(found, decode_image({"bytes": encode("JPEG"), "path": "a.jpg"}))


@pytest.mark.parametrize("fast", [True, False])
def test_torn_jpeg_is_corrupt_with_and_without_simplejpeg(monkeypatch, fast):
    if not fast:
        monkeypatch.setitem(sys.modules, "simplejpeg", None)
    with pytest.raises(CorruptExample, match=r"a\.jpg: image file is truncated"):
        decode_image({"bytes": encode("JPEG")[:-100], "path": "a.jpg"})


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, about the data
def test_damaged_exif_data_does_not_make_a_picture_unreadable():
    exif = b"Exif\x00\x00MM\x00\x2a\x00\x00\x00\x08\xff\xff" + b"\x01\x12\x00\x03" * 3
    found = decode_image({"bytes": encode("JPEG", exif=exif), "path": "a.jpg"})
    assert torch.equal(found, decode_image({"bytes": encode("JPEG"), "path": "a.jpg"}))


@pytest.mark.parametrize(
    ("signal", "reason"),
    [
        ({"bytes": None, "path": "nowhere/a.png"}, r"nowhere/a\.png: no such file"),
        ({"bytes": None, "path": "/"}, "/: a folder, not a file"),
        (None, "an unnamed image: neither content nor a path is given"),
        ({"bytes": None, "path": None}, "an unnamed image: neither content nor a path is given"),
        ({"bytes": b"", "path": "a"}, "a: not an image that can be decoded"),
        ({"bytes": encode("PNG")[:-300], "path": "a"}, "a: image file is truncated"),
        ({"bytes": encode("TIFF", Image.fromarray(np.full((4, 4), np.nan, np.float32))), "path": "a"}, "a: every pixel is NaN"),
    ],
)
def test_what_cannot_be_decoded_is_corrupt_with_a_reason(signal, reason):
    with pytest.raises(CorruptExample, match=f"^{reason}"):
        decode_image(signal)


def test_a_png_with_a_changed_byte_is_corrupt(encoded):
    """Also where Pillow would decode other pixels: in a gradient, most of them."""
    content = encoded(Image.fromarray(np.tile(np.arange(0, 240, 2, dtype=np.uint8), (80, 1))), "PNG")
    assert decode_image({"bytes": content, "path": "a"}).shape == (3, 80, 120)
    for place in range(41, len(content) - 16):
        changed = content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]
        with pytest.raises(CorruptExample):
            decode_image({"bytes": changed, "path": "a"})


@given(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "JPEG2000", "TGA", "PCX", "ICO"]), st.data())
def test_damaged_content_is_read_or_corrupt_but_raises_nothing_else(form, data):
    content = bytearray(encode(form))
    for _ in range(3):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(CorruptExample):
        found = decode_image({"bytes": bytes(content), "path": "a"})
        assert found.dtype == torch.uint8 and found.shape[0] == 3


def test_float_pictures_with_some_nan_keep_their_other_pixels():
    values = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4).copy()
    values[1, 1], values[2, 2] = np.nan, np.inf
    found = decode_image({"bytes": encode("TIFF", Image.fromarray(values)), "path": "a"})[0].numpy()
    assert (found[0, 0], found[3, 3], found[1, 1], found[2, 2]) == (0, 255, 0, 255)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (PIXELS, PIXELS),
        (Image.fromarray(PIXELS), PIXELS),
        (PIXELS.transpose(2, 0, 1), PIXELS),
        (torch.tensor(PIXELS).permute(2, 0, 1), PIXELS),
        (PIXELS.astype(np.float32) / 255, PIXELS),
        (torch.tensor(PIXELS.astype(np.float32) / 255, requires_grad=True), PIXELS),
        (PIXELS.astype(np.int64), PIXELS),
        (PIXELS.astype(">u2"), PIXELS),
        (PIXELS[::-1].copy()[::-1], PIXELS),
        (np.dstack([PIXELS, PIXELS[:, :, :1]]), PIXELS),
        (PIXELS[:, :, 0], GRAY),
        (PIXELS[:, :, :1], GRAY),
        (PIXELS[:, :, 0][None], GRAY),
        (Image.fromarray(PIXELS[:, :, 0]), GRAY),
        (Image.fromarray(PIXELS).convert("RGBA"), PIXELS),
        (PIXELS > 127, (PIXELS > 127) * np.uint8(255)),
    ],
)
def test_pictures_and_arrays_of_any_type_byte_order_and_stride_are_their_pixels(array, expected):
    found = pixels_from_array(array)
    assert found.dtype == np.uint8 and np.array_equal(found, expected)
    assert np.array_equal(decode_image({"array": array}).permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (PIXELS[:, :, :2], r"an image of shape \(20, 30, 2\); it must be \(H, W, 3\) or \(3, H, W\), or \(H, W\)"),
        (PIXELS[None], r"an image of shape \(1, 20, 30, 3\)"),
        (np.zeros(5), r"an image of shape \(5,\)"),
        (np.zeros((0, 5, 3)), r"an image of shape \(0, 5, 3\)"),
        (PIXELS[:3], r"an image of shape \(3, 30, 3\), whose channels may be first or last"),
        (PIXELS.astype(np.float32), "an image of float32 from 0 to 255; give integers from 0 to 255, or floats from 0 to 1"),
        (PIXELS.astype(np.int16) - 128, "an image of int16 from -128 to 127; give integers"),
        (PIXELS.astype(np.uint16) * 257, "an image of uint16 from 0 to 65535; give integers"),
        (np.full((9, 9, 3), np.nan), "an image of float64 from nan to nan; give"),
        (np.zeros((9, 9, 3), complex), "an image of complex128; give"),
    ],
)
def test_other_arrays_are_corrupt_and_told_what_is_wanted(array, reason):
    with pytest.raises(CorruptExample, match=f"^input 1: {reason}"):
        decode_image({"array": array, "path": "input 1"})


def test_postscript_is_not_an_image_whatever_its_name(monkeypatch):
    """Pillow would call Ghostscript."""
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("a program was called"))
    content = encode("EPS")
    assert Image.open(io.BytesIO(content)).format == "EPS"
    for name in ("a.eps", "a.png"):
        with pytest.raises(CorruptExample, match="not an image that can be decoded"):
            decode_image({"bytes": content, "path": name})


@pytest.mark.parametrize("ending", sorted(MEDIA["image"]))
def test_every_ending_of_images_is_of_a_format_that_is_decoded(ending):
    Image.init()
    assert Image.EXTENSION[ending] in FORMATS


def test_an_image_that_is_no_regular_file_is_corrupt(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("/dev/zero")
    for name in ("a.png", "b.png"):
        with pytest.raises(CorruptExample, match="not a regular file"):
            decode_image({"bytes": None, "path": str(tmp_path / name)})


def test_a_few_bytes_that_claim_many_pixels_are_corrupt(monkeypatch):
    monkeypatch.setattr("data2vec.data.image.SMALL_PIXELS", 10**4)
    blank = encode("PNG", Image.new("1", (2000, 2000)))
    with pytest.raises(CorruptExample, match=r"2000 x 2000 pixels in a file of \d+ bytes, refused as a possible decompression"):
        decode_image({"bytes": blank, "path": "a"})
