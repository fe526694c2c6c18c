"""The tables of a configuration that the core itself reads: `data`, `training`, `initial`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import attrs

from mtlcore.ranges import Count, Length, Positive, ProperFraction, Range, Share, Size

#: Factors of enlargement: a crop of less than a hundredth shows nothing.
_Scales = Annotated[tuple[Annotated[float, Range(ge=1, le=100)], ...], Length(ge=1)]
#: Their order alone takes 8 bytes each.
_Samples = Annotated[int, Range(ge=1, le=100_000_000)]
#: More processes or threads than this bring a machine down.
_Parallel = 1024
#: More memory than machines have.
_Megabytes = 2**24


@attrs.frozen(kw_only=True)
class AugmentConfig:
    """Random augmentation of training samples, the same for every task of a sample.

    Args:
        scales: Factors of enlargement, each at least 1, one drawn for each sample, which is then
            cropped back to size; its depth is divided by the factor.
        flip: Mirror samples with probability 1/2; the x component of normals is negated.
    """

    scales: _Scales = (1.0,)
    flip: bool = False


@attrs.frozen(kw_only=True)
class DataConfig:
    """What the core itself reads from `[data]`; the other keys are the dataset's settings.

    Args:
        name: The dataset's name.
        root: Its folder or fsspec URL; generated data needs none.
        size: Height and width of the network's input; unset: what the dataset suggests.
        train: Number of training samples to generate, or the most to use; unset: all. Samples that
            a dataset makes of them, for pretext tasks, come beside.
        val: The same for validation samples.
        train_fraction: The share of the training samples to use, above 0 and at most 1, evenly
            spread.
        labels: Which training labels are used: "full", "one" or "random" (some of each sample),
            shares such as "segmentation=0.9,depth=0.1", or a .json file, task -> list of samples.
            Labels that a dataset makes itself are all used.
        ignore_classes: Task -> names or numbers of its classes that count nowhere, such as a
            background: their labels are treated as missing, in training and evaluation, and means
            over classes leave them out.
        standardise: Kinds of tasks whose values are learnt in standard deviations from the mean of
            the training labels, such as "depth": a network's first predictions are then about that
            mean, and losses do not depend on the unit. Predictions and metrics stay in the unit.
            Regressions are learnt so anyway.
        on_error: Whether a sample that cannot be read stops the run or is skipped.
        workers: Number of processes that load ahead; 0 loads between the steps.
        cache: Megabytes of memory, shared by the workers, in which samples are kept once read,
            before augmentation; those that find no room are read again in every epoch.
        augment: Random scaling and flipping of training samples.
        augmentations: Further augmentations of training samples, in order, after scaling and
            flipping: a list of tables, each with the `name` of one and its settings.
    """

    name: str
    root: str | None = None
    size: Size | None = None
    train: _Samples | None = None
    val: _Samples | None = None
    train_fraction: Share | None = None
    labels: str = "full"
    ignore_classes: Mapping[str, tuple[str | int, ...]] = attrs.field(factory=dict)
    standardise: tuple[str, ...] = ()
    on_error: Literal["stop", "skip"] = "stop"
    workers: Annotated[int, Range(ge=0, le=_Parallel)] = 1
    cache: Annotated[int, Range(ge=0, le=_Megabytes)] = 0
    augment: AugmentConfig = AugmentConfig()
    augmentations: tuple[Mapping[str, Any], ...] = ()


@attrs.frozen(kw_only=True)
class BackboneConfig:
    """What the core itself reads from `[model.backbone]`; the other keys are the backbone's.

    Args:
        lr_scale: Factor on the learning rates of the backbone's parameters; the heads (and a neck)
            learn at `optimizer.lr`.
        layer_decay: Factor from each layer of the encoder to the one before it: layer k of n,
            counted from 0 at the input, learns at `lr_scale * layer_decay^(n - k)` times
            `optimizer.lr`.
    """

    lr_scale: Positive = 1.0
    layer_decay: Share = 1.0


@attrs.frozen(kw_only=True)
class NeckConfig:
    """What the core itself reads from `[model.neck]`; the other keys are the neck's settings.

    Args:
        per_task: A neck for each task, which only its task's loss trains, instead of one for all.
    """

    per_task: bool = False


@attrs.frozen(kw_only=True)
class BalancingConfig:
    """What the core itself reads from `[balancer]`; the other keys are the balancer's.

    Args:
        update_every: Steps between two updates of the balancing weights.
        depth: At how much of the trunk the tasks' gradients are compared. "all": at all of it,
            where the balancer does not say otherwise, by a backward pass per task. A number: at the
            last so many blocks. "features": at the maps that heads read.
        norms_every: With a smaller depth: every so many steps, gradients are compared at all of the
            trunk, and their lengths correct what follows; without, only once.
        verify_every: With a smaller depth: every so many steps, its error is measured and recorded.
    """

    update_every: Count = 1
    depth: Literal["all", "features"] | Count = "all"
    norms_every: Count | None = None
    verify_every: Count | None = None


BALANCING_KEYS = tuple(field.name for field in attrs.fields(BalancingConfig))


@attrs.frozen(kw_only=True)
class TrainingConfig:
    """How to train, and for how long.

    Args:
        epochs: Passes over the training samples.
        steps: Number of steps; the run ends with the epoch that reaches it. If epochs is set
            too, whichever comes first.
        batch_size: Samples per step and process.
        accumulate: Batches per step, whose gradients are accumulated.
        precision: Arithmetic of backbone and heads; losses are always computed in fp32.
        compile: Compile the backbone with torch.compile; under a balancer of task gradients without
            torch's cache on disk, which holds code for a single backward pass. On a processor that
            makes steps slower there.
        threads: Number of threads for computing; unset: torch's choice.
        normalisation: A task's loss is the mean over valid elements of the batch ("valid"), or
            over samples of their own means ("sample"), each of which may be divided by the number
            of the sample's tasks that have a label ("labelled").
        sync_buffers: With several processes, when running statistics of batch norm are averaged:
            at each evaluation and checkpoint ("epoch") or after every step ("step").
        evaluate_every: Epochs between evaluations; unset: at most ten evaluations per run, or one
            per epoch if a patience is set.
        average_last: Number of last evaluations over which the final metrics are averaged.
        max_skipped: Number of consecutive steps without a finite loss and gradient that stop the
            run.
        task_patience: Epochs without a lower validation loss after which a task is no longer
            trained (it leaves the episodes, its head stays as it is); unset: never.
        patience: Epochs without a better evaluation after which the run ends; unset: never. The
            better one has the lower mean rank of the tasks' first metrics among all evaluations.
        freeze_until: The fraction of the run after which what `model.freeze` names learns as well;
            unset: it never does.
        ema: Keep an averaged copy of the model: after each step that was taken, its parameters are
            `ema` times their average and (1 - ema) times the model's, its buffers the model's;
            above 0 and below 1. Unset: keep none.
        evaluate_ema: Evaluate the averaged copy instead of the model; the weights of the best
            epoch are its weights.
    """

    epochs: Count | None = None
    steps: Count | None = None
    batch_size: Annotated[int, Range(ge=1, le=1_000_000)] = 8
    accumulate: Annotated[int, Range(ge=1, le=1_000_000)] = 1
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False
    threads: Annotated[int, Range(ge=1, le=_Parallel)] | None = None
    normalisation: Literal["valid", "sample", "labelled"] = "valid"
    sync_buffers: Literal["epoch", "step"] = "epoch"
    evaluate_every: Count | None = None
    average_last: Count = 1
    max_skipped: Count = 10
    task_patience: Count | None = None
    patience: Count | None = None
    freeze_until: ProperFraction | None = None
    ema: ProperFraction | None = None
    evaluate_ema: bool = attrs.field(default=False)

    @evaluate_ema.validator
    def _check_ema(self, attribute: object, value: bool) -> None:
        if value and self.ema is None:
            raise ValueError("evaluate_ema evaluates the averaged copy that ema keeps; set ema too")


@attrs.frozen(kw_only=True)
class InitialConfig:
    """Where the first weights come from, and which tasks are trained.

    Args:
        run: Directory or URL of the trained run to take weights from; unset: initialise anew.
        checkpoint: Take the weights of its best epoch, or the last ones.
        new: Tasks whose parts of the network are initialised anew; the run must have all others.
        train: Which tasks are trained: all of them; only the new ones, through the whole network
            ("new"); or only the new ones, through the parts that are theirs alone, with everything
            else frozen and in evaluation mode ("heads").
    """

    run: str | None = None
    checkpoint: Literal["best", "last"] = "best"
    new: tuple[str, ...] = ()
    train: Literal["all", "new", "heads"] = "all"
