"""What every command does, of a stage or of `mcsmoe`: threads and seed; one line for a user's mistake or Ctrl-C."""

import gc
import os
import sys
import time
from collections.abc import Callable
from functools import wraps
from typing import Any

from mcsmoe.errors import UserError, file_error
from mcsmoe.interrupt import INTERRUPTED, idle, leaving, working

USER_ERROR = 2
"""Exit code for whatever the user can put right: an argument, a file, its permissions, a full disk."""

OTHERS = 5
"""Seconds for which a process that is not the first waits before it tells of a mistake."""


def run(app: Callable[[], Any], explained: Callable[[UserError], str] = str) -> None:
    """Call `app`. A `UserError`, or an error of the operating system, is one line on stderr and exit code 2.

    `explained` makes the line of an error. The app's commands are `interruptible`.
    """
    try:
        app()
    except Exception as error:
        told = error if isinstance(error, UserError) else file_error(error)
        if told is None:
            raise
        _fail(explained(told))


def interruptible(command: Callable[..., Any]) -> Callable[..., Any]:
    """Make Ctrl-C print one line and exit with code 130; Typer would print "Aborted" and exit with code 1."""

    @wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            result = command(*args, **kwargs)
            idle()
            return result
        except KeyboardInterrupt as interruption:
            leaving(str(interruption))
            sys.exit(INTERRUPTED)

    return guarded


def early(threads: int | None = None) -> dict[str, str]:
    """What must be in the environment before torch is imported, with so many threads (None: torch's default)."""
    defaults = {
        # OpenMP's idle threads spin by default and take time from everything else on the machine.
        "OMP_WAIT_POLICY": "PASSIVE",
        # oneDNN keeps a kernel and its buffers, megabytes each, for every shape, and experts see another number of
        # tokens each time: in bfloat16, a streamed model of 1 GB left 1.2 GB behind.
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16",
        # Without it, matrix products on a GPU may give other last bits in another run.
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }
    needed = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    return defaults | {name: os.environ[name] for name in defaults if name in os.environ} | needed


def prepare(seed: int, threads: int | None = None) -> None:
    """Import torch with deterministic algorithms, a seed, and so many threads (None: torch's default)."""
    os.environ |= early(threads)
    gc.disable()  # collections find nothing to free among what imports make, and take a sixth of their time
    import torch
    import transformers.modeling_utils

    gc.enable()
    quiet()
    if threads is not None:
        torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Deterministic algorithms also fill new memory before its first use: gigabytes for a model built for its shapes.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    transformers.set_seed(seed)
    # Imported modules stay, and collections of garbage need not walk through their million objects each time.
    gc.freeze()
    working()


def quiet() -> None:
    """Make transformers and the hub print errors only, and no progress bars: commands say themselves what they do."""
    import huggingface_hub
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    huggingface_hub.utils.logging.set_verbosity_error()


def _fail(line: str) -> None:
    if os.environ.get("RANK", "0") != "0":
        # All processes of a stage make the same mistake; the launcher ends the others when the first has told it.
        time.sleep(OTHERS)
    print(f"error: {line}", file=sys.stderr)
    sys.exit(USER_ERROR)
