"""Cityscapes as its authors publish it: folders of PNG files, by split and city."""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal, final

import numpy as np

from mtlcore.data import DataError, Dataset, Sample
from mtlcore.datasets.cityscapes import CLASS_NAMES, FARTHEST
from mtlcore.datasets.dense_tasks import DEPTH, inverse_depth, segmentation
from mtlcore.datasets.photographs import Label, find_label, make_sample, read_photograph
from mtlcore.datasets.street_classes import StreetClasses, classes_of_ids
from mtlcore.errors import describe
from mtlcore.loading import MissingFile, check_split, open_root
from mtlcore.storage import decoded
from mtlcore.tasks import Task

_PHOTOGRAPH = "_leftImg8bit.png"


@final
class CityscapesPNG(Dataset):
    """2,975 and 500 photographs of streets, 1024x2048; `data.size` makes them smaller.

    Unpack the archives into one folder. Files of a photograph called `<city>_<sequence>_<frame>`:

    inputs: `leftImg8bit/<split>/<city>/<name>_leftImg8bit.png`.
    segmentation: `gtFine/<split>/<city>/<name>_gtFine_labelIds.png`. Classes that the benchmark
        does not count are not valid, in the categories too.
    inverse_depth: `disparity/<split>/<city>/<name>_disparity.png`, 16 bits: p stands for
        (p - 1) / 256 pixels of disparity in the photograph of full size; 0 and 1 are not valid.
    depth, instead of it: baseline times focal length of `camera/<split>/<city>/<name>_camera.json`
        divided by the disparity, in metres; not valid below one pixel, as what is farther cannot be
        told apart.

    A missing file is a missing label; an archive that is not there is warned of. The labels of the
    test photographs are not public, so there is no such split.

    Args:
        root: the folder that holds `leftImg8bit`, a local path or an fsspec URL.
        split: "train" or "val".
        classes: 19, or 7 for the categories.
        depth: the second task, disparity in pixels or depth in metres.

    Raises:
        UsageError: there is no such split, or no root.
        DataError: the split has no photograph.
    """

    input_kind = "image"

    def __init__(
        self,
        root: str | None,
        split: str,
        *,
        classes: StreetClasses = 19,
        depth: Literal["inverse", "metres"] = "inverse",
    ) -> None:
        self._root = open_root("cityscapes-png", root, "the folder that holds leftImg8bit/")
        check_split("cityscapes-png", split, self.splits)
        self._split, self._classes, self._metric = split, classes, depth == "metres"
        self._names = self._list_names()
        second = "depth" if self._metric else "inverse_depth"
        needed = {"gtFine": "segmentation", "disparity": second}
        if self._metric:
            needed["camera"] = second
        for folder, task in needed.items():
            if not self._root.exists(f"{folder}/{split}"):
                warnings.warn(
                    f"{self._root.where(f'{folder}/{split}')}: no such folder, so that task "
                    f"{task!r} has no label; unpack {folder}_trainvaltest.zip there",
                    stacklevel=2,
                )

    @classmethod
    def describe(
        cls,
        root: str | None,
        *,
        classes: StreetClasses = 19,
        depth: Literal["inverse", "metres"] = "inverse",
        **settings: Any,
    ) -> tuple[Task, ...]:
        """Return the tasks: segmentation, and inverse depth or depth."""
        return (
            segmentation(CLASS_NAMES[classes]),
            DEPTH if depth == "metres" else inverse_depth("px"),
        )

    def __len__(self) -> int:
        return len(self._names)

    def name_of(self, index: int) -> str | None:
        """Return the name of a photograph's file."""
        return self._names[index][1] + _PHOTOGRAPH.removesuffix(".png")

    def __getitem__(self, index: int) -> Sample:
        """Return one photograph with the labels that it has.

        Raises:
            DataError: a file is unreadable, or has another size or encoding than it should.
        """
        city, name = self._names[index]
        inputs, key = read_photograph(self._root, self._path("leftImg8bit", city, name))
        size = inputs.shape[1:]
        labels = {
            "segmentation": self._segmentation(city, name, size),
            "depth" if self._metric else "inverse_depth": self._depth(city, name, size),
        }
        return make_sample(inputs, labels, key)

    def _path(self, kind: str, city: str, name: str, suffix: str = "", form: str = "png") -> str:
        return f"{kind}/{self._split}/{city}/{name}_{kind}{suffix}.{form}"

    def _list_names(self) -> list[tuple[str, str]]:
        """City and name of every photograph."""
        folder = f"leftImg8bit/{self._split}"
        try:
            cities = [city for city in self._root.list(folder) if city[0] != "."]
        except MissingFile as error:
            raise DataError(
                f"{error}; there should be the folders of the cities, of leftImg8bit_trainvaltest"
                ".zip (data.root is the folder that holds leftImg8bit/)"
            ) from error
        names = [
            (city, file.removesuffix(_PHOTOGRAPH))
            for city in cities
            for file in self._root.list(f"{folder}/{city}")
            if file.endswith(_PHOTOGRAPH) and file[0] != "."
        ]
        if not names:
            raise DataError(
                f"{self._root.where(folder)}: holds no photograph <city>/<name>{_PHOTOGRAPH}"
            )
        return names

    def _segmentation(self, city: str, name: str, size: tuple[int, ...]) -> Label | None:
        path = self._path("gtFine", city, name, "_labelIds")
        raw = find_label(self._root, path, 1, size=size, bits=8)
        if raw is None:
            return None
        return classes_of_ids(raw[..., 0], self._classes, self._root.where(path))

    def _depth(self, city: str, name: str, size: tuple[int, ...]) -> Label | None:
        raw = find_label(self._root, self._path("disparity", city, name), 1, size=size, bits=16)
        if raw is None:
            return None
        disparity = (raw.transpose(2, 0, 1).astype(np.float32, order="C") - 1) / np.float32(256)
        if not self._metric:
            return disparity, disparity[0] > 0
        product = self._baseline_times_focal(city, name)
        if product is None:
            return None
        known = disparity[0] >= FARTHEST
        return np.float32(product) / disparity.clip(FARTHEST), known

    def _baseline_times_focal(self, city: str, name: str) -> float | None:
        """Metres times pixels, of a photograph's own camera; None where there is no such file."""
        path = self._path("camera", city, name, form="json")
        where = self._root.where(path)
        try:
            data = self._root.read_bytes(path)
        except MissingFile:
            return None
        try:
            camera = decoded(data, "JSON")
            baseline, focal = camera["extrinsic"]["baseline"], camera["intrinsic"]["fx"]
            product = float(baseline) * float(focal)
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise DataError(
                f"{where}: is not as Cityscapes' cameras, with extrinsic.baseline and "
                f"intrinsic.fx: {describe(error)}"
            ) from error
        if not 0 < product < math.inf:
            raise DataError(f"{where}: baseline {baseline} and focal length {focal} are none")
        return product
