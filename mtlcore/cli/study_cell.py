"""`python -m mtlcore.cli.study_cell ARGUMENTS` is `mtl ARGUMENTS`, but ends with who started it.

Its standard input is a pipe that nobody writes to. When the other end is closed, by a study that
stops or by its death, the run stops as after Ctrl-C: it finishes the step and saves.
"""

from __future__ import annotations

import os
import signal
import threading


def _end_with_the_study() -> None:
    # Not sys.stdin, which Python would want to close while this thread reads from it.
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_end_with_the_study, daemon=True).start()
    from mtlcore.cli import main

    main()
