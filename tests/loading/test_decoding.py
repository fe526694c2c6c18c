"""What is stored has one obvious meaning, or the message names the conversion."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from mtlcore.data import DataError
from mtlcore.errors import UsageError
from mtlcore.loading import (
    Root,
    decode_image,
    decode_label,
    decode_text,
    image_tensor,
    stored_turned,
)

SIZE = (12, 16)
RAMP = np.linspace(0, 255, 12 * 16 * 3).reshape(12, 16, 3).astype(np.uint8)
GREY = RAMP[..., 0]


def stored(image, form="PNG", **options):
    buffer = io.BytesIO()
    if form == "npy":
        np.save(buffer, image)
    else:
        image = image if isinstance(image, Image.Image) else Image.fromarray(image)
        image.save(buffer, form, **options)
    return buffer.getvalue()


def grey_png(numbers, bits):
    """A grey PNG of few bits, which Pillow does not write."""

    def chunk(name, data):
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check

    height, width = numbers.shape
    planes = (numbers[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    rows = np.packbits(planes.reshape(height, -1).astype(np.uint8), axis=1)
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (stored(Image.fromarray(GREY).convert("1")), None),
        (stored(GREY.astype(np.uint16) * 257), GREY / 255),
        (stored(GREY.astype(np.uint16) * 257, "TIFF"), GREY / 255),
        (stored(GREY.astype(np.float32) / 255, "TIFF"), GREY / 255),
        (stored(Image.fromarray(RAMP).convert("CMYK"), "TIFF"), RAMP / 255),
        (stored(Image.merge("LA", [Image.fromarray(GREY)] * 2)), GREY / 255),
        (stored(RAMP.astype(np.uint16) * 257, "npy"), RAMP / 255),
        (stored(RAMP.transpose(2, 0, 1), "npy"), RAMP / 255),
        (stored(GREY[None], "npy"), GREY / 255),
        (stored(RAMP / 255, "npy"), RAMP / 255),
        (stored(GREY > 100, "npy"), GREY > 100),
        (stored(np.zeros(SIZE, np.uint16)), np.zeros(SIZE)),
        (grey_png(GREY >> 4, 4), (GREY >> 4) / 15),
    ],
)
def test_photographs_of_every_sort_are_read(data, expected):
    image = decode_image(data, "x")
    assert image.shape == (3, *SIZE)
    assert image.dtype == torch.float32
    if expected is None:
        assert set(image.unique().tolist()) == {0.0, 1.0}
        return
    wide = np.atleast_3d(np.asarray(expected, dtype=np.float64))
    wanted = torch.from_numpy(wide).permute(2, 0, 1).expand(3, -1, -1).float()
    torch.testing.assert_close(image, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "data",
    [
        stored(RAMP.astype(np.uint16), "npy"),
        stored(GREY.astype(np.uint16)),
        stored(RAMP.astype(np.int64), "npy"),
        stored(RAMP.astype(np.float64), "npy"),
        stored(GREY.astype(np.float32), "TIFF"),
        stored(GREY.astype(np.int32) * 500, "TIFF"),
        stored(np.dstack([RAMP, GREY]), "npy"),
        stored(np.dstack([GREY, GREY]), "npy"),
        stored(RAMP.astype(np.int16) - 200, "npy"),
        b"not an image",
    ],
)
def test_others_are_refused_with_the_conversion(data):
    with pytest.raises(DataError, match=r"^x: .*(store it as|convert it to)"):
        decode_image(data, "x")


def test_shapes_of_three_by_three_are_height_width_channels():
    pixels = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    assert torch.equal(image_tensor(pixels, "x")[0] * 255, torch.from_numpy(pixels[..., 0]).float())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF"])
def test_a_photograph_is_turned_as_it_is_shown(orientation, form):
    upright = np.kron(np.arange(12).reshape(3, 4) * 20, np.ones((8, 8))).astype(np.uint8)
    undo = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud,
            5: lambda a: a.T, 6: lambda a: np.rot90(a, 1), 7: lambda a: np.rot90(a, 2).T,
            8: lambda a: np.rot90(a, -1)}[orientation]  # fmt: skip
    image = Image.fromarray(np.ascontiguousarray(undo(upright)))
    exif = image.getexif()
    exif[0x0112] = orientation
    options = {"quality": 95} if form == "JPEG" else {}
    data = stored(image, form, exif=exif, **options)
    shown = decode_image(data, "x")[0]
    torch.testing.assert_close(shown, torch.from_numpy(upright) / 255, atol=0.06, rtol=0)
    assert (stored_turned(data) is None) == (orientation == 1)
    if form != "JPEG":
        np.testing.assert_array_equal(decode_label(data, "x"), upright)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_grey_images_of_few_bits_give_the_stored_numbers(bits):
    numbers = np.arange(12 * 16).reshape(SIZE) % 2**bits
    np.testing.assert_array_equal(decode_label(grey_png(numbers, bits), "x"), numbers)


def test_colours_of_a_palette_are_given_where_they_are_asked_for():
    indices = Image.fromarray((GREY % 2).astype(np.uint8)).convert("L")
    indices.putpalette([0, 0, 0, 128, 64, 128])
    data = stored(indices)
    np.testing.assert_array_equal(decode_label(data, "x"), GREY % 2)
    colours = decode_label(data, "x", colours=True)
    np.testing.assert_array_equal(colours, (GREY % 2)[..., None] * np.array([128, 64, 128]))


@pytest.mark.parametrize(("form", "options"), [("JPEG", {}), ("WEBP", {}), ("JPEG2000", {})])
def test_lossy_labels_are_refused(form, options):
    with pytest.raises(DataError, match=f"^x: {form} changes the values of a label; store it as"):
        decode_label(stored(np.kron(GREY, np.ones((4, 4))).astype(np.uint8), form, **options), "x")
    lossless = stored(np.dstack([GREY] * 3), "WEBP", lossless=True)
    np.testing.assert_array_equal(decode_label(lossless, "x")[..., 0], GREY)


def test_an_image_that_is_too_large_says_how_large_and_what_to_do(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    monkeypatch.setenv("MTLCORE_MAX_PIXELS", "100")
    with pytest.raises(DataError, match=r"^x: .*192 pixels.*MTLCORE_MAX_PIXELS"):
        decode_image(stored(GREY), "x")
    monkeypatch.setenv("MTLCORE_MAX_PIXELS", "400")
    assert decode_image(stored(GREY), "x").shape == (3, *SIZE)
    monkeypatch.setenv("MTLCORE_MAX_PIXELS", "many")
    with pytest.raises(UsageError, match="MTLCORE_MAX_PIXELS: 'many'"):
        decode_image(stored(GREY), "x")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_is_read_by_its_mark(encoding):
    assert decode_text("küche\n".encode(encoding), "x") == "küche\n"


def test_text_of_another_encoding_is_named_and_read_by_name():
    data = "a\nküche\n".encode("cp1252")
    with pytest.raises(DataError, match=r"^x: line 2 is no text in utf-8 \(byte 0xfc\); save"):
        decode_text(data, "x")
    assert decode_text(data, "x", "cp1252") == "a\nküche\n"
    with pytest.raises(UsageError, match="encoding: unknown encoding: klingon"):
        decode_text(data, "x", "klingon")


def test_a_broken_link_is_no_missing_file(tmp_path):
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "folder").symlink_to(tmp_path / "gone")
    root = Root(str(tmp_path))
    for path in ("link.png", "folder/0.png"):
        with pytest.raises(DataError, match=r"is a link to .*gone.*, which does not exist") as told:
            root.read_bytes(path)
        assert type(told.value) is DataError
