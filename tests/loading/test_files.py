"""Roots of every sort, their errors, their cache, and what decoding accepts and refuses."""

import io
import multiprocessing
import os
import pickle
import struct
import zipfile
import zlib
from typing import ClassVar

import fsspec
import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image
from torch.utils.data import DataLoader

from mtlcore.data import DataError
from mtlcore.loading import (
    MissingFile,
    Root,
    decode_image,
    decode_label,
    unit_normals,
)

FILES = {"train/a.txt": b"one", "train/b.txt": b"two", "val/c.txt": b"three"}


class Shelf(MemoryFileSystem):
    """A file system that the cache must take for a network."""

    protocol = "shelf"
    store: ClassVar = {}  # not shared with the memory file system
    pseudo_dirs: ClassVar = [""]
    fetched: ClassVar = []
    breaks_off = False

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("shelf://", "memory://"))

    def get_file(self, rpath, lpath, **kwargs):
        self.fetched.append(rpath)
        if self.breaks_off:
            with open(lpath, "wb") as partial:
                partial.write(b"ha")
            raise ConnectionError("the line went dead")
        super().get_file(rpath, lpath, **kwargs)


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    monkeypatch.setenv("MTLCORE_CACHE", str(tmp_path / "cache"))
    fsspec.register_implementation("shelf", Shelf, clobber=True)
    Shelf.store.clear()
    Shelf.fetched.clear()
    Shelf.breaks_off = False
    return Shelf()


def zipped(files, prefix=""):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(prefix + name, data)
    return buffer.getvalue()


@pytest.fixture(params=["local", "url", "memory", "zip", "zip-sub", "zip-in-memory"])
def root(request, tmp_path):
    memory = fsspec.filesystem("memory")
    if request.param in ("local", "url"):
        for name, data in FILES.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(data)
        return Root(str(tmp_path) if request.param == "local" else f"file://{tmp_path}")
    if request.param == "memory":
        for name, data in FILES.items():
            memory.pipe_file(f"/{tmp_path.name}/{name}", data)
        return Root(f"memory://{tmp_path.name}")
    if request.param == "zip-in-memory":
        memory.pipe_file(f"/{tmp_path.name}.zip", zipped(FILES))
        return Root(f"zip://::memory://{tmp_path.name}.zip")
    prefix = "sub/" if request.param == "zip-sub" else ""
    (tmp_path / "files.zip").write_bytes(zipped(FILES, prefix))
    return Root(f"zip://{prefix.rstrip('/')}::{tmp_path}/files.zip")


def test_every_sort_of_root_reads_alike(root):
    assert root.read_bytes("train/b.txt") == b"two"
    assert root.list("train") == ["a.txt", "b.txt"]
    assert root.list("") == ["train", "val"]
    assert root.exists("val/c.txt")
    assert root.exists("val")
    assert not root.exists("test/c.txt")


def test_a_missing_file_is_named(root):
    with pytest.raises(MissingFile) as caught:
        root.read_bytes("train/z.txt")
    assert str(caught.value).startswith(f"{root.where('train/z.txt')}: no such file")
    assert "train/z.txt" in str(caught.value)
    with pytest.raises(MissingFile):
        root.list("test")


def test_a_file_is_read_at_any_place(root):
    with root.open("train/b.txt") as file:
        assert file.seek(1) == 1
        assert file.read(1) == b"w"
        file.seek(0)
        assert file.read() == b"two"
    with pytest.raises(MissingFile, match=r"train/z.txt.*: no such file"):
        root.open("train/z.txt")
    with pytest.raises(DataError, match="leads out of the data's folder"):
        root.open("train/../../z.txt")


def test_a_pickled_root_opens_again(root):
    root.list("train")
    assert pickle.loads(pickle.dumps(root)).read_bytes("train/a.txt") == b"one"


@pytest.mark.parametrize(
    ("root", "expected"),
    [
        ("data", "data/x/1.png"),
        ("s3://bucket/data/", "s3://bucket/data/x/1.png"),
        ("zip://::data.zip", "zip://x/1.png::data.zip"),
        ("zip://sub::https://host/data.zip", "zip://sub/x/1.png::https://host/data.zip"),
        ("simplecache::https://host/data", "simplecache::https://host/data/x/1.png"),
    ],
)
def test_where_puts_the_path_where_the_url_wants_it(root, expected):
    assert Root(root).where("x/1.png") == expected


@pytest.mark.parametrize("root", ["nowhere", "memory://nowhere", "zip://::nowhere.zip"])
def test_a_root_that_does_not_exist_says_so(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    missing = Root(root)
    assert not missing.exists("")
    for read in (missing.read_bytes, missing.list):
        with pytest.raises(MissingFile, match=rf"^{root}: no such"):
            read("train")


def test_an_archive_given_as_a_folder_is_answered_with_its_url(tmp_path):
    path = tmp_path / "files.zip"
    path.write_bytes(zipped(FILES))
    with pytest.raises(DataError, match=rf"is a file, not a directory; write zip://::{path}"):
        Root(str(path)).list("train")


def test_reasons_of_other_failures_are_passed_on(tmp_path):
    (tmp_path / "broken.zip").write_bytes(b"PK no")
    with pytest.raises(DataError, match=r"broken.zip: BadZipFile: File is not a zip file"):
        Root(f"zip://::{tmp_path}/broken.zip").list("")
    with pytest.raises(DataError, match=r"quux://a/b: .*Protocol not known: quux"):
        Root("quux://a").read_bytes("b")


def test_remote_files_are_fetched_once(shelf, tmp_path):
    shelf.pipe_file("/data/a.txt", b"one")
    for _ in range(2):
        assert Root("shelf://data").read_bytes("a.txt") == b"one"
    with Root("shelf://data").open("a.txt") as file:
        assert file.read() == b"one"
    assert shelf.fetched == ["/data/a.txt"]
    assert Root("shelf://data").list("") == ["a.txt"]
    with pytest.raises(MissingFile):
        Root("shelf://data").read_bytes("b.txt")
    assert len(list((tmp_path / "cache" / "files").iterdir())) == 1


def test_a_remote_archive_is_fetched_as_a_whole(shelf):
    shelf.pipe_file("/files.zip", zipped(FILES))
    root = Root("zip://train::shelf://files.zip")
    assert [root.read_bytes(name) for name in root.list("")] == [b"one", b"two"]
    assert len(shelf.fetched) == 1


def test_a_download_that_breaks_off_leaves_nothing(shelf, tmp_path):
    shelf.pipe_file("/data/a.txt", b"one")
    Shelf.breaks_off = True
    with pytest.raises(DataError, match=r"shelf://data/a.txt: ConnectionError: the line went dead"):
        Root("shelf://data").read_bytes("a.txt")
    assert list((tmp_path / "cache" / "files").iterdir()) == []
    Shelf.breaks_off = False
    assert Root("shelf://data").read_bytes("a.txt") == b"one"


class Lengths(torch.utils.data.Dataset):
    """Reads from many places of one archive, and also before the workers start."""

    def __init__(self, root):
        self.root = Root(root)
        self.names = self.root.list("")

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        data = self.root.read_bytes(self.names[index])
        assert data == self.names[index].encode() * 5000
        return len(data)


def test_forked_workers_open_an_archive_for_themselves(tmp_path):
    # A spawned worker gets its dataset pickled: test_a_pickled_root_opens_again.
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("this system cannot fork")
    names = [f"{i:03}.bin" for i in range(100)]
    (tmp_path / "z.zip").write_bytes(zipped({name: name.encode() * 5000 for name in names}))
    dataset = Lengths(f"zip://::{tmp_path}/z.zip")
    loader = DataLoader(
        dataset, batch_size=10, num_workers=2, multiprocessing_context="fork", timeout=60
    )
    batches = list(loader)
    assert dataset[5] == 35_000
    assert sum(int(batch.sum()) for batch in batches) == 100 * 35_000


def encoded(array, form="PNG", mode=None):
    buffer = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(buffer, form)
    return buffer.getvalue()


def saved(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.fixture
def photograph():
    ramp = np.linspace(0, 255, 12 * 16 * 3).reshape(12, 16, 3)
    return ramp.astype(np.uint8)


def test_images_are_floats_of_three_channels(photograph):
    planes = torch.from_numpy(photograph).permute(2, 0, 1) / 255
    for data in (encoded(photograph), saved(photograph), saved(photograph / 255)):
        image = decode_image(data, "x")
        assert image.dtype == torch.float32
        assert image.is_contiguous()
        torch.testing.assert_close(image, planes, atol=1e-6, rtol=0)
    jpeg = decode_image(encoded(photograph, "JPEG"), "x")
    torch.testing.assert_close(jpeg, planes, atol=0.05, rtol=0)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "npy"])
def test_grey_images_get_three_equal_channels(photograph, form):
    grey = photograph[..., 0]
    image = decode_image(saved(grey) if form == "npy" else encoded(grey, form), "x")
    assert image.shape == (3, 12, 16)
    assert torch.equal(image[0], image[2])


def test_transparent_and_indexed_images_lose_only_that(photograph):
    rgba = np.dstack([photograph, np.full((12, 16), 7, np.uint8)])
    assert torch.equal(decode_image(encoded(rgba), "x"), decode_image(encoded(photograph), "x"))
    flat = np.full((4, 4, 3), 51, np.uint8)
    assert torch.equal(decode_image(encoded(flat, mode="P"), "x"), torch.full((3, 4, 4), 0.2))


def test_labels_keep_their_raw_values(photograph):
    deep = np.arange(12 * 16, dtype=np.uint16).reshape(12, 16) * 300
    for array in (photograph, photograph[..., 0], deep):
        for data in (encoded(array), saved(array)):
            label = decode_label(data, "x")
            assert label.dtype == array.dtype
            np.testing.assert_array_equal(label, array)
    indices = Image.fromarray(photograph[..., 0] % 4, mode=None).convert("L")
    indices.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0, 0, 0, 200])
    buffer = io.BytesIO()
    indices.save(buffer, "PNG")
    np.testing.assert_array_equal(decode_label(buffer.getvalue(), "x"), photograph[..., 0] % 4)


def png_16_bit_colour():
    def chunk(name, data):
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check

    header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + os.urandom(12) for _ in range(2))
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def test_labels_that_would_be_changed_silently_are_refused(photograph):
    with pytest.raises(DataError, match=r"^x: 16-bit colour PNG is not supported"):
        decode_label(png_16_bit_colour(), "x")
    with pytest.raises(DataError, match=r"^x: JPEG changes the values of a label"):
        decode_label(encoded(photograph, "JPEG"), "x")
    with pytest.raises(DataError, match=r"^x: cannot be read: .*allow_pickle"):
        decode_label(saved(np.array([{}])), "x")
    with pytest.raises(DataError, match=r"^x: an array of int64 and shape \(2,\)"):
        decode_label(saved(np.array([1, 2])), "x")


@pytest.mark.parametrize(
    ("decode", "form"),
    [
        (decode_image, "PNG"),
        (decode_image, "JPEG"),
        (decode_image, "npy"),
        (decode_label, "PNG"),
        (decode_label, "npy"),
    ],
)
def test_truncated_files_are_named_with_a_reason(photograph, decode, form):
    # Large enough that the cut lies behind the headers, without which Pillow 12 sees no image.
    photograph = np.tile(photograph, (8, 8, 1))
    data = saved(photograph) if form == "npy" else encoded(photograph, form)
    with pytest.raises(DataError, match=r"^x: cannot be read: .+"):
        decode(data[: len(data) * 3 // 5], "x")
    with pytest.raises(DataError, match=r"^x: neither an image nor .npy \(0 bytes\)"):
        decode(b"", "x")


def test_unit_normals_scales_in_place_and_knows_where_there_is_none():
    normals = np.array([[3.0, 0.0], [0.0, 0.0], [-4.0, 0.0]], np.float32)[..., None]
    known = unit_normals(normals)
    np.testing.assert_array_equal(known, [[True], [False]])
    np.testing.assert_allclose(normals[:, 0, 0], [0.6, 0.0, -0.8])
    np.testing.assert_array_equal(normals[:, 1, 0], 0)
