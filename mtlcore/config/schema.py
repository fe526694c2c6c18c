"""Those tables of a configuration that the core itself reads: data, training, initial weights."""

from __future__ import annotations

from typing import Literal

import attrs

_POSITIVE = attrs.validators.ge(1)
_POSITIVE_IF_SET = attrs.validators.optional(_POSITIVE)


@attrs.frozen(kw_only=True)
class AugmentConfig:
    """Random changes of the training samples, the same for every task of a sample.

    Args:
        scales: enlargement drawn for each sample, cropped back to size; depth is divided by it.
        flip: mirror every second sample; normals' x is negated.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False


@attrs.frozen(kw_only=True)
class DataConfig:
    """What the core itself reads from `[data]`; the rest are the dataset's settings.

    Args:
        name: of the dataset.
        root: folder or fsspec URL; data that is made on the fly needs none.
        size: height and width that the network sees; unset: what the dataset suggests.
        train: samples to render, or the most to use of the split; unset: all.
        val: the same for validation.
        train_fraction: share, above 0 to 1, of the training samples that is used, evenly spread.
        labels: which training labels are used: "full", "one" or "random" (some of each sample),
            shares such as "segmentation=0.9,depth=0.1", or a .json file, task -> list of samples.
        on_error: what to do about a sample that cannot be read: stop the run, or skip it.
        workers: processes that load ahead; 0 loads between the steps.
        augment: random scaling and flipping of training samples.
    """

    name: str
    root: str | None = None
    size: tuple[int, int] | None = None
    train: int | None = None
    val: int | None = None
    train_fraction: float | None = attrs.field(
        default=None,
        validator=attrs.validators.optional([attrs.validators.gt(0), attrs.validators.le(1)]),
    )
    labels: str = "full"
    on_error: Literal["stop", "skip"] = "stop"
    workers: int = attrs.field(default=1, validator=attrs.validators.ge(0))
    augment: AugmentConfig = AugmentConfig()


@attrs.frozen(kw_only=True)
class TrainingConfig:
    """How long and how to train.

    Args:
        epochs: passes over the training samples.
        steps: the run ends with the epoch that reaches them. Of both, what comes first.
        batch_size: samples per step and process.
        accumulate: batches per step; a step then sees so many times batch_size samples.
        precision: of the arithmetic in backbone and heads; losses are always fp32.
        compile: the backbone, by torch.compile.
        threads: that compute; unset: torch's choice.
        normalisation: a task's loss is the mean over valid elements of the batch ("valid"), or
            over samples of their own means ("sample").
        sync_buffers: of several processes, running statistics of batch norms are averaged at each
            evaluation and checkpoint ("epoch") or after every step ("step").
        evaluate_every: epochs between evaluations; unset: at most ten over the run, and every epoch
            where there is a patience.
        average_last: final figures are means over the last so many evaluations.
        max_skipped: steps in a row without a finite loss and gradient before the run stops.
        task_patience: epochs without a lower validation loss after which a task learns no more (it
            leaves the episodes, its head stays as it is); unset: tasks learn to the end.
        patience: epochs without a lower validation score (the mean of the tasks' losses, each in
            units of its first one) after which the run ends; unset: it goes on.
    """

    epochs: int | None = attrs.field(default=None, validator=_POSITIVE_IF_SET)
    steps: int | None = attrs.field(default=None, validator=_POSITIVE_IF_SET)
    batch_size: int = attrs.field(default=8, validator=_POSITIVE)
    accumulate: int = attrs.field(default=1, validator=_POSITIVE)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False
    threads: int | None = attrs.field(default=None, validator=_POSITIVE_IF_SET)
    normalisation: Literal["valid", "sample"] = "valid"
    sync_buffers: Literal["epoch", "step"] = "epoch"
    evaluate_every: int | None = attrs.field(default=None, validator=_POSITIVE_IF_SET)
    average_last: int = attrs.field(default=1, validator=_POSITIVE)
    max_skipped: int = attrs.field(default=10, validator=_POSITIVE)
    task_patience: int | None = attrs.field(default=None, validator=_POSITIVE_IF_SET)
    patience: int | None = attrs.field(default=None, validator=_POSITIVE_IF_SET)


@attrs.frozen(kw_only=True)
class InitialConfig:
    """Where the first weights come from, and which tasks learn.

    Args:
        run: directory or URL of the trained run whose weights are taken; unset: they are drawn.
        checkpoint: its weights of the best epoch, or the last ones.
        new: tasks whose parts of the network start anew; the run must have all others.
        train: which tasks learn: all of them, the new ones through all of the network ("new"), or
            the new ones through the parts that are theirs alone, with everything else frozen and in
            evaluation mode ("heads").
    """

    run: str | None = None
    checkpoint: Literal["best", "last"] = "best"
    new: tuple[str, ...] = ()
    train: Literal["all", "new", "heads"] = "all"
