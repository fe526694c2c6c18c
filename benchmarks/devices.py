"""Where a benchmark runs: `--device`, and a clock that waits for what was launched there."""

from __future__ import annotations

import argparse
import time

import torch

_chosen = torch.device("cpu")


def add_option(parser: argparse.ArgumentParser) -> None:
    """Give a command line `--device`."""
    parser.add_argument("--device", type=choose, default="cpu", help="cpu or cuda")


def choose(name: str) -> torch.device:
    """Let this process measure on a device.

    Raises:
        argparse.ArgumentTypeError: It is not here.
    """
    global _chosen
    try:
        _chosen = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # a torch without CUDA asserts
        raise argparse.ArgumentTypeError(str(error).splitlines()[0]) from error
    return _chosen


def device() -> torch.device:
    """Where to measure."""
    return _chosen


def now() -> float:
    """Seconds on a clock, when all that was asked for is done."""
    if _chosen.type == "cuda":
        torch.cuda.synchronize(_chosen)
    return time.perf_counter()


def described() -> str:
    """The device as a table says it."""
    if _chosen.type == "cuda":
        return f"{torch.cuda.get_device_name(_chosen)}, torch {torch.__version__}"
    return f"{torch.get_num_threads()} thread(s) of a processor, torch {torch.__version__}"
