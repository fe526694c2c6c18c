"""Virtual KITTI 2 as its authors publish it: a folder per scene, variation, kind and camera."""

from __future__ import annotations

import re
from typing import Annotated, Any, final

import numpy as np
from numpy.typing import NDArray

from mtlcore.data import DataError, Dataset, Sample
from mtlcore.datasets.dense_tasks import inverse_depth, segmentation
from mtlcore.datasets.photographs import Label, find_label, make_sample, read_photograph
from mtlcore.errors import UsageError, did_you_mean
from mtlcore.loading import MissingFile, check_split, open_root
from mtlcore.ranges import Length, Range
from mtlcore.tasks import Task

_COLOURS = {
    "Terrain": (210, 0, 200), "Sky": (90, 200, 255), "Tree": (0, 199, 0),
    "Vegetation": (90, 240, 0), "Building": (140, 140, 140), "Road": (100, 60, 100),
    "GuardRail": (250, 100, 255), "TrafficSign": (255, 255, 0), "TrafficLight": (200, 200, 0),
    "Pole": (255, 130, 0), "Misc": (80, 80, 80), "Truck": (160, 60, 60), "Car": (255, 127, 80),
    "Van": (0, 139, 139),
}  # fmt: skip
CLASS_NAMES = tuple(_COLOURS)
_UNDEFINED = "Undefined"
_HELD_OUT = 10  # one frame in so many is for validation

Colours = tuple[NDArray[np.int64], NDArray[np.int64]]  # codes in order, and the class of each


@final
class VirtualKITTI(Dataset):
    """`SceneXX/<variation>/frames/{rgb,depth,classSegmentation}/Camera_<n>/`, 375x1242.

    Tasks: segmentation (14 classes) and inverse_depth (1/m). Unpack the archives rgb, depth,
    classSegmentation and textgt into the same folder; where an archive is missing, so are its
    labels.

    * Class colours are those of `SceneXX/<variation>/colors.txt`, or where there is no such file
      the ones that all of them hold. Black, "Undefined", is invalid.
    * The 16-bit depths count centimetres. 65535 is the sky and everything 655.35 m away or
      farther; it becomes 1/655.35, an error of at most that much. 0 is invalid.
    * The authors publish no split. Of each scene the last tenth of the frames is for validation,
      in all variations and cameras alike: frames drawn at random would leave nearly the same
      picture in training, an instant earlier or in other weather.

    Args:
        root: the folder that holds `Scene01` and others, a local path or an fsspec URL.
        split: "train" or "val".
        variations: such as "clone", "fog", "15-deg-left"; unset: all that a scene has.
        cameras: 0 (left), 1 (right) or both.

    Raises:
        UsageError: there is no root or no such split, or no scene has one of the variations.
        DataError: the root holds no scene, or no picture of these variations and cameras.
    """

    input_kind = "image"

    def __init__(
        self,
        root: str | None,
        split: str,
        *,
        variations: tuple[str, ...] | None = None,
        cameras: Annotated[tuple[Annotated[int, Range(ge=0, le=1)], ...], Length(ge=1)] = (0,),
    ) -> None:
        self._root = open_root("vkitti", root, "the folder that holds Scene01/")
        check_split("vkitti", split, self.splits)
        scenes = {
            scene: [name for name in self._root.list(scene) if name[0] != "."]
            for scene in self._root.list("")
            if re.fullmatch(r"Scene\d+", scene)
        }
        if not scenes:
            raise DataError(f"{root}: holds no folder Scene01 or alike")
        there = sorted({name for listed in scenes.values() for name in listed})
        for name in variations or ():
            if name not in there:
                raise UsageError(
                    f"data.variations: no scene has {name!r}, only {', '.join(there)}"
                    + did_you_mean(name, there)
                )
        self._frames: list[tuple[str, int, int]] = []
        for scene, listed in scenes.items():
            used = [name for name in listed if variations is None or name in variations]
            self._frames += self._frames_of(scene, used, cameras, split)
        if not self._frames:
            raise DataError(
                f"{root}: no scene has a picture frames/rgb/Camera_<n>/rgb_<number>.jpg for "
                f"{split!r} with cameras {', '.join(map(str, cameras))}"
            )
        self._colours: dict[str, Colours] = {}

    @classmethod
    def describe(cls, root: str | None, **settings: Any) -> tuple[Task, ...]:
        """Return the tasks: segmentation and inverse depth."""
        return (
            segmentation(CLASS_NAMES),
            inverse_depth("1/m"),
        )

    def __len__(self) -> int:
        return len(self._frames)

    def name_of(self, index: int) -> str | None:
        """Return the name of a picture's file, which other variations and cameras have too."""
        return f"rgb_{self._frames[index][2]:05d}"

    def __getitem__(self, index: int) -> Sample:
        """Return one picture with the labels that it has.

        Raises:
            DataError: a file is unreadable, or has another size or encoding than it should.
        """
        variation, camera, number = self._frames[index]
        inputs, key = read_photograph(
            self._root, _path(variation, "rgb", camera, f"rgb_{number:05d}.jpg")
        )
        size = inputs.shape[1:]
        labels: dict[str, Label] = {}
        path = _path(variation, "classSegmentation", camera, f"classgt_{number:05d}.png")
        pixels = find_label(self._root, path, 3, size=size)
        if pixels is not None:
            classes = self._classes(variation, pixels, self._root.where(path))
            labels["segmentation"] = (classes.clip(0), classes >= 0)
        path = _path(variation, "depth", camera, f"depth_{number:05d}.png")
        centimetres = find_label(self._root, path, 1, size=size, bits=16)
        if centimetres is not None:
            planes = centimetres.transpose(2, 0, 1)
            inverse = np.float32(100) / planes.clip(1).astype(np.float32, order="C")
            labels["inverse_depth"] = (inverse, planes[0] > 0)
        return make_sample(inputs, labels, key)

    def _frames_of(
        self, scene: str, variations: list[str], cameras: tuple[int, ...], split: str
    ) -> list[tuple[str, int, int]]:
        """`SceneXX/<variation>`, camera and number of a scene's pictures in a split."""
        numbers: dict[tuple[str, int], list[int]] = {}
        for name in variations:
            for camera in cameras:
                try:
                    listed = self._root.list(_path(f"{scene}/{name}", "rgb", camera))
                except MissingFile:
                    continue
                matches = [re.fullmatch(r"rgb_(\d+)\.jpg", file) for file in listed]
                numbers[f"{scene}/{name}", camera] = sorted(int(m[1]) for m in matches if m)
        frames = sorted({number for present in numbers.values() for number in present})
        held_out = set(frames[len(frames) - len(frames) // _HELD_OUT :])
        return [
            (variation, camera, number)
            for (variation, camera), present in numbers.items()
            for number in present
            if (number in held_out) == (split == "val")
        ]

    def _classes(self, variation: str, pixels: NDArray[Any], where: str) -> NDArray[np.int64]:
        """(H, W, 3) colours to classes, -1 where undefined."""
        if variation not in self._colours:
            self._colours[variation] = self._read_colours(variation)
        codes, numbers = self._colours[variation]
        pixel_codes = _code(pixels)
        places = np.searchsorted(codes, pixel_codes).clip(0, len(codes) - 1)
        wrong = codes[places] != pixel_codes
        if wrong.any():
            colour = pixels[wrong][0].tolist()
            raise DataError(
                f"{where}: the colour {colour} is no class's; {variation}/colors.txt lists them"
            )
        classes: NDArray[np.int64] = numbers[places]
        return classes

    def _read_colours(self, variation: str) -> Colours:
        path = f"{variation}/colors.txt"
        where = self._root.where(path)
        try:
            lines = self._root.read_bytes(path).decode().splitlines()
        except MissingFile:
            return _table(_COLOURS)
        except UnicodeDecodeError as error:
            raise DataError(f"{where}: is no text") from error
        colours = {}
        for line in lines[1:]:  # the first names the columns
            match line.split():
                case []:
                    continue
                case [name, *rgb] if len(rgb) == 3 and all(part.isdecimal() for part in rgb):
                    colours[name] = (int(rgb[0]), int(rgb[1]), int(rgb[2]))
                case _:
                    raise DataError(f"{where}: {line!r} is not a category and its red, green, blue")
        unknown = sorted(set(colours) - {*CLASS_NAMES, _UNDEFINED})
        if unknown:
            raise DataError(f"{where}: the category {unknown[0]} is not one of Virtual KITTI 2")
        return _table(colours)


def _path(variation: str, kind: str, camera: int, file: str = "") -> str:
    folder = f"{variation}/frames/{kind}/Camera_{camera}"
    return f"{folder}/{file}" if file else folder


def _code(colours: NDArray[Any]) -> NDArray[np.int64]:
    """(..., 3) colours as one number each."""
    parts = colours.astype(np.int64)
    code: NDArray[np.int64] = parts[..., 0] << 16 | parts[..., 1] << 8 | parts[..., 2]
    return code


def _table(colours: dict[str, tuple[int, int, int]]) -> Colours:
    everything = {_UNDEFINED: (0, 0, 0), **colours}
    codes = _code(np.array(list(everything.values())))
    numbers = [CLASS_NAMES.index(n) if n in CLASS_NAMES else -1 for n in everything]
    order = np.argsort(codes)
    return codes[order], np.array(numbers, dtype=np.int64)[order]
