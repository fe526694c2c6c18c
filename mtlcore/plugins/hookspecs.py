"""The hooks a plugin can implement: one per kind of component, all of one shape.

A hook takes nothing and yields records (see `mtlcore.plugins.specs`). It is called once, when the
plugins are loaded, before anything heavy is imported: keep the module it lives in free of torch,
and point to the component with a `target` string. A plugin whose hook raises contributes nothing
at all.
"""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from mtlcore.plugins.specs import (
    AugmentationSpec,
    BackboneSpec,
    BalancerSpec,
    CrossTaskLossSpec,
    DatasetSpec,
    EpisodeSamplerSpec,
    ExporterSpec,
    HeadSpec,
    LauncherSpec,
    LoggerSpec,
    LossSpec,
    MethodSpec,
    MetricSpec,
    NeckSpec,
    OptimizerSpec,
    SearcherSpec,
)

hookspec = pluggy.HookspecMarker("mtlcore")
hookimpl = pluggy.HookimplMarker("mtlcore")


@hookspec
def mtl_backbones() -> Iterable[BackboneSpec]:
    """Yield a `BackboneSpec` for each network that turns inputs into features.

    Called when the plugins are loaded. The target is called as `target(tasks, **settings)` once
    per run, when the model is built.

    Example::

        from mtlcore import BackboneSpec, hookimpl

        @hookimpl
        def mtl_backbones():
            yield BackboneSpec(
                name="tiny-unet",
                target="mtlcore_tiny.unet:TinyUNet",
                summary="Four stages, half a million parameters.",
            )
    """
    return ()


@hookspec
def mtl_necks() -> Iterable[NeckSpec]:
    """Yield a `NeckSpec` for each module that turns a backbone's features into others.

    Called when the plugins are loaded. The target is called as `target(features, **settings)` once
    per run, or once per task where `model.neck.per_task` is set.

    Example::

        from mtlcore import NeckSpec, hookimpl

        @hookimpl
        def mtl_necks():
            yield NeckSpec(
                name="sum",
                target="mtlcore_tiny.necks:Sum",
                summary="All maps at the finest stride, added up.",
            )
    """
    return ()


@hookspec
def mtl_heads() -> Iterable[HeadSpec]:
    """Yield a `HeadSpec` for each module that turns features into one task's prediction.

    Called when the plugins are loaded. The target is called as `target(task, features,
    **settings)` once per task that uses it. `task_kinds` says which kinds of task it serves.

    Example::

        from mtlcore import HeadSpec, hookimpl

        @hookimpl
        def mtl_heads():
            yield HeadSpec(
                name="plain",
                target="mtlcore_tiny.heads:PlainHead",
                task_kinds=("segmentation", "depth"),
                summary="One convolution, then bilinear resizing.",
            )
    """
    return ()


@hookspec
def mtl_losses() -> Iterable[LossSpec | CrossTaskLossSpec]:
    """Yield a `LossSpec` for each loss of one task, a `CrossTaskLossSpec` for one over several.

    Called when the plugins are loaded. A loss's target is called as `target(task, **settings)`
    once per task that uses it, a cross-task loss's as `target(tasks, features, **settings)` once
    per run.

    Example::

        from mtlcore import CrossTaskLossSpec, LossSpec, hookimpl

        @hookimpl
        def mtl_losses():
            yield LossSpec(
                name="berhu",
                target="mtlcore_tiny.losses:BerHu",
                task_kinds=("depth",),
                summary="L1 for small errors, L2 for large ones.",
            )
            yield CrossTaskLossSpec(
                name="edges-agree",
                target="mtlcore_tiny.losses:EdgesAgree",
                summary="Depth may jump only where the segmentation changes.",
            )
    """
    return ()


@hookspec
def mtl_metrics() -> Iterable[MetricSpec]:
    """Yield a `MetricSpec` for each measure of how good a task's predictions are.

    Called when the plugins are loaded. The target is called as `target(task, **settings)` once
    per task and split. `task_kinds` says which kinds of task it serves.

    Example::

        from mtlcore import MetricSpec, hookimpl

        @hookimpl
        def mtl_metrics():
            yield MetricSpec(
                name="log-rmse",
                target="mtlcore_tiny.metrics:LogRMSE",
                task_kinds=("depth",),
                summary="Root mean square error of the logarithm.",
            )
    """
    return ()


@hookspec
def mtl_balancers() -> Iterable[BalancerSpec]:
    """Yield a `BalancerSpec` for each way of weighing tasks, their losses or their gradients.

    Called when the plugins are loaded. The target is called as `target(**settings)` once for each
    place it has in the run's chain of balancers.

    Example::

        from mtlcore import BalancerSpec, hookimpl

        @hookimpl
        def mtl_balancers():
            yield BalancerSpec(
                name="sign-vote",
                target="mtlcore_tiny.balancer:SignVote",
                summary="Move only where the tasks agree on the sign.",
            )
    """
    return ()


@hookspec
def mtl_episode_samplers() -> Iterable[EpisodeSamplerSpec]:
    """Yield an `EpisodeSamplerSpec` for each way of planning which samples and tasks steps see.

    Called when the plugins are loaded. The target is called as `target(tasks, splits,
    **settings)` once per run.

    Example::

        from mtlcore import EpisodeSamplerSpec, hookimpl

        @hookimpl
        def mtl_episode_samplers():
            yield EpisodeSamplerSpec(
                name="one-task",
                target="mtlcore_tiny.episodes:OneTask",
                summary="Each step trains one task, drawn evenly.",
            )
    """
    return ()


@hookspec
def mtl_optimizers() -> Iterable[OptimizerSpec]:
    """Yield an `OptimizerSpec` for each way of turning a step's plan into an update.

    Called when the plugins are loaded. The target is called as `target(learner, **settings)` once
    per run, after the balancers are prepared.

    Example::

        from mtlcore import OptimizerSpec, hookimpl

        @hookimpl
        def mtl_optimizers():
            yield OptimizerSpec(
                name="lion",
                target="mtlcore_tiny.optimizer:Lion",
                summary="Sign of the momentum, one state per parameter.",
            )
    """
    return ()


@hookspec
def mtl_datasets() -> Iterable[DatasetSpec]:
    """Yield a `DatasetSpec` for each source of samples.

    Called when the plugins are loaded. The target is called as `target(root, split, **settings)`
    once per split that the run reads. Nothing may be downloaded before that.

    Example::

        from mtlcore import DatasetSpec, hookimpl

        @hookimpl
        def mtl_datasets():
            yield DatasetSpec(
                name="garden",
                target="mtlcore_tiny.garden:Garden",
                summary="Plants with segmentation and depth.",
            )
    """
    return ()


@hookspec
def mtl_augmentations() -> Iterable[AugmentationSpec]:
    """Yield an `AugmentationSpec` for each random change of training samples.

    Called when the plugins are loaded. The target is called as `target(tasks, **settings)` once
    per place that it has in `data.augmentations`.

    Example::

        from mtlcore import AugmentationSpec, hookimpl

        @hookimpl
        def mtl_augmentations():
            yield AugmentationSpec(
                name="class-mix",
                target="mtlcore_tiny.augmentation:ClassMix",
                summary="Pastes the pixels of some classes into another image.",
            )
    """
    return ()


@hookspec
def mtl_loggers() -> Iterable[LoggerSpec]:
    """Yield a `LoggerSpec` for each place that is told what happens in a run.

    Called when the plugins are loaded. The target is called as `target(**settings)` once for each
    place that it has in `loggers`, in the main process only.

    Example::

        from mtlcore import LoggerSpec, hookimpl

        @hookimpl
        def mtl_loggers():
            yield LoggerSpec(
                name="tiny-board",
                target="mtlcore_tiny.board:TinyBoard",
                summary="Sends every value to a board on the network.",
            )
    """
    return ()


@hookspec
def mtl_launchers() -> Iterable[LauncherSpec]:
    """Yield a `LauncherSpec` for each way of starting the cells of a study.

    Called when the plugins are loaded. The target is called as `target(folder, lock, **settings)`
    once per study.

    Example::

        from mtlcore import LauncherSpec, hookimpl

        @hookimpl
        def mtl_launchers():
            yield LauncherSpec(
                name="queue",
                target="mtlcore_tiny.queue:Queue",
                summary="Submits every cell to the queue of a cluster.",
            )
    """
    return ()


@hookspec
def mtl_searchers() -> Iterable[SearcherSpec]:
    """Yield a `SearcherSpec` for each way of choosing the settings of a study's trials.

    Called when the plugins are loaded. The target is called as `target(space, objectives, seed,
    **settings)` once per study.

    Example::

        from mtlcore import SearcherSpec, hookimpl

        @hookimpl
        def mtl_searchers():
            yield SearcherSpec(
                name="halton",
                target="mtlcore_tiny.halton:Halton",
                summary="Spreads trials evenly.",
            )
    """
    return ()


@hookspec
def mtl_exporters() -> Iterable[ExporterSpec]:
    """Yield an `ExporterSpec` for each file format that trained runs can be written in.

    Called when the plugins are loaded. The target is called as `target()` by `mtl export`, when the
    run is loaded; an exporter has no settings.

    Example::

        from mtlcore import ExporterSpec, hookimpl

        @hookimpl
        def mtl_exporters():
            yield ExporterSpec(
                name="tiny-format",
                target="mtlcore_tiny.exporter:TinyFormat",
                summary="What the tiny runtime reads.",
            )
    """
    return ()


@hookspec
def mtl_methods() -> Iterable[MethodSpec]:
    """Yield a `MethodSpec` for each method: a preset that users name with `--plugin`.

    Called when the plugins are loaded. The preset is read when the method is selected and merges
    over the core's defaults; users see and override all of it. A plugin's main method has the
    plugin's id as its name.

    Example::

        from mtlcore import MethodSpec, hookimpl

        @hookimpl
        def mtl_methods():
            yield MethodSpec(
                name="tiny",
                preset={"model": {"backbone": {"name": "tiny-unet"}}},
                summary="The smallest network that still learns.",
            )
    """
    return ()
