"""Ctrl-C: one line that says how to go on, and exit code 130 within seconds, whatever the process is doing."""

import os
import shlex
import signal
import sys
import threading
import time
from types import FrameType

INTERRUPTED = 130
SECONDS = 5
"""How long cleaning up may take, and code that sees no `KeyboardInterrupt`: a large product, a solver."""
CHILD = {"MCSMOE_CHILD": "1"}
"""Environment of a process that a stage starts: a terminal sends Ctrl-C to both, and one line is enough."""
HALF = "nothing half written"

_said = threading.Lock()


def idle() -> None:
    """Before the work, and after it, Ctrl-C ends the process on the spot: imports may wrap a `KeyboardInterrupt`."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell may have it ignored
        signal.signal(signal.SIGINT, _end)


def working() -> None:
    """From now on Ctrl-C raises `KeyboardInterrupt`; where the process has not ended `SECONDS` later, that ends it.

    Nothing happens where `idle` was not called: in a process that only imports stages.
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
    """Say that the stage was interrupted and `what` is left of its work; more Ctrl-C changes nothing."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _say(what or HALF)


def _unheard(error: "sys.UnraisableHookArgs") -> bool:
    """What a finaliser raises goes nowhere: a `KeyboardInterrupt` comes again when that is over."""
    if error.exc_type is KeyboardInterrupt:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        return True
    return False


def _insist(heard: int) -> None:
    # Signals reach this pipe at once; Python's own handlers wait for the main thread.
    while signal.SIGINT not in os.read(heard, 1):
        pass
    time.sleep(SECONDS)
    _end()


def _end(number: int = signal.SIGINT, frame: FrameType | None = None) -> None:
    _say(HALF)
    os._exit(INTERRUPTED)


def _say(what: str) -> None:
    if _said.acquire(blocking=False) and not CHILD.items() <= os.environ.items():
        again = shlex.join(["python", *sys.orig_argv[1:]])
        os.write(2, f"\ninterrupted: {what}; run `{again}` again, or `dvc repro`\n".encode())
