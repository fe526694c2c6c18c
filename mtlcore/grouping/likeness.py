"""How alike the representations of tasks are: of networks that learnt one task each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mtlcore.config import RunConfig
from mtlcore.engine import make_loader, open_split
from mtlcore.episodes import in_order
from mtlcore.errors import UsageError
from mtlcore.grouping.relations import Pair, Relations, over_runs
from mtlcore.learner import Learner
from mtlcore.plugins import Plugins
from mtlcore.results import RunResult
from mtlcore.runs import load_run

_Distances = NDArray[np.float64]


def representation_similarities(
    plugins: Plugins, runs: Sequence[RunResult], samples: int = 200
) -> Relations:
    """Return the similarities of what networks of single tasks make of the same samples (RSA).

    Dwivedi and Roig, "Representation Similarity Analysis for Efficient Task Taxonomy & Transfer
    Learning", CVPR 2019 (arXiv 1904.11740): a network's distances are 1 minus Pearson's correlation
    between its deepest maps of two samples, for all pairs of samples; the similarity of two tasks
    is Spearman's correlation between their networks' distances. Last weights, validation split.

    Args:
        plugins: That the runs' components come from.
        runs: Finished runs of one task each, on the same data.
        samples: How many samples of the validation split, at most.

    Raises:
        UsageError: A run has learnt several tasks, two are of the same task and seed, the data
            differ, or there are fewer than three samples.
    """
    distances: dict[tuple[str, int], _Distances] = {}
    data = None
    for run in runs:
        if len(run.tasks) != 1:
            raise UsageError(
                f"{run.location}: learnt {', '.join(run.tasks)}; representations are compared "
                "between networks of one task each (the variant single-task of a study)"
            )
        key = run.tasks[0], run.seed
        if key in distances:
            raise UsageError(f"{run.location}: a second run of {key[0]} with seed {run.seed}")
        trained = load_run(plugins, run.location, "last")
        # Which labels a run sees is its own matter, the samples are not.
        own = {
            k: v for k, v in trained.config.tree["data"].items() if k in ("name", "root", "size")
        }
        if data is None:
            data = own
        elif own != data:
            raise UsageError(f"{run.location}: its data are {own}, those of the others {data}")
        distances[key] = _distances(run, trained.learner, trained.config, trained.device, samples)
    tasks = list(dict.fromkeys(task for task, _ in distances))
    seeds = sorted({seed for _, seed in distances})
    return over_runs(
        "Similarity of representations: Spearman's correlation of distances between samples",
        tasks,
        _similarities(tasks, seeds, distances),
        directed=False,
    )


def _similarities(
    tasks: Iterable[str], seeds: Iterable[int], distances: dict[tuple[str, int], _Distances]
) -> Iterator[tuple[Pair, int, float]]:
    for seed in seeds:
        for one, other in combinations(tasks, 2):
            if (one, seed) in distances and (other, seed) in distances:
                yield (one, other), seed, spearman(distances[one, seed], distances[other, seed])


def spearman(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Return Spearman's rank correlation of two vectors; equal values share their mean rank."""
    return float(np.corrcoef(_ranks(one), _ranks(other))[0, 1])


def _ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(counts) - (counts - 1) / 2)[places]
    return ranks


@torch.no_grad()
def _distances(
    run: RunResult, learner: Learner, config: RunConfig, device: torch.device, samples: int
) -> _Distances:
    """Return 1 - Pearson's correlation for all pairs of samples, as a vector."""
    data = open_split(config, "val", config.data.val)
    plans = in_order("val", len(data), config.training.batch_size, samples)
    rows = []
    for batch in make_loader(config, {"val": data}).batches(plans):
        if batch is not None:
            inputs = batch.to(device).inputs
            features, _ = learner.model.separable_features(inputs, run.tasks, separate=False)
            rows += [row.flatten().double().cpu().numpy() for row in features.of(run.tasks[0])[0]]
    if len({len(row) for row in rows}) > 1:
        raise UsageError(f"{run.location}: its samples have several sizes; set data.size")
    if len(rows) < 3:
        raise UsageError(f"{run.location}: {len(rows)} samples are too few to be compared")
    distances: _Distances = (1 - np.corrcoef(np.stack(rows)))[np.triu_indices(len(rows), 1)]
    return distances
