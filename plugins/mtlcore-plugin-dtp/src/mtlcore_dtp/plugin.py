"""What this plugin adds: dynamic task prioritization, of losses or of steps, and a method."""

from __future__ import annotations

from collections.abc import Iterator

from mtlcore import BalancerSpec, EpisodeSamplerSpec, MethodSpec, hookimpl

_PAPER = "Guo et al., Dynamic Task Prioritization for Multitask Learning, ECCV 2018"


@hookimpl
def mtl_balancers() -> Iterator[BalancerSpec]:
    """Yield the balancer DTP."""
    yield BalancerSpec(
        name="dtp",
        target="mtlcore_dtp.balancer:DTP",
        summary="Tasks weigh by how far their metrics are from perfect.",
        paper=_PAPER,
    )


@hookimpl
def mtl_episode_samplers() -> Iterator[EpisodeSamplerSpec]:
    """Yield the sampler that draws tasks by DTP's weights."""
    yield EpisodeSamplerSpec(
        name="dtp",
        target="mtlcore_dtp.sampler:PrioritySampler",
        summary="One task per step, drawn by how far its metric is from perfect.",
        paper=_PAPER,
    )


@hookimpl
def mtl_methods() -> Iterator[MethodSpec]:
    """Yield the method: any configuration, trained with dynamic task prioritization."""
    yield MethodSpec(
        name="dtp",
        preset={
            "balancer": {"name": "dtp", "discount": 0.5, "gamma": 1.0},
            "training": {"evaluate_every": 1},
        },
        summary="Difficult tasks first, by their validation metrics.",
        paper=_PAPER,
        requires=("balancers/dtp",),
    )
