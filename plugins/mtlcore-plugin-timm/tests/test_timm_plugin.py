"""The record: light to read, complete, and pointing to what exists."""

from __future__ import annotations

import subprocess
import sys

from mtlcore.plugins import settings_of
from mtlcore_timm import plugin


def test_timm_is_imported_where_a_backbone_is_built() -> None:
    code = (
        "import sys; from mtlcore_timm import plugin; list(plugin.mtl_backbones()); "
        "heavy = {'torch', 'numpy', 'timm'} & set(sys.modules); "
        "import mtlcore_timm.backbone; print(heavy, 'timm' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set() False"


def test_settings_are_explained() -> None:
    (spec,) = plugin.mtl_backbones()
    settings = settings_of(spec.load())
    assert {setting.name for setting in settings if setting.meaning} == {
        "model", "weights", "out_indices", "pyramid", "channels", "drop_path",
        "gradient_checkpointing", "freeze_norm", "in_chans", "options",
    }  # fmt: skip
