"""How a run came about: what run.json tells."""

from __future__ import annotations

import platform
import sys
import uuid
from collections.abc import Mapping
from typing import Any

import torch

from mtlcore._version import __version__
from mtlcore.engine import Session
from mtlcore.plugins import Plugins


def provenance(
    plugins: Plugins, session: Session, before: Mapping[str, Any], *, resumed: bool
) -> dict[str, Any]:
    """Return what run.json tells of how the run came about.

    Args:
        plugins: That there are.
        session: The run, before its next step.
        before: What run.json held so far; empty where there was none.
        resumed: Whether a checkpoint of the run was restored.
    """
    config = session.config
    # A resumed run is given its own settings and reads no first weights: where those came from,
    # its first part tells.
    begun = before if resumed else {}
    return {
        "argv": sys.argv,
        "mtlcore": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "plugins": {
            info.id: f"{info.distribution} {info.version}".strip()
            for info in plugins.infos
            if info.status == "ok"
        },
        "method": config.method,
        "backbone": begun.get("backbone", dict(session.learner.model.backbone.facts())),
        "seed": config.seed,
        "device": str(session.device),
        "threads": torch.get_num_threads(),
        "processes": session.distributed.world_size,
        "id": before.get("id") or uuid.uuid4().hex,
        "origins": begun.get("origins", dict(config.origins)),
    }
