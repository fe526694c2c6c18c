"""Many runs: the variants and seeds of a study, each cell in a process of its own."""

from mtlcore.studies.cells import cells_of
from mtlcore.studies.preparation import prepare_study
from mtlcore.studies.running import run_study
from mtlcore.studies.spec import read_study

__all__ = [
    "cells_of",
    "prepare_study",
    "read_study",
    "run_study",
]
