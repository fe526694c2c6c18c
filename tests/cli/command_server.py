"""Answer command lines of `mtl`, each in a fork of this process, which has imported torch.

A line of standard input is a JSON object: `words`, `folder`, `patience` (seconds until Ctrl-C),
`memory` (bytes of address space that the command may take beyond what it starts with). A line of
standard output answers it: `code`, `said` (what the command wrote). What a command does to memory,
signals or the working directory ends with its fork.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import tempfile
import time
from typing import Any

import torch

import mtlcore.display
import mtlcore.engine
import mtlcore.report
import mtlcore.runs
import mtlcore.studies  # noqa: F401
from mtlcore.cli import main
from mtlcore.plugins import Plugins

PLUGINS = Plugins.from_environment(())
#: How long a command may go on after Ctrl-C, in seconds.
LONGEST = 90.0


def obey(words: list[str], folder: str, memory: int, output: int) -> None:
    """Be the command `mtl WORDS` in FOLDER."""
    os.setsid()
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + memory,) * 2)
    code: Any = 70
    try:
        main(words, prog_name="mtl", obj=PLUGINS)
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code if isinstance(code, int) else 1)


def ended(child: int, patience: float) -> int:
    """Wait for a process, stop it by Ctrl-C after some time, and return its exit code."""
    begin, asked = time.monotonic(), False
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        passed = time.monotonic() - begin
        if passed > patience and not asked:
            os.kill(child, signal.SIGINT)
            asked = True
        if passed > patience + LONGEST:
            os.killpg(child, signal.SIGKILL)
        time.sleep(0.005)


for line in sys.stdin:
    request = json.loads(line)
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if not child:
            obey(request["words"], request["folder"], request["memory"], output.fileno())
        code = ended(child, request["patience"])
        output.seek(0)
        said = output.read().decode("utf-8", "backslashreplace")
    print(json.dumps({"code": code, "said": said}), flush=True)
