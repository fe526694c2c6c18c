"""The contracts as test classes: subclass one, write `make`, and pytest collects its checks.

::

    from mtlcore.testing import GradientBalancerContract

    class TestSignVote(GradientBalancerContract):
        def make(self):
            return SignVote(quorum=0.4)

Whatever else a contract needs to know is a class attribute. So are claims that not every component
can make: set one to False, and the contract does not check it. Nothing here imports pytest.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtlcore.testing.augmentations import AugmentationContract
    from mtlcore.testing.backbones import BackboneContract
    from mtlcore.testing.cross_task_losses import CrossTaskLossContract
    from mtlcore.testing.datasets import DatasetContract
    from mtlcore.testing.episodes import EpisodeSamplerContract
    from mtlcore.testing.exporters import ExporterContract
    from mtlcore.testing.gradient_balancers import GradientBalancerContract, GramianBalancerContract
    from mtlcore.testing.heads import HeadContract
    from mtlcore.testing.launchers import LauncherContract
    from mtlcore.testing.loggers import (
        TINY_RUN,
        LoggerContract,
        NotesDisplay,
        told_lines,
        told_run,
    )
    from mtlcore.testing.loss_balancers import LossBalancerContract
    from mtlcore.testing.losses import LossContract, ScalarLossContract
    from mtlcore.testing.methods import MethodContract
    from mtlcore.testing.metrics import MetricContract
    from mtlcore.testing.necks import NeckContract
    from mtlcore.testing.optimizers import OptimizerContract
    from mtlcore.testing.papers import NOT_SAID, PaperContract
    from mtlcore.testing.plugins import assert_plugin_is_light, assert_plugin_is_whole
    from mtlcore.testing.searchers import SearcherContract
    from mtlcore.testing.tiny import (
        TINY_TASKS,
        TinyBackbone,
        TinyPyramid,
        tiny_batch,
        tiny_learner,
    )

__all__ = [
    "NOT_SAID",
    "TINY_RUN",
    "TINY_TASKS",
    "AugmentationContract",
    "BackboneContract",
    "CrossTaskLossContract",
    "DatasetContract",
    "EpisodeSamplerContract",
    "ExporterContract",
    "GradientBalancerContract",
    "GramianBalancerContract",
    "HeadContract",
    "LauncherContract",
    "LoggerContract",
    "LossBalancerContract",
    "LossContract",
    "MethodContract",
    "MetricContract",
    "NeckContract",
    "NotesDisplay",
    "OptimizerContract",
    "PaperContract",
    "ScalarLossContract",
    "SearcherContract",
    "TinyBackbone",
    "TinyPyramid",
    "assert_plugin_is_light",
    "assert_plugin_is_whole",
    "assert_settings_are_checked",
    "tiny_batch",
    "tiny_learner",
    "told_lines",
    "told_run",
]

# Most of these import torch, so they are fetched when they are first asked for.
_HOMES = {
    "AugmentationContract": "augmentations",
    "BackboneContract": "backbones",
    "CrossTaskLossContract": "cross_task_losses",
    "DatasetContract": "datasets",
    "EpisodeSamplerContract": "episodes",
    "ExporterContract": "exporters",
    "GradientBalancerContract": "gradient_balancers",
    "GramianBalancerContract": "gradient_balancers",
    "HeadContract": "heads",
    "LauncherContract": "launchers",
    "LoggerContract": "loggers",
    "LossBalancerContract": "loss_balancers",
    "LossContract": "losses",
    "MethodContract": "methods",
    "MetricContract": "metrics",
    "NOT_SAID": "papers",
    "NeckContract": "necks",
    "NotesDisplay": "loggers",
    "OptimizerContract": "optimizers",
    "PaperContract": "papers",
    "ScalarLossContract": "losses",
    "SearcherContract": "searchers",
    "TINY_RUN": "loggers",
    "TINY_TASKS": "tiny",
    "TinyBackbone": "tiny",
    "TinyPyramid": "tiny",
    "assert_plugin_is_light": "plugins",
    "assert_plugin_is_whole": "plugins",
    "assert_settings_are_checked": "plugins",
    "tiny_batch": "tiny",
    "tiny_learner": "tiny",
    "told_lines": "loggers",
    "told_run": "loggers",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"mtlcore.testing.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
