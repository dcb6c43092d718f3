"""A stage run by dvc is done by a fork of the warm process that an earlier stage of the same run has started.

It differs from a process of its own by the seconds of imports only: the same command line, directory, environment,
streams, signals and exit code. Where there is a GPU, which no fork can use, stages run in processes of their own.
"""

import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

from mcsmoe import warm
from mcsmoe.command import early
from mcsmoe.warm_process import SIGNALS

STAGE = "DVC_STAGE"
"""dvc names the stage in the environment of its command."""
GPUS = ("/dev/nvidiactl", "/dev/kfd")

_place: warm.Place | None = None
"""Place of the warm process for all stages of this run of dvc; None: this process has one to itself."""


def hand_over() -> None:
    """Exit with the exit code of a fork that has done the work; return if this process must do it itself."""
    global _place
    own = sys.platform != "linux" or sys.flags.isolated or any(map(os.path.exists, GPUS))  # forks are isolated
    if own or STAGE not in os.environ or sys.orig_argv[1] != "-m":
        return
    with contextlib.suppress(OSError):
        _place = warm.place(_owner(), key())
    if _place is not None:
        command = sys.orig_argv[1:]
        code = warm.run(command, directory=os.getcwd(), path=sys.path, signals=SIGNALS, address=_place.address)
        if code is not None:
            end(code)


def start(threads: int, *, verifying: bool) -> None:
    """Start the warm process, for later stages of a run of dvc, or if this one will be `verifying` checkpoints."""
    if _place is not None or verifying:
        warm.start(os.environ | early(threads), _place)


def key() -> str:
    """What all stages of a run of dvc have in common: libraries read their environment when they are imported."""
    return json.dumps({name: value for name, value in os.environ.items() if name not in (STAGE, "_")})


def end(code: int) -> NoReturn:
    """Exit with this code, or, if it is negative, by the signal of this number."""
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


def _owner() -> int:
    """The process of dvc: the nearest ancestor that is no command of a stage. Raises `OSError` if that is not told."""
    process = os.getpid()
    while f"\0{STAGE}=".encode() in b"\0" + Path(f"/proc/{process}/environ").read_bytes():
        process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    return process
