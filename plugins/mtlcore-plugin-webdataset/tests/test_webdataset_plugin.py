"""Shards that the library webdataset writes, read in any order."""

import functools
import gc
import http.server
import io
import json
import os
import re
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image
from torch.utils.data import DataLoader

from mtlcore.data import DataError
from mtlcore.errors import ConfigError, MtlError, UsageError
from mtlcore.loading import Root
from mtlcore.testing import DatasetContract, assert_plugin_is_light, assert_plugin_is_whole
from mtlcore_webdataset.dataset import WebDataset
from mtlcore_webdataset.index import open_index

SIZE = (6, 8)
TARGETS = {
    "segmentation": {"kind": "segmentation", "file": "seg.png", "classes": ["a", "b"],
                     "invalid": 255},
    "cls": {"kind": "classification", "channels": 3},
    "tags": {"kind": "multilabel", "file": "json:tags", "classes": ["x", "y"]},
    "age": {"kind": "regression", "file": "json:person.age", "unit": "years"},
    "vector": {"kind": "regression", "file": "npy", "channels": 2},
}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MTLCORE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "shards"


def png(values):
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


def sample(number):
    random = np.random.default_rng(number)
    found = {
        "__key__": f"deep/er/{number:06d}",
        "png": png(random.integers(0, 256, (*SIZE, 3), dtype=np.uint8)),
        "seg.png": png(random.choice(np.array([0, 1, 255], np.uint8), SIZE)),
        "cls": str(number % 3).encode(),
        "json": json.dumps(
            {"tags": ["y"] if number % 2 else [], "person": {"age": number}}
        ).encode(),
    }
    file = io.BytesIO()
    np.save(file, np.array([number, -1.0], np.float32))
    return {**found, "npy": file.getvalue()} if number % 2 else found


def write(root, shards=None):
    root.mkdir(parents=True, exist_ok=True)
    shards = shards or {"train-000": range(4), "train-001": range(4, 7), "val-000": range(20, 23)}
    for name, numbers in shards.items():
        with webdataset.TarWriter(str(root / f"{name}.tar"), encoder=False) as writer:
            for number in numbers:
                writer.write(sample(number))
    return str(root)


def make(root, split="train", **settings):
    return WebDataset(root, split, **({"shards": "{split}-*.tar", "targets": TARGETS} | settings))


class TestContract(DatasetContract):
    @pytest.fixture(autouse=True)
    def _files(self, tmp_path):
        self.root = write(tmp_path / "data")

    def make(self, split):
        return make(self.root, split)

    def tasks(self):
        return WebDataset.describe(self.root, targets=TARGETS)


# The library leaves its files to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_samples_are_those_that_the_library_reads(tmp_path):
    root = write(tmp_path)
    paths = [f"{root}/train-00{k}.tar" for k in range(2)]
    theirs = list(webdataset.WebDataset(paths, shardshuffle=False))
    gc.collect()
    ours = make(root)
    assert len(ours) == len(theirs) == 7
    for i, their in enumerate(theirs):
        shard, place = ours._place(i)
        index = ours._shards[shard]
        assert index.key(place) == their["__key__"]
        data = ours._read(shard, index.members(place))
        assert data == {k: v for k, v in their.items() if not k.startswith("__")}


def test_labels_of_every_sort_and_those_that_are_missing(tmp_path):
    data = make(write(tmp_path))
    sample = data[3]
    assert sample.targets["cls"] == 0 and sample.targets["age"].tolist() == [3]
    assert sample.targets["tags"].tolist() == [0, 1]
    assert sample.targets["vector"].tolist() == [3, -1]
    assert sample.key.endswith("train-000.tar/deep/er/000003") and data.name_of(3) == "000003"
    assert "vector" not in data[2].targets and "tags" not in data[2].targets


def test_workers_and_a_second_pass_read_the_same(tmp_path):
    data = make(write(tmp_path))
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0)).tolist()
    loader = DataLoader(data, sampler=order, batch_size=None, num_workers=2)
    for number, loaded in zip(order, loader, strict=True):
        assert loaded.key == data[number].key
        assert torch.equal(loaded.inputs, data[number].inputs)


def test_the_index_is_made_once_and_again_for_another_shard(tmp_path, cache, monkeypatch):
    root = Root(write(tmp_path / "data"))
    first = open_index(root, "train-000.tar")
    (kept,) = cache.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr("mtlcore_webdataset.index._build", lambda *_: pytest.fail("built again"))
        again = open_index(root, "train-000.tar")
    assert [again.members(i) for i in range(4)] == [first.members(i) for i in range(4)]
    write(tmp_path / "data", {"train-000": range(5, 10)})
    assert len(open_index(root, "train-000.tar")) == 5
    kept.write_bytes(kept.read_bytes()[:50])
    assert len(open_index(root, "train-000.tar")) == 5
    assert not list(cache.glob("*.part"))


def test_a_cache_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    root = write(tmp_path / "data")
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("MTLCORE_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="cannot be kept"):
        assert len(make(root)) == 7


def test_patterns_and_a_part_that_is_kept(tmp_path):
    root = write(tmp_path)
    assert (
        len(make(root, shards="train-{000..001}.tar"))
        + len(make(root, "val", shards="train-{000..001}.tar"))
        == 7
    )
    assert len(make(root, shards="{train,val}-000.tar", val_fraction=0.4)) == 4
    for shards, error, said in (
        ("train-{000..002}.tar", DataError, r"train-002\.tar: no such file.*data\.shards"),
        ("test-*.tar", DataError, r"there is no such shard"),
        ("{0..99999999}.tar", ConfigError, "are 100000000 shards"),
        ("../*.tar", DataError, "leads out of"),
    ):
        with pytest.raises(error, match=said):
            make(root, shards=shards)
    with pytest.raises(UsageError, match="no split 'test'"):
        make(root, "test", shards="train-000.tar")


def test_a_root_in_memory_is_read_too(tmp_path):
    import fsspec

    root = write(tmp_path)
    memory = fsspec.filesystem("memory")
    for name in os.listdir(root):
        if name.endswith(".tar"):
            memory.pipe_file(f"/shards/{name}", (tmp_path / name).read_bytes())
    there = make("memory://shards")
    assert torch.equal(there[5].inputs, make(root)[5].inputs)


class Server(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, also parts of its files, and counts the bytes that it gives."""

    sent = 0
    whole_files_only = False

    def do_GET(self):
        data = Path(self.translate_path(self.path)).read_bytes()
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if part is None or self.whole_files_only:
            self.send_response(200)
        else:
            begin, end = int(part[1]), min(int(part[2] or len(data)), len(data) - 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{end}/{len(data)}")
            data = data[begin : end + 1]
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        Server.sent += len(data)

    def send_header(self, keyword, value):
        super().send_header(keyword, value)
        if keyword == "Content-Length" and not self.whole_files_only:
            super().send_header("Accept-Ranges", "bytes")

    def log_message(self, *arguments):
        """Keep quiet."""


@pytest.fixture
def server(tmp_path, monkeypatch):
    pytest.importorskip("aiohttp", reason="fsspec reads http:// with aiohttp")
    write(tmp_path / "site")
    monkeypatch.setattr(Server, "sent", 0)
    handler = functools.partial(Server, directory=str(tmp_path / "site"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        made.url = f"http://127.0.0.1:{made.server_port}"
        yield made
        made.shutdown()
        thread.join()


def test_a_stream_leaves_shards_where_they_are(server, tmp_path, cache):
    local = make(str(tmp_path / "site"))
    data = make(server.url, shards="train-{000..001}.tar", val_fraction=0.01, stream=True)
    assert not (cache.parent / "files").exists()
    names = [data.name_of(i) for i in range(len(data))]
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(1)).tolist()
    for workers in (0, 2):
        Server.sent = 0
        loader = DataLoader(data, sampler=order, batch_size=None, num_workers=workers)
        for number, loaded in zip(order, loader, strict=True):
            same = local[[local.name_of(i) for i in range(7)].index(names[number])]
            assert loaded.key.startswith(server.url)
            assert torch.equal(loaded.inputs, same.inputs)
            assert loaded.targets.keys() == same.targets.keys()
            for task, target in same.targets.items():
                assert torch.equal(loaded.targets[task], target)
        assert Server.sent == sum(
            len(content)
            for name in names
            for ending, content in sample(int(name)).items()
            if ending != "__key__"
        )
    again = make(server.url, shards="train-000.tar", stream=False, val_fraction=0.01)
    assert len(again) and (cache.parent / "files").exists()


def test_a_stream_that_breaks_is_told(server, tmp_path, monkeypatch):
    data = make(server.url, shards="train-000.tar", val_fraction=0.01, stream=True)
    monkeypatch.setattr(Server, "whole_files_only", True)
    with pytest.raises(DataError, match=r"http://.*/train-000\.tar: .*serves whole files only"):
        data[0]
    monkeypatch.setattr(Server, "whole_files_only", False)
    (tmp_path / "site" / "train-000.tar").unlink()
    server.shutdown()
    server.server_close()
    with pytest.raises(DataError, match=r"http://.*/train-000\.tar: .*[Cc]onnect"):
        data[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: {k: v for k, v in s.items() if k != "png"}, "deep/er/000000 has no photo"),
        (lambda s: {**s, "png": b"none"}, r"000000\.png: neither an image"),
        (lambda s: {**s, "cls": b"5"}, r"000000\.cls: cls label 5 is out of.*data\.targets\.cls"),
        (lambda s: {**s, "cls": b"one"}, "not the number of a class"),
        (lambda s: {**s, "json": b"{"}, r"000000\.json: cannot be read"),
        (lambda s: {**s, "json": b'{"person": 3}'}, "nothing at 'person.age'"),
        (lambda s: {**s, "json": b'{"tags": ["z"]}'}, "names 'z'"),
        (lambda s: {**s, "npy": b"1"}, r"has 1 value\(s\) where 2"),
        (lambda s: {**s, "seg.png": png(np.zeros((6, 30), np.uint8))}, r"seg\.png: the label is 6"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_shard_and_file(tmp_path, change, said):
    root = tmp_path / "data"
    root.mkdir()
    with webdataset.TarWriter(str(root / "train-0.tar"), encoder=False) as writer:
        writer.write(change(sample(0)))
    with pytest.raises(DataError, match=said) as told:
        make(str(root))[0]
    assert str(told.value).startswith(f"{root}/train-0.tar: ")


def test_archives_that_are_none_are_told(tmp_path):
    root = write(tmp_path)
    whole = (tmp_path / "train-000.tar").read_bytes()
    with tarfile.open(tmp_path / "z-0.tar", "w:gz") as archive:
        archive.add(tmp_path / "train-000.tar", "000.png")
    (tmp_path / "cut-0.tar").write_bytes(whole[:5120])
    (tmp_path / "empty-0.tar").write_bytes(b"\0" * 10240)
    for name, said in (("z", "unpack it"), ("cut", "damaged"), ("empty", "no sample")):
        with pytest.raises(DataError, match=said):
            make(root, shards=f"{name}-0.tar")
    with tarfile.open(tmp_path / "twice-0.tar", "w") as archive:
        for _ in range(2):
            archive.add(tmp_path / "empty-0.tar", "a.png")
    with pytest.raises(DataError, match=r"a\.png: another file of this name"):
        make(root, shards="twice-0.tar")


def test_changed_bytes_are_read_or_told(tmp_path):
    write(tmp_path)
    whole = (tmp_path / "val-000.tar").read_bytes()
    random = np.random.default_rng(0)
    for _ in range(40):
        data = bytearray(whole)
        for place in random.integers(0, len(data), 3):
            data[place] = random.integers(0, 256)
        (tmp_path / "x-0.tar").write_bytes(bytes(data))
        try:
            dataset = make(str(tmp_path), shards="x-0.tar")
            for i in range(len(dataset)):
                dataset[i]
        except MtlError as error:
            assert "x-0.tar" in str(error)


def test_the_plugin_is_light_and_whole():
    assert_plugin_is_light("mtlcore_webdataset.plugin")
    assert_plugin_is_whole("mtlcore_webdataset.plugin")
