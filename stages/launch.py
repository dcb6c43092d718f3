"""Several processes: a stage starts itself again under `accelerate launch`, or under torchrun without a GPU."""

import os
import subprocess
import sys

from mcsmoe.params import Params

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
    command = [sys.executable, "-m", *_launcher(wanted), module, *sys.argv[1:]]
    result = subprocess.run(command, env={**os.environ, LAUNCHED: "1"})
    if result.returncode:
        sys.exit(result.returncode)
    return False


def _launcher(processes: int) -> list[str]:
    import torch

    if torch.cuda.is_available():
        options = ["--multi_gpu", "--num_processes", str(processes), "--num_machines", "1"]
        options += ["--mixed_precision", "no", "--dynamo_backend", "no"]
        return ["accelerate.commands.launch", *options, "--module"]
    # accelerate starts several CPU processes through MPI only; it reads what torchrun, which it uses for GPUs, sets.
    os.environ["ACCELERATE_USE_CPU"] = "true"
    return ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "--module"]
