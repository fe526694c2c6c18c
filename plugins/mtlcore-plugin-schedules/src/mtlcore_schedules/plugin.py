"""What this plugin adds: three samplers that choose the tasks of a step, a method for each."""

from __future__ import annotations

from collections.abc import Iterator

from mtlcore import EpisodeSamplerSpec, MethodSpec, hookimpl

_ACTIVE = "Sharma et al., Learning to Multi-Task by Active Sampling, ICLR 2018, arXiv:1702.06053"
_STOP_AND_GO = (
    "Lu et al., 12-in-1: Multi-Task Vision and Language Representation Learning, CVPR 2020, "
    "arXiv:1912.02315"
)
_TCDCN = "Zhang et al., Facial Landmark Detection by Deep Multi-task Learning, ECCV 2014"


@hookimpl
def mtl_episode_samplers() -> Iterator[EpisodeSamplerSpec]:
    """Yield the samplers."""
    yield EpisodeSamplerSpec(
        name="active",
        target="mtlcore_schedules.active:Active",
        summary="One task per step, more often the farther it is from its target.",
        paper=_ACTIVE,
    )
    yield EpisodeSamplerSpec(
        name="stop-and-go",
        target="mtlcore_schedules.stop_and_go:StopAndGo",
        summary="Tasks that no longer improve rest, and go on when they degrade.",
        paper=_STOP_AND_GO,
    )
    yield EpisodeSamplerSpec(
        name="tcdcn",
        target="mtlcore_schedules.trend:TrendStopping",
        summary="Auxiliary tasks stop when they learn slowly and generalise badly.",
        paper=_TCDCN,
    )


@hookimpl
def mtl_methods() -> Iterator[MethodSpec]:
    """Yield a method for each sampler: any configuration, with these episodes."""
    yield MethodSpec(
        name="active",
        preset={"episodes": {"name": "active", "temperature": 0.05, "window": 10}},
        summary="Trains one task per step, the one that is farthest behind most often.",
        paper=_ACTIVE,
        requires=("episode-samplers/active",),
    )
    yield MethodSpec(
        name="stop-and-go",
        preset={
            "episodes": {"name": "stop-and-go", "stop": 0.001, "go": 0.005, "gap": 4},
            "training": {"evaluate_every": 1},
        },
        summary="Rests tasks that have converged until they degrade.",
        paper=_STOP_AND_GO,
        requires=("episode-samplers/stop-and-go",),
    )
    yield MethodSpec(
        name="tcdcn",
        preset={"episodes": {"name": "tcdcn"}, "training": {"evaluate_every": 1}},
        summary="Stops auxiliary tasks before they harm the main one.",
        paper=_TCDCN,
        requires=("episode-samplers/tcdcn",),
    )
