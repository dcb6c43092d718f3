"""Ctrl-C prints one line that says how to resume, and exits with code 130 within seconds, whatever is running.

Processes that a command has started end with it, however it ends.
"""

import ctypes
import os
import shlex
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

INTERRUPTED = 130
SECONDS = 5
"""Time for cleaning up, and for native code that cannot be interrupted: a large matrix product, a solver."""
CHILD = "MCSMOE_CHILD"
PR_SET_PDEATHSIG = 1
HALF = "nothing half written"

_said = threading.Lock()
_others: list[str] = []


def resumed_by(command: str) -> None:
    """Make the line name another command that resumes the work, besides the same one."""
    _others.append(command)


def idle() -> None:
    """Make Ctrl-C end the process at once, before and after the work.

    A `KeyboardInterrupt` would not do during imports, which may wrap it in another exception.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell may have it ignored
        signal.signal(signal.SIGINT, _end)


def child() -> dict[str, str]:
    """What a process that this one starts needs in its environment to know whose child it is."""
    return {CHILD: str(os.getpid())}


def follow() -> None:
    """If this process is a `child`, make the system kill it when its parent ends, even if that is killed itself.

    A child prints nothing on Ctrl-C, because the command already does, and an uncaught error only if nobody stops it
    within `SECONDS`: it may just have lost touch with a process that died.
    """
    parent = os.environ.get(CHILD)
    if parent is None:
        return
    prctl = getattr(ctypes.CDLL(None), "prctl", None)  # on Linux only
    if prctl is not None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):  # it has ended before
        os._exit(1)
    sys.excepthook = _late


def _late(*error: Any) -> None:
    time.sleep(SECONDS)
    sys.__excepthook__(*error)


def working() -> None:
    """Make Ctrl-C raise `KeyboardInterrupt`, and end the process if it is still alive `SECONDS` later.

    Does nothing unless `idle` was called, so programs that only import this keep their own handler.
    """
    if signal.getsignal(signal.SIGINT) is not _end:
        return
    heard, noted = os.pipe()
    os.set_blocking(noted, False)
    signal.set_wakeup_fd(noted, warn_on_full_buffer=False)
    threading.Thread(target=_insist, args=(heard,), daemon=True).start()
    others, sys.unraisablehook = sys.unraisablehook, lambda error: _unheard(error) or others(error)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def leaving(what: str = "") -> None:
    """Print that the command was interrupted, and `what` is left of its work; further Ctrl-C is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _say(what or HALF)


def _unheard(error: "sys.UnraisableHookArgs") -> bool:
    """Send Ctrl-C again after a finaliser has swallowed a `KeyboardInterrupt`; True if it was one."""
    if error.exc_type is KeyboardInterrupt:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        return True
    return False


def _insist(heard: int) -> None:
    # Signals reach this pipe at once, while Python's handlers wait for the main thread.
    while signal.SIGINT not in os.read(heard, 1):
        pass
    time.sleep(SECONDS)
    _end()


def _end(number: int = signal.SIGINT, frame: FrameType | None = None) -> None:
    _say(HALF)
    os._exit(INTERRUPTED)


def _say(what: str) -> None:
    if _said.acquire(blocking=False) and CHILD not in os.environ:
        again = ", or ".join([f"run `{same_command()}` again", *(f"`{other}`" for other in _others)])
        os.write(2, f"\ninterrupted: {what}; {again}\n".encode())


def same_command() -> str:
    """The command line of this process: `python -m a.module --option`, or `mcsmoe show` for a script on the path."""
    first, *rest = sys.orig_argv[1:]
    script = first == sys.argv[0] and not first.startswith("-") and not Path(first).suffix
    return shlex.join([Path(first).name, *rest] if script else ["python", first, *rest])
