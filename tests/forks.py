"""Fresh processes in which checkpoints are verified, without seconds of imports each.

A server that imported torch and transformers, and never this package, forks one for each; it then runs the script as
its own interpreter would, with its own cache of remote code. `own_process` of conftest.py is a test's way back to
real ones.
"""

import json
import subprocess
import sys
from dataclasses import asdict
from functools import cache
from pathlib import Path

from mcsmoe.checkpoint.fresh import SCRIPT, FreshLoad

SERVER = """
import json, os, sys
import torch
import transformers.dynamic_module_utils
import transformers.models.mixtral.modeling_mixtral
import transformers.models.switch_transformers.modeling_switch_transformers
assert "mcsmoe" not in sys.modules
for line in sys.stdin:
    child = os.fork()
    if not child:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
# From here on in the child, which ends as any script does.
script, sys.argv[1:], directory, errors = json.loads(line)
os.chdir(directory)
os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), 2)
transformers.dynamic_module_utils.HF_MODULES_CACHE = directory  # for the script says so after the import
exec(script, {"__name__": "__main__"})
"""


@cache
def server() -> subprocess.Popen[str]:
    """The server, started by the first verification."""
    command, offline = [sys.executable, "-I", "-c", SERVER], {"HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(command, env=offline, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def stop() -> None:
    """End the server, if there is one."""
    if server.cache_info().currsize:
        server().communicate()
        server.cache_clear()


def fork(task: FreshLoad, directory: Path) -> subprocess.CompletedProcess[str]:
    """Do what `fresh.interpreter` does, by a fork of the server."""
    process, errors = server(), directory / "stderr"
    assert process.stdin is not None
    assert process.stdout is not None
    request = [SCRIPT, [json.dumps(asdict(task))], str(directory), str(errors)]
    print(json.dumps(request), file=process.stdin, flush=True)
    code = int(process.stdout.readline())
    return subprocess.CompletedProcess([], code, "", errors.read_text())
