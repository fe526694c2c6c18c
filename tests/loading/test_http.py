"""Datasets behind a web server: read through it once, and from the cache from then on."""

import functools
import http.server
import threading
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from mtlcore.data import DataError
from mtlcore.datasets.cityscapes import Cityscapes
from mtlcore.datasets.folder import Folder
from mtlcore.datasets.multi_mnist import MultiMNIST
from mtlcore.datasets.table_encoding import Target
from mtlcore.datasets.tabular import Tabular
from mtlcore.datasets.taskonomy import Taskonomy
from mtlcore.loading import MissingFile, Root

pytest.importorskip("aiohttp", reason="fsspec reads http:// with aiohttp (extra http)")

SIZE = (6, 8)
TABLE = {
    "file": "{split}.csv",
    "targets": {"y": Target(kind="classification", column="y", classes=("no", "yes"))},
}


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder and notes what was asked for."""

    asked: list[tuple[str, str]]

    def __init__(self, *arguments, asked, **settings):
        self.asked = asked
        super().__init__(*arguments, **settings)

    def send_head(self):
        self.asked.append((self.command, self.path))
        return super().send_head()

    def log_message(self, *arguments):
        """Keep quiet."""


class Web:
    def __init__(self, folder, url, asked):
        self.folder, self.url, self.asked = folder, url, asked

    def fetched(self):
        """What was downloaded since the last time, folders apart."""
        found = [path for how, path in self.asked if how == "GET" and not path.endswith("/")]
        self.asked.clear()
        return sorted(path for path in found if "." in path)


@pytest.fixture
def web(tmp_path, monkeypatch):
    monkeypatch.setenv("MTLCORE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "site"
    folder.mkdir()
    asked = []
    handler = functools.partial(Handler, directory=str(folder), asked=asked)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield Web(folder, f"http://127.0.0.1:{server.server_port}", asked)
        server.shutdown()
        thread.join()


def save(folder, path, array):
    file = folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".npy":
        np.save(file, array)
    else:
        Image.fromarray(array).save(file)


def same(one, other):
    assert torch.equal(one.inputs, other.inputs)
    assert one.targets.keys() == other.targets.keys()
    for task, target in other.targets.items():
        assert torch.equal(one.targets[task], target)
        assert torch.equal(one.valid[task], other.valid[task])


def cityscapes(folder):
    rng = np.random.default_rng(0)
    for number in range(2):
        save(folder, f"train/image/{number}.npy", rng.uniform(0, 1, (*SIZE, 3)))
        save(folder, f"train/label_7/{number}.npy", rng.integers(-1, 7, SIZE))
        save(folder, f"train/depth/{number}.npy", rng.uniform(0, 0.4, (*SIZE, 1)))


def test_files_are_fetched_once(web):
    cityscapes(web.folder)
    local = Cityscapes(str(web.folder), "train")
    for wanted in (["/train/depth/1.npy", "/train/image/1.npy", "/train/label_7/1.npy"], []):
        dataset = Cityscapes(web.url, "train")
        assert len(dataset) == 2
        same(dataset[1], local[1])
        assert dataset[1].key == f"{web.url}/train/image/1.npy"
        assert web.fetched() == wanted


def test_an_archive_is_fetched_as_a_whole(web, tmp_path):
    cityscapes(tmp_path / "plain")
    with zipfile.ZipFile(web.folder / "cityscapes.zip", "w") as archive:
        for file in (tmp_path / "plain").rglob("*.npy"):
            archive.write(file, file.relative_to(tmp_path))
    local = Cityscapes(str(tmp_path / "plain"), "train")
    for wanted in (["/cityscapes.zip"], []):
        dataset = Cityscapes(f"zip://plain::{web.url}/cityscapes.zip", "train")
        same(dataset[0], local[0])
        assert web.fetched() == wanted


def test_a_folder_described_by_its_own_file(web):
    rng = np.random.default_rng(0)
    (web.folder / "dataset.toml").write_text(
        'image = "{split}/{name}.png"\n[tasks.depth]\nkind = "depth"\n'
        'file = "{split}/depth/{name}.png"\ninvalid = 0\n'
    )
    for name in ("a", "b"):
        save(web.folder, f"val/{name}.png", rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8))
    save(web.folder, "val/depth/a.png", rng.integers(0, 2000, SIZE, dtype=np.uint16))
    assert Folder.describe(web.url)[0].name == "depth"
    dataset, local = Folder(web.url, "val"), Folder(str(web.folder), "val")
    for i in range(2):  # the second has no depth
        same(dataset[i], local[i])


def test_taskonomy(web):
    rng = np.random.default_rng(0)
    (web.folder / "train_val_test_tiny.csv").write_text("id,train,val,test\nalmena,1,0,0\n")
    for domain, high, shape, kind in (
        ("rgb", 256, (*SIZE, 3), np.uint8),
        ("segment_semantic", 18, SIZE, np.uint8),
        ("depth_euclidean", 65_536, SIZE, np.uint16),
        ("normal", 256, (*SIZE, 3), np.uint8),
        ("edge_texture", 65_536, SIZE, np.uint16),
    ):
        path = f"almena/{domain}/point_0_view_1_domain_{domain}.png"
        save(web.folder, path, rng.integers(0, high, shape, dtype=kind))
    same(Taskonomy(web.url, "train")[0], Taskonomy(str(web.folder), "train")[0])


def test_tables_and_digits(web):
    (web.folder / "train.csv").write_text("x,y\n1,no\n2,yes\n4,no\n")
    rng = np.random.default_rng(0)
    for name, shape in (("images-idx3", (9, 28, 28)), ("labels-idx1", (9,))):
        head = bytes((0, 0, 8, len(shape))) + np.array(shape, ">u4").tobytes()
        body = rng.integers(0, 10, shape, dtype=np.uint8).tobytes()
        (web.folder / f"train-{name}-ubyte").write_bytes(head + body)
    same(Tabular(web.url, "train", **TABLE)[2], Tabular(str(web.folder), "train", **TABLE)[2])
    same(MultiMNIST(web.url, "train")[0], MultiMNIST(str(web.folder), "train")[0])


def test_what_is_missing_is_named(web):
    with pytest.raises(MissingFile) as caught:
        Root(web.url).read_bytes("train.csv")
    assert str(caught.value).startswith(f"{web.url}/train.csv: no such file")
    with pytest.raises(DataError, match=rf"{web.url}/train/image: no such file"):
        Cityscapes(web.url, "train")


def test_a_file_that_is_no_image_is_named_by_its_url(web):
    cityscapes(web.folder)
    (web.folder / "train/depth/0.npy").write_bytes(b"<html>")
    with pytest.raises(DataError, match=rf"{web.url}/train/depth/0.npy: neither an image nor"):
        Cityscapes(web.url, "train")[0]
