"""What is done with one run: train it, go on, evaluate, predict, label, export, let tasks join."""

from mtlcore.runs.adaptation import ADAPTATION, adapt_run, adapted_config
from mtlcore.runs.configuration import configure
from mtlcore.runs.execution import execute, place_of, run, try_step
from mtlcore.runs.export import Exported, export_model, export_run
from mtlcore.runs.logs import log_run
from mtlcore.runs.parameters import count_method_flops, count_method_parameters, describe_backbone
from mtlcore.runs.pseudo_labels import PseudoLabels, pseudo_label
from mtlcore.runs.trained import evaluate_run, load_run, predict_image, save_prediction
from mtlcore.storage import request_stop

__all__ = [
    "ADAPTATION",
    "Exported",
    "PseudoLabels",
    "adapt_run",
    "adapted_config",
    "configure",
    "count_method_flops",
    "count_method_parameters",
    "describe_backbone",
    "evaluate_run",
    "execute",
    "export_model",
    "export_run",
    "load_run",
    "log_run",
    "place_of",
    "predict_image",
    "pseudo_label",
    "request_stop",
    "run",
    "save_prediction",
    "try_step",
]
