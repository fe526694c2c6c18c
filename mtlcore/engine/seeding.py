"""Draws from torch's global stream that must not depend on what was drawn before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch's global generators for a while; they go on from where they were afterwards.

    Args:
        device: The device whose generator is used beside the CPU's.
        seed: The same on every process, so that all of them draw the same.
    """
    on_gpu = device.type == "cuda"
    state = torch.get_rng_state(), torch.cuda.get_rng_state(device) if on_gpu else None
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state[0])
        if state[1] is not None:
            torch.cuda.set_rng_state(state[1], device)
