"""Using a trained run: evaluate it on any split, predict from any image."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import attrs
import numpy as np
import torch
import torch.nn.functional as F

from mtlcore.config import Layer, RunConfig, resolve
from mtlcore.data import Dataset
from mtlcore.engine import (
    build_learner,
    evaluate,
    make_loader,
    make_metrics,
    open_split,
    pick_device,
    restoring,
)
from mtlcore.episodes import in_order
from mtlcore.errors import MtlError, UsageError, outline
from mtlcore.learner import Learner
from mtlcore.loading import decode_image
from mtlcore.metrics import MetricValues
from mtlcore.plugins import Plugins
from mtlcore.report import colour
from mtlcore.storage import Which, read_weights, trained_config, write_output
from mtlcore.system import out_of_memory
from mtlcore.tasks import Task

# Of a trained run's configuration; "plugins" are the files that the others name things of.
_CHANGEABLE = {"data", "metrics", "plugins"}


@attrs.frozen
class Trained:
    """A run's model with its configuration.

    Args:
        config: of the run, changed where the caller asked for it.
        learner: with the weights of the checkpoint, in evaluation mode.
        device: where it is.
    """

    config: RunConfig
    learner: Learner
    device: torch.device


def load_run(
    plugins: Plugins,
    location: str,
    which: Which,
    changes: Sequence[Layer] = (),
    device: str | None = None,
) -> Trained:
    """Return the model of a run.

    Args:
        plugins: that the run's components come from.
        location: its directory or URL.
        which: the best epoch's weights, or the last ones.
        changes: layers over the run's configuration: of `[data]` and `[metrics]` only, and
            `plugins`, the plugin files that these name things of.
        device: None: the run's.

    Raises:
        UsageError: no run there, changes to what was trained, or a run that names plugin files
            which `plugins` is not to load (`Plugins.trust_runs`).
        MtlError: a checkpoint that is missing, damaged or of another model.
    """
    other = sorted({key for layer in changes for key in layer.values} - _CHANGEABLE)
    if other:
        raise UsageError(
            f"--set {other[0]}: a trained run takes changes of [data] and [metrics] only; start a "
            "run of its own"
        )
    # Who has learnt needs no teacher any more, and nothing is logged.
    stored = {**trained_config(location), "teachers": {}, "loggers": []}
    config = resolve(plugins, (), [Layer(location, stored, of_run=True), *changes])
    wanted = pick_device(device or config.device)
    learner = build_learner(restoring(config))
    learner.balancing.prepare(config.tasks, None)
    path, weights = read_weights(location, which)
    try:
        learner.load_state_dict(weights)
    except (RuntimeError, KeyError) as error:
        if out_of_memory(error):
            raise
        raise MtlError(f"{path}: belongs to another model: {outline(error)}") from error
    return Trained(config, learner.to(wanted).eval(), wanted)


def evaluate_run(trained: Trained, split: str) -> tuple[MetricValues, int]:
    """MetricValues on a split of the run's data (or of what `[data]` was changed to), and its size.

    Raises:
        UsageError: no such split, an empty one, or one that teachers are needed for.
        MtlError: a sample that cannot be read.
    """
    config = trained.config
    limit = {"train": config.data.train, "val": config.data.val}.get(split, config.data.val)
    data = open_split(config, split, limit)
    if data.needs_teachers:
        raise UsageError(
            f"data: {config.data.name} asks for teachers to read the split {split!r}, and only "
            "training hands some over; evaluate on another split"
        )
    loader = make_loader(config, {split: data})
    plans = in_order(split, len(data), config.training.batch_size)
    metrics = evaluate(trained.learner, loader.batches(plans), make_metrics(config), trained.device)
    return metrics, len(data)


def predict_image(
    trained: Trained, data: bytes, name: str, size: tuple[int, int] | None
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the image and each task's prediction at its own size.

    Args:
        trained: the model.
        data: a file's content.
        name: of the file, for messages.
        size: height and width to run the network at; None: the run's, where it has one, else the
            image's own.

    Returns:
        (3, H, W) in [0, 1], and per task (C, H, W): logits, metres, normals of any length.

    Raises:
        DataError: not an image.
        UsageError: the run's model reads something else.
    """
    kind = kind_of_inputs(trained.config)
    if kind != "image":
        raise UsageError(
            f"predict: reads images, and this run has learnt from {kind} inputs of "
            f"{trained.config.data.name}; mtl eval judges it on its data"
        )
    image = decode_image(data, name)
    target = tuple(image.shape[1:])
    config = trained.config
    if size is None:
        dataset = config.dataset.component.load()
        size = config.data.size or dataset.default_size(config.data.root, **config.dataset.settings)
    inputs = image[None]
    if size is not None:
        inputs = F.interpolate(inputs, size, mode="bilinear", antialias=True, align_corners=False)
    with torch.no_grad():
        predictions = trained.learner.predict(inputs.to(trained.device), trained.learner.tasks)
    # Logits and values are enlarged before any class is picked, so that borders stay smooth.
    return image, {
        task: (
            F.interpolate(prediction, target, mode="bilinear", align_corners=False)
            if prediction.dim() == 4
            else prediction
        )[0].cpu()
        for task, prediction in predictions.items()
    }


def kind_of_inputs(config: RunConfig) -> str:
    dataset: type[Dataset] = config.dataset.component.load()
    return dataset.kind_of_inputs(config.data.root, **config.dataset.settings)


def save_prediction(
    folder: str | Path, stem: str, tasks: Sequence[Task], predictions: dict[str, torch.Tensor]
) -> list[str]:
    """Write each task's raw array (`stem.task.npy`) and, for maps, a picture (`stem.task.png`).

    Args:
        folder: path or fsspec URL.
        stem: what the names of the files begin with.
        tasks: the tasks.
        predictions: task -> its prediction, as of `predict_image`.

    Returns:
        The places of the files.

    Raises:
        MtlError: one cannot be written.
    """
    from PIL import Image

    written = []
    for task in tasks:
        prediction = predictions[task.name]
        place = f"{str(folder).rstrip('/')}/{stem}.{task.name}"
        buffer = io.BytesIO()
        np.save(buffer, prediction.numpy())
        write_output(f"{place}.npy", buffer.getvalue())
        written.append(f"{place}.npy")
        if task.layout == "map":
            buffer = io.BytesIO()
            Image.fromarray(colour(task, prediction, None)).save(buffer, "PNG")
            write_output(f"{place}.png", buffer.getvalue())
            written.append(f"{place}.png")
    return written
