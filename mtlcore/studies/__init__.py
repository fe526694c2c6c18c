"""Many runs: variants and seeds, each cell a process."""

from mtlcore.studies.study import cells_of, read_study, run_study

__all__ = [
    "cells_of",
    "read_study",
    "run_study",
]
