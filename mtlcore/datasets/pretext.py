"""Any dataset of images with tasks that need nobody's labels."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Annotated, Any, Literal, final

import attrs
from torch import Tensor

from mtlcore.data import DataError, Dataset, Sample
from mtlcore.datasets.pretext_tasks import PRETEXT_TASKS
from mtlcore.datasets.random_numbers import Stream
from mtlcore.datasets.sources import Source, read_source
from mtlcore.errors import ConfigError
from mtlcore.inputs import Inputs, describe_inputs
from mtlcore.loading import resize
from mtlcore.plugins import Plugins
from mtlcore.ranges import Range, Seed, Size
from mtlcore.tasks import Task

_Pretext = Literal["rotation", "position", "colour", "inpainting"]


@final
class Pretext(Dataset):
    """The images of another dataset, and pretext tasks whose labels are made of them.

    Each image occurs as it is, with its own labels, and `per_image` times more as a pretext sample:
    changed, with the label of one pretext task alone. (A picture that is turned, or has no colours,
    is none that the other tasks' labels belong to.) Which task is first with an image is drawn, the
    others follow it in further rounds. What is drawn depends on the seed, the split and the number
    of the image, so that a sample is the same in every epoch; augmentations leave pretext samples
    alone.

        [data]
        name = "pretext"
        pretext = ["rotation", "colour"]
        [data.source]
        name = "nyuv2"
        root = "nyuv2"
        tasks = { segmentation = "parts" }

    Pretext tasks, all made at the run's size:

    * `rotation`: by which of four angles the picture is turned (Gidaris et al. 2018).
    * `position`: where a patch is, seen from another one, of eight places (Doersch et al. 2015).
      Both are in one picture, side by side.
    * `colour`: a and b of CIE Lab of each pixel of a grey picture (Zhang et al. 2016, equation 1,
      whose loss is mse).
    * `inpainting`: the picture where 0.6 of it is hidden (SimMIM, Xie et al. 2022, whose loss is
      l1).

    `mtlcore.datasets.pretext_tasks` says how, and where that departs from the papers.

    Args:
        root: of the source, if it names none of its own.
        split: of the source.
        source: the table of the dataset with the images: its name, its root, `tasks` (new names for
            some of its tasks) and its own settings. A rendered dataset takes `samples` (per split)
            and `size`.
        pretext: the pretext tasks, each once.
        per_image: how many pretext samples are made of each image.
        seed: of what is drawn.
        size: height and width that images are given before pretext tasks are made of them; unset:
            what the source suggests, or each image's own.

    Raises:
        ConfigError: the source is wrong, gives no images, or has a task of the same name.
        DataError: raised by the source.
        UsageError: raised by the source.
    """

    splits = ("train", "val", "test")
    input_kind = "image"
    renders_size = True

    def __init__(
        self,
        root: str | None,
        split: str,
        *,
        source: dict[str, Any],
        pretext: tuple[_Pretext, ...] = ("rotation", "position", "colour", "inpainting"),
        per_image: Annotated[int, Range(ge=1, le=1000)] = 1,
        seed: Seed = 0,
        size: Size | None = None,
    ) -> None:
        self._from = _source(root, source)
        _tasks(self._from, pretext)
        self._images = self._from.open(split)
        self._size = size or self._from.target.default_size(self._from.root, **self._from.settings)
        self._labelled = self._from.tasks()
        self._pretext = tuple(pretext)
        self._keys = (seed, zlib.crc32(split.encode()))
        self.self_labelled = self._pretext
        self.repeats = per_image
        self.needs_teachers = self._images.needs_teachers

    @classmethod
    def describe(cls, root: str | None, **settings: Any) -> tuple[Task, ...]:
        """Return the tasks of the source, and then the pretext tasks."""
        chosen = settings.get("pretext", tuple(PRETEXT_TASKS))
        return _tasks(_source(root, settings["source"]), chosen)

    @classmethod
    def default_size(cls, root: str | None, **settings: Any) -> tuple[int, int] | None:
        """Return the size that the source suggests."""
        source = _source(root, settings["source"])
        return source.target.default_size(source.root, **source.settings)

    def collate_inputs(self, inputs: Sequence[Inputs]) -> Inputs:
        """Make a batch's inputs as the source does."""
        return self._images.collate_inputs(inputs)

    def __len__(self) -> int:
        return len(self._images) * (1 + self.repeats)

    def name_of(self, index: int) -> str | None:
        """Return what the source calls an image; no list of labels names a pretext sample."""
        turn, image = self._place(index)
        return None if turn else self._images.name_of(image)

    def __getitem__(self, index: int) -> Sample:
        """Return an image with its own labels, or a pretext sample with that of its task.

        Raises:
            DataError: raised by the source; or what it gives is no image, or one that is too small.
        """
        turn, number = self._place(index)
        if self._images.needs_teachers:
            self._images.teachers = {name: self.teachers[name] for name in self.needs_teachers}
        sample = self._from.here(self._images[number])
        image = sample.inputs
        if not isinstance(image, Tensor) or image.dim() != 3 or len(image) != 3:
            raise DataError(
                f"{sample.key}: pretext tasks are made of images (3, H, W), and the input is "
                f"{describe_inputs(image)}"
            )
        if self._size is not None:
            sample = resize(sample, self._labelled, self._size)
        return sample if turn == 0 else self._posed(sample, number, turn - 1)

    def _posed(self, sample: Sample, number: int, turn: int) -> Sample:
        # Drawn, not counted: `data.train` may use every fourth image, and there are four tasks.
        first = Stream(*self._keys, number).below(len(self._pretext))
        name = self._pretext[(first + turn) % len(self._pretext)]
        assert isinstance(sample.inputs, Tensor)
        try:
            posed = PRETEXT_TASKS[name].pose(sample.inputs, Stream(*self._keys, number, 1 + turn))
        except ValueError as error:
            raise DataError(
                f"{sample.key}: the image {error} ({name}); set data.size, or leave {name} out of "
                "data.pretext"
            ) from error
        return attrs.evolve(
            sample,
            inputs=posed.image,
            targets={name: posed.target},
            valid={name: posed.valid},
            sources={},
            key=f"{sample.key}#{name}-{1 + turn}",
            as_is=True,
        )

    def _place(self, index: int) -> tuple[int, int]:
        """Return the round of a sample, 0 for images as they are, and the number of its image."""
        return divmod(range(len(self))[index], len(self._images))


def _source(root: str | None, table: dict[str, Any]) -> Source:
    problems: list[str] = []
    source = read_source(table, "data.source", root, Plugins.from_environment(), problems)
    if source is None or problems:
        raise ConfigError(problems)
    kind = source.target.kind_of_inputs(source.root, **source.settings)
    if kind != "image":
        raise ConfigError(
            [
                f"data.source.name: pretext tasks are made of images, and {source.name!r} gives "
                f"{kind} inputs"
            ]
        )
    return source


def _tasks(source: Source, pretext: Sequence[str]) -> tuple[Task, ...]:
    """Return the source's tasks and the pretext tasks, in this order."""
    if not pretext or len(set(pretext)) < len(pretext):
        raise ConfigError([f"data.pretext: name one task or more, each once (got {[*pretext]})"])
    own = source.tasks()
    taken = [task.name for task in own if task.name in pretext]
    if taken:
        raise ConfigError(
            f"data.source.tasks: {source.name!r} has a task {name!r} of its own; give it another "
            f'name, tasks = {{ {name} = "..." }}, or leave {name} out of data.pretext'
            for name in taken
        )
    return (*own, *(PRETEXT_TASKS[name].task for name in pretext))
