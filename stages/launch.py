"""Several processes: a stage starts itself again under `accelerate launch`."""

import os
import subprocess
import sys

from mcsmoe.params import Params

LAUNCHED = "MCSMOE_LAUNCHED"


def launched(params: Params, module: str) -> bool:
    """True if this process is to do the work; otherwise all processes of `launch:` have done it by now.

    Without a GPU the processes are CPU processes. Exits with their exit code if they fail.
    """
    if params.launch.processes == 1 or LAUNCHED in os.environ:
        return True
    import torch

    devices = [] if torch.cuda.is_available() else ["--cpu"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *devices]
    command += ["--num_processes", str(params.launch.processes), "--num_machines", "1"]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    result = subprocess.run([*command, "--module", module, *sys.argv[1:]], env={**os.environ, LAUNCHED: "1"})
    if result.returncode:
        sys.exit(result.returncode)
    return False
