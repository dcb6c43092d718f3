"""Several processes: a stage starts itself again under `accelerate launch`, or under torchrun without a GPU."""

import logging
import os
import runpy
import signal
import subprocess
import sys

from mcsmoe.params import Params
from stages.interrupt import CHILD, INTERRUPTED

LAUNCHED = "MCSMOE_LAUNCHED"


def launched(params: Params, module: str) -> bool:
    """True if this process is to do the work; otherwise all processes of `launch:` have done it by now.

    Exits with their exit code if they fail. Raises `RuntimeError` if fewer processes were started than asked for.
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
    if code:
        sys.exit(code)
    return False


def _run(command: list[str]) -> int:
    """Run a launcher; it and its processes end with this one, whatever ends it."""
    # Not in the terminal's group: a launcher that gets Ctrl-C twice leaves its processes behind.
    process = subprocess.Popen(command, env=os.environ | CHILD | {LAUNCHED: "1"}, process_group=0)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup has it ignored
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
    # accelerate starts several CPU processes through MPI only; it reads what torchrun, which it uses for GPUs, sets.
    os.environ["ACCELERATE_USE_CPU"] = "true"
    return ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "--module"]


def _launch() -> None:
    """Run the launcher that the command line names; interrupted, it ends without a word: who started it has one."""
    from torch.distributed.elastic.multiprocessing.api import SignalException

    logging.disable(logging.WARNING)  # torch's launcher warns of each signal that it passes on
    del sys.argv[0]
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except SignalException:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    _launch()
