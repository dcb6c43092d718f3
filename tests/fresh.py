"""Fresh processes in which checkpoints are verified, without seconds of imports each.

A server that imported torch and transformers, and never this package, forks one for each; it then runs the script as
its own interpreter would, with its own cache of remote code. `own_process` of conftest.py is a test's way back to
real ones.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

# What a process must have been started with to be a verification's, and what forking it cannot give later.
ISOLATED = [sys.executable, "-I", "-c"]
OFFLINE = {"HF_HUB_OFFLINE": "1"}
SERVER = """
import json, os, sys
import torch
import transformers.dynamic_module_utils
from transformers.models.switch_transformers import modeling_switch_transformers
assert "mcsmoe" not in sys.modules
for line in sys.stdin:
    child = os.fork()
    if not child:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
# From here on in the child, which ends as any script does.
script, sys.argv[1:], directory, modules, errors = json.loads(line)
os.chdir(directory)
os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), 2)
transformers.dynamic_module_utils.HF_MODULES_CACHE = modules
exec(script, {"__name__": "__main__"})
"""


@cache
def server() -> subprocess.Popen[str]:
    """The server, started by the first verification."""
    command = [*ISOLATED, SERVER]
    return subprocess.Popen(command, env=OFFLINE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def stop() -> None:
    """End the server, if there is one."""
    if server.cache_info().currsize:
        server().communicate()
        server.cache_clear()


def run(
    command: list[str], *, env: Mapping[str, str], cwd: str, capture_output: bool, text: bool
) -> subprocess.CompletedProcess[str]:
    """`subprocess.run` for `verify`, by a fork of the server."""
    isolated, script, arguments = command[:3], command[3], command[4:]
    assert isolated == ISOLATED
    assert OFFLINE.items() <= env.items()
    assert capture_output
    assert text
    errors = Path(cwd) / "stderr"
    process = server()
    assert process.stdin is not None
    assert process.stdout is not None
    print(json.dumps([script, arguments, cwd, env["HF_MODULES_CACHE"], str(errors)]), file=process.stdin, flush=True)
    code = int(process.stdout.readline())
    return subprocess.CompletedProcess(command, code, "", errors.read_text())
