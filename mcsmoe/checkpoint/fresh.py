"""Logits of a checkpoint in a fresh process, as a user computes them who has its directory but not this package."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mcsmoe.checkpoint.load import offloading
from mcsmoe.checkpoint.reader import Checkpoint
from mcsmoe.errors import CheckpointError
from mcsmoe.families import family_of

PROBE = "probe.safetensors"
LOGITS = "logits.safetensors"


@dataclass(frozen=True)
class FreshLoad:
    """The task of a fresh process: load `directory` with the transformers class `auto_class`, and compute logits.

    `trust_remote_code` allows it to run the code beside the weights. `offload` holds the options of `from_pretrained`
    that offload weights, {} for none.
    """

    directory: str
    auto_class: str
    trust_remote_code: bool
    threads: int
    offload: dict[str, Any]


SCRIPT = f"""
import json, os, sys
sys.modules["mcsmoe"] = None  # whoever loads the checkpoint does not have this package
# Nor what is on the hub; and no older remote code answers, where modules are cached here.
os.environ.update(HF_HUB_OFFLINE="1", HF_MODULES_CACHE=os.getcwd())
import torch, transformers
from safetensors.torch import load_file, save_file
task = json.loads(sys.argv[1])
torch.set_num_threads(task["threads"])
transformers.logging.set_verbosity_error()
model, report = getattr(transformers, task["auto_class"]).from_pretrained(
    task["directory"], trust_remote_code=task["trust_remote_code"], local_files_only=True, output_loading_info=True,
    **task["offload"])
bad = {{kind: sorted(map(str, keys)) for kind, keys in report.items() if keys}}
if bad:
    sys.exit(f"loading report: {{bad}}")
with torch.no_grad():
    save_file({{"logits": model.eval()(**load_file("{PROBE}")).logits.contiguous()}}, "{LOGITS}")
"""
"""Script of the fresh process: its argument is a `FreshLoad` as JSON; it reads `PROBE` and writes `LOGITS`, both in the
working directory."""


def interpreter(task: FreshLoad, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run `SCRIPT` in `directory` with a new interpreter, which takes seconds to import transformers."""
    command = [sys.executable, "-I", "-c", SCRIPT, json.dumps(asdict(task))]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True)


start: Callable[[FreshLoad, Path], subprocess.CompletedProcess[str]] = interpreter
"""Starts the fresh process. A program that verifies many checkpoints may replace it with something faster, such as
forking a process that has imported transformers but never this package."""


def fresh_logits(
    checkpoint: Checkpoint, probe: Mapping[str, Tensor], *, remote_code: bool, memory_limit: int | None = None
) -> Tensor:
    """Logits on the batch `probe`, computed in a process that has neither this package nor a network.

    `remote_code` allows it to run the code beside the weights. What exceeds `memory_limit` bytes is offloaded.
    Raises `CheckpointError`, with the last line the process wrote, if the process fails.
    """
    with TemporaryDirectory() as scratch:
        # save_file refuses tensors that share memory, and encoder and decoder may get the same one.
        save_file({name: value.clone() for name, value in probe.items()}, Path(scratch) / PROBE)
        task = FreshLoad(
            str(checkpoint.directory.resolve()),
            family_of(checkpoint.config).auto_class,
            remote_code,
            torch.get_num_threads(),
            offloading(checkpoint.size_bytes, memory_limit, scratch),
        )
        ended = start(task, Path(scratch))
        if ended.returncode != 0:
            last = (ended.stderr.strip().splitlines() or ["no message"])[-1]
            raise CheckpointError(f"{checkpoint.directory}: does not load in a fresh process: {last}")
        return load_file(Path(scratch) / LOGITS)["logits"]
