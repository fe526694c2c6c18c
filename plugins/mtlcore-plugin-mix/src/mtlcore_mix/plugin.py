"""What this plugin adds: augmentations that paste what belongs together into another image."""

from __future__ import annotations

from collections.abc import Iterator

from mtlcore import AugmentationSpec, MethodSpec, hookimpl

_CLASSMIX = (
    "Olsson et al., ClassMix: Segmentation-Based Data Augmentation for Semi-Supervised Learning, "
    "WACV 2021, arXiv:2007.07936"
)
_DEPTHMIX = (
    "Hoyer et al., Three Ways to Improve Semantic Segmentation with Self-Supervised Depth "
    "Estimation, CVPR 2021, arXiv:2012.10782"
)


@hookimpl
def mtl_augmentations() -> Iterator[AugmentationSpec]:
    """Yield the augmentations."""
    yield AugmentationSpec(
        name="classmix",
        target="mtlcore_mix.mixing:ClassMix",
        summary="Pastes half of the classes of another image, with all their labels.",
        paper=_CLASSMIX,
    )
    yield AugmentationSpec(
        name="depthmix",
        target="mtlcore_mix.mixing:DepthMix",
        summary="Pastes what is nearer in another image, with all its labels.",
        paper=_DEPTHMIX,
    )


@hookimpl
def mtl_methods() -> Iterator[MethodSpec]:
    """Yield a method for each: any configuration, with this augmentation alone."""
    for name, summary, paper in (
        ("classmix", "Mixes images by the classes in them.", _CLASSMIX),
        ("depthmix", "Mixes images by the depth in them.", _DEPTHMIX),
    ):
        yield MethodSpec(
            name=name,
            preset={"data": {"augmentations": [{"name": name}]}},
            summary=summary,
            paper=paper,
            requires=(f"augmentations/{name}",),
        )
