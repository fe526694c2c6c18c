"""What holds for every neck."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlcore.features import FeatureInfo
from mtlcore.models import Neck
from mtlcore.testing.base import gradients_of
from mtlcore.testing.maps import ReaderContract


class NeckContract(ReaderContract):
    """Subclass it, write `make`, and pytest checks the neck.

    Attributes:
        features: announcements of backbones that it can read.
        size: of the input; a multiple of all their strides.
        unreached: beginnings of the names of parameters that no map depends on.
    """

    features: tuple[FeatureInfo, ...] = (
        FeatureInfo((8, 6, 5), (8, 4, 2), main_map=0),
        FeatureInfo((6, 4, 5), (8, 0, 1)),
    )
    _what = "neck"

    def make(self, features: FeatureInfo) -> Neck:
        """Return the neck."""
        raise NotImplementedError

    def test_maps_are_as_announced(self) -> None:
        """Otherwise heads are built for other channels, or predict at another resolution."""
        for features in self.features:
            for dtype in (torch.float32, torch.float64):
                neck = self._new(features).to(dtype)
                maps = neck([x.to(dtype) for x in self._maps(features)])
                info = FeatureInfo.of(neck)
                expected = [
                    (2, c, self.size[0] // s, self.size[1] // s)
                    for c, s in zip(info.channels, info.strides, strict=True)
                ]
                shapes = [tuple(x.shape) for x in maps]
                assert shapes == expected, (
                    f"maps have shapes {shapes}, announced are {expected}, from {features}"
                )
                assert isinstance(maps, tuple), f"a {type(maps).__name__} of maps, not a tuple"
                assert -len(maps) <= info.main_map < len(maps), f"no map {info.main_map} is there"
                assert all(x.dtype == dtype for x in maps), f"{dtype} in, another type out"
                assert all(bool(x.isfinite().all()) for x in maps), f"not finite in {dtype}"

    def test_last_parameters_are_its_own(self) -> None:
        """Otherwise balancing there compares nothing, or what is somebody else's."""
        for features in self.features:
            neck = self._new(features)
            last = list(neck.last_parameters())
            own = {id(p) for p in neck.parameters()}
            assert all(id(p) in own for p in last), "one of them is none of the neck's"
            loss = self._computed(neck, self._maps(features)).square().sum()
            found = gradients_of(loss, last)
            assert not last or any(g is not None and bool(g.any()) for g in found), (
                "no map depends on the last parameters"
            )

    def _made(self, features: FeatureInfo) -> Neck:
        return self.make(features)

    def _computed(self, module: Neck, maps: Sequence[Tensor]) -> Tensor:
        return torch.cat([x.flatten(1) for x in module(maps)], dim=1)
