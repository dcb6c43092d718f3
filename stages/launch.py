"""Stages in several processes: a stage restarts itself under `accelerate launch`, or torchrun without a GPU."""

import logging
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mcsmoe.interrupt import INTERRUPTED, child, same_command
from mcsmoe.params import Params
from mcsmoe.warm import shared

if TYPE_CHECKING:
    from mcsmoe.calibration.observer import Processes

LAUNCHED = "MCSMOE_LAUNCHED"
COMMAND = "MCSMOE_COMMAND"
"""The command line of the stage."""


def launched(params: Params, module: str) -> bool:
    """True if this process should do the work; False if the processes of `launch:` have already done it.

    `module` is the stage, such as "stages.collect". Exits with the launcher's exit code if a process fails. Raises
    `RuntimeError` if another number of processes was started than `launch.processes`.
    """
    wanted = params.launch.processes
    if LAUNCHED in os.environ:
        started = int(os.environ.get("WORLD_SIZE", "1"))
        if started != wanted:
            raise RuntimeError(f"launch.processes = {wanted}, but {started} were started")
        return True
    if wanted == 1:
        return True
    code = _run([sys.executable, "-m", "stages.launch", *_launcher(wanted), module, *sys.argv[1:]])
    if code < 0:
        sys.exit(_killed("the launcher", -code, same_command()))
    if code:
        sys.exit(code)
    return False


@contextmanager
def joined() -> Iterator["Processes"]:
    """This process among those of `launch:` that run the stage; at the end it leaves them."""
    from accelerate import Accelerator
    from torch import Tensor

    from mcsmoe.calibration.observer import Processes

    accelerator = Accelerator()

    def total(value: Tensor) -> Tensor:
        summed: Tensor = accelerator.reduce(value, "sum")
        return summed

    yield Processes(accelerator.process_index, accelerator.num_processes, accelerator.device, total)
    accelerator.end_training()


def _run(command: list[str]) -> int:
    """Run a launcher and return its exit code; if this process is stopped, the launcher and its processes stop too."""
    # Its own process group, away from the terminal: a launcher that gets Ctrl-C twice leaves its processes behind.
    ours = child() | shared() | {LAUNCHED: "1", COMMAND: same_command()}
    process = subprocess.Popen(command, env=os.environ | ours, process_group=0)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # under nohup SIGHUP stays ignored
            signal.signal(number, lambda number, frame: sys.exit(128 + number))
    try:
        return process.wait()
    except BaseException:
        process.send_signal(signal.SIGINT)
        process.wait()
        raise


def _launcher(processes: int) -> list[str]:
    import torch

    if torch.cuda.is_available():
        options = ["--multi_gpu", "--num_processes", str(processes), "--num_machines", "1"]
        options += ["--mixed_precision", "no", "--dynamo_backend", "no"]
        return ["accelerate.commands.launch", *options, "--module"]
    # accelerate starts several CPU processes only through MPI, but it understands the environment that torchrun sets.
    os.environ["ACCELERATE_USE_CPU"] = "true"
    return ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "--module"]


def _launch() -> None:
    """Run the launcher that the command line names; on Ctrl-C it exits silently, because the stage prints the line."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # torch's launcher warns about each signal that it passes on, and tells at length of a process that failed.
    logging.disable(logging.CRITICAL)
    os.environ |= child()
    del sys.argv[0]
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except SignalException:
        sys.exit(INTERRUPTED)
    except ChildFailedError as error:
        rank, first = error.get_first_failure()
        code = first.exitcode
        sys.exit(code if code > 0 else _killed(f"process {rank}", -code, os.environ[COMMAND]))


def _killed(what: str, number: int, command: str) -> int:
    """Say of a process that a signal killed it, since it could not say so itself; return the exit code for that."""
    why = ", as the system does when memory runs out" if number == signal.SIGKILL else ""
    print(f"error: {what} was killed by {signal.Signals(number).name}{why}; run `{command}` again", file=sys.stderr)
    return 128 + number


if __name__ == "__main__":
    _launch()
