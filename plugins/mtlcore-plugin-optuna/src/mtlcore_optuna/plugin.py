"""What this plugin adds: a searcher that asks Optuna."""

from __future__ import annotations

from collections.abc import Iterator

from mtlcore import SearcherSpec, hookimpl


@hookimpl
def mtl_searchers() -> Iterator[SearcherSpec]:
    """Yield the searcher."""
    yield SearcherSpec(
        name="optuna",
        target="mtlcore_optuna.searcher:Optuna",
        summary="Optuna's samplers, and its pruners for one objective.",
        paper=(
            "Akiba et al., Optuna: A Next-generation Hyperparameter Optimization Framework, KDD "
            "2019, arXiv:1907.10902"
        ),
    )
