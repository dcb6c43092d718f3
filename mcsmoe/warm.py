"""A warm process: it forks for whoever needs a Python process in which torch and transformers are imported already.

Importing them takes seconds, a fork milliseconds. `start` returns at once, while the process imports them on another
core. The process never sees code of this package, so a fork of it is as good as a new interpreter. It lives as long as
its owner, however that ends. All this works on Linux; elsewhere, and where anything fails, there is no warm process,
and `run` says so.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from mcsmoe import warm_process

ADDRESS = "MCSMOE_WARM"
"""Environment variable: the address of a warm process that whoever started this process shares with it."""

_address = os.environ.get(ADDRESS)


class Place(NamedTuple):
    """Whose warm process it is, and its address: an abstract socket, which leaves no file behind."""

    owner: int
    address: str


def place(owner: int, *key: str) -> Place:
    """The place of the warm process that `owner` has for `key`. Raises `OSError` if there is no such process."""
    began = Path(f"/proc/{owner}/stat").read_text().rpartition(")")[2].split()[19]  # numbers are used again
    who = [owner, began, os.readlink("/proc/self/ns/pid"), sys.executable, *key]
    return Place(owner, f"mcsmoe-{sha256(json.dumps(who).encode()).hexdigest()}")


def start(environment: Mapping[str, str] = os.environ, at: Place | None = None) -> None:
    """Start the warm process unless one is known; without `at`, this process is its owner."""
    global _address
    if _address is None and sys.platform == "linux":
        with contextlib.suppress(OSError):
            _address = _started(dict(environment), at or place(os.getpid()))


def shared() -> dict[str, str]:
    """What a process that this one starts needs in its environment to use the same warm process."""
    return {} if _address is None else {ADDRESS: _address}


def _started(environment: dict[str, str], at: Place) -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening, open(os.pidfd_open(at.owner)) as owner:
        listening.bind(f"\0{at.address}")
        listening.listen()
        files = [listening.fileno(), owner.fileno()]
        process = subprocess.Popen(
            [sys.executable, "-I", warm_process.__file__, *map(str, files)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=files,
            start_new_session=True,  # Ctrl-C in a terminal is not for it
        )
        process.returncode = 0  # nobody waits for it: it ends with its owner
    return at.address


def run(
    command: Sequence[str],
    *,
    directory: str | Path,
    files: Sequence[int] = (0, 1, 2),
    path: list[str] | None = None,
    signals: Iterable[signal.Signals] = (),
    address: str | None = None,
) -> int | None:
    """Run a Python command line, `-m MODULE ARGUMENT ...` or `-c CODE ARGUMENT ...`, in a fork of the warm process.

    It has the environment of this process, `files` as its standard streams, and is killed when this process ends.
    `path` is its `sys.path`; None leaves it without the directory and without `PYTHONPATH`. `signals` are passed on to
    it. Returns its exit code, negative for the signal that killed it; None if it was not begun, for there is no warm
    process.
    """
    address = address or _address
    if address is None:
        return None
    request: dict[str, Any] = {"command": command, "path": path, "environment": os.environ | {ADDRESS: address}}
    request |= {"directory": str(directory), "lines": bool(sys.stdout) and sys.stdout.line_buffering}
    request["ignored"] = [each for each in warm_process.SIGNALS if signal.getsignal(each) is signal.SIG_IGN]
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        try:
            connection.connect(f"\0{address}")
            if not warm_process.of_this_user(connection):
                return None
            socket.send_fds(connection, [json.dumps(request).encode()], files)
            if not connection.recv(16):
                return None
        except OSError:
            return None
        with _passing_on(signals, connection), contextlib.suppress(ConnectionError):
            status = connection.recv(16)
            return os.waitstatus_to_exitcode(int(status)) if status else -signal.SIGKILL
        return -signal.SIGKILL


@contextlib.contextmanager
def _passing_on(signals: Iterable[signal.Signals], connection: socket.socket) -> Iterator[None]:
    heard = [number for number in signals if signal.getsignal(number) is not signal.SIG_IGN]
    before = {
        number: signal.signal(number, lambda number, frame: connection.send(str(number).encode())) for number in heard
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
