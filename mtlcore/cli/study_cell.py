"""`python -m mtlcore.cli.study_cell ARGUMENTS` is `mtl ARGUMENTS` for a cell of a study.

Its standard input is a pipe to which nobody writes. When the study closes the other end, or dies,
the run stops as after Ctrl-C: it finishes the step and saves.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence


def run_cell(arguments: Sequence[str]) -> None:
    """Run `mtl ARGUMENTS` and exit; stop when the standard input ends."""
    threading.Thread(target=_end_with_the_study, daemon=True).start()
    from mtlcore.cli.group import main

    main(args=list(arguments))


def _end_with_the_study() -> None:
    # Not sys.stdin, which Python would want to close while this thread reads from it.
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    run_cell(sys.argv[1:])
