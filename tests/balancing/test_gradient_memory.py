"""What rows of gradients cost: the memory of a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_PEAK = """
import sys, torch
from pathlib import Path
from torch import nn
from mtlcore.balancing import BalancerContext, GramianBalancer
from mtlcore.balancing import TaskGradients

class Ones(GramianBalancer):
    def weights(self, gramian, context=None):
        return torch.ones(len(gramian), dtype=torch.float64)

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])

torch.set_num_threads(1)
tasks, width, depth = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
trunk = nn.Sequential(*(nn.Linear(width, width) for _ in range(depth)))
heads = [nn.Linear(width, 1) for _ in range(tasks)]
own = {f"t{n}": list(head.parameters()) for n, head in enumerate(heads)}
gradients, balancer = TaskGradients(trunk.parameters(), own), Ones()
inputs = torch.randn(4, width)
def losses():
    features = trunk(inputs)
    return {task: head(features).square().mean() for task, head in zip(own, heads)}
losses()
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
for _ in range(3):
    gradients.collect_rows(losses())
    gradients.apply(balancer, BalancerContext(tasks=tuple(own)))
    for p in trunk.parameters():
        p.grad = None
print((status("VmHWM") - before) / sum(4 * p.numel() for p in trunk.parameters()))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize(("width", "depth"), [(2048, 4), (192, 300)], ids=["large", "small"])
@pytest.mark.parametrize("tasks", [3, 6])
def test_memory_is_the_rows_the_gradient_and_little_more(tasks, width, depth):
    command = [sys.executable, "-c", _PEAK, str(tasks), str(width), str(depth)]
    # What is freed goes back at once, so that the process holds what is alive.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    assert float(done.stdout) <= tasks + 1.5
