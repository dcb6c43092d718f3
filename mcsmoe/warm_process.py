"""The warm process: it has imported torch and transformers, never code of this package, and forks whenever it is asked.

    python -I warm_process.py LISTENING OWNER      two file descriptors: a socket, and the pidfd of its owner

It ends with its owner. For each request there are two forks: the work, which becomes the Python command that was asked
for, and its keeper, which tells how the work ended, and kills it if whoever asked ends first. `mcsmoe.warm` asks.
"""

import ctypes
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import struct
import sys
from typing import Any, NoReturn

PR_SET_PDEATHSIG = 1
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What asks a process to end; a shell may have them ignored."""
LARGEST = 1 << 20
"""Bytes of a request; the system refuses to send larger ones."""


def of_this_user(connection: socket.socket) -> bool:
    """Whether the other end of a Unix socket belongs to a process of the same user."""
    _, user, _ = struct.unpack(
        "3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    )
    return bool(user == os.getuid())


def serve(listening: socket.socket, owner: int) -> dict[str, Any]:
    """Fork for each connection until the owner ends. Returns in forks only, with what they should do."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for keepers
    while True:
        if owner in select.select([listening.fileno(), owner], [], [])[0]:
            os._exit(0)
        connection, _ = listening.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listening.close()
            os.close(owner)
            return take(connection)
        connection.close()


def take(connection: socket.socket) -> dict[str, Any]:
    """Fork the work, in which this returns the request; go on as its keeper."""
    message, files, _, _ = socket.recv_fds(connection, LARGEST, 3)
    if not of_this_user(connection) or len(files) != 3:
        os._exit(1)
    connection.send(b"begun")  # fails if nobody waits any more
    keeper = os.getpid()
    work = os.fork()
    if work:
        for file in files:
            os.close(file)
        keep(connection, work)
    connection.close()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != keeper:  # it has ended before
        os._exit(1)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    request: dict[str, Any] = json.loads(message)
    return request


def keep(connection: socket.socket, work: int) -> NoReturn:
    """Pass on signals, which come as numbers, until the work has ended; then send its wait status."""
    ended = os.pidfd_open(work)
    while ended not in select.select([connection.fileno(), ended], [], [])[0]:
        number = int(connection.recv(16) or signal.SIGKILL)
        os.kill(work, number)
        if number == signal.SIGKILL:
            break
    status = os.waitpid(work, 0)[1]
    try:
        connection.send(str(status).encode())
    finally:
        os._exit(0)


def work(
    command: list[str],
    path: list[str] | None,
    environment: dict[str, str],
    directory: str,
    lines: bool,
    ignored: list[int],
) -> None:
    """Do what `python -m MODULE ARGUMENT ...` or `python -c CODE ARGUMENT ...` would do in `directory`."""
    for number in SIGNALS:  # this process may have been started where others were ignored
        usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN if number in ignored else usual)
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    sys.stdout.reconfigure(line_buffering=lines)  # type: ignore[union-attr]
    sys.path[:] = sys.path if path is None else path
    option, what, *arguments = command
    sys.orig_argv, sys.argv = [sys.executable, *command], [option, *arguments]
    if option == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})


def ended(process: int) -> bool:
    """Whether the process of a pidfd has ended."""
    return bool(select.select([process], [], [], 0)[0])


if __name__ == "__main__":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # forks could use no GPU that this process had seen
    gc.disable()  # collections find nothing to free among what imports make, and take a sixth of their time
    listening, owner = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    for name in ("torch", "transformers.modeling_utils", "transformers.models.auto.modeling_auto", "tokenizers"):
        if not ended(owner):
            importlib.import_module(name)
    gc.freeze()  # no fork need look at it, nor copy it
    gc.enable()
    work(**serve(listening, owner))
