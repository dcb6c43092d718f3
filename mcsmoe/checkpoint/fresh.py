"""The logits of a checkpoint in a fresh process: those of whoever gets its directory, and nothing else of ours."""

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
class Task:
    """What a fresh process does: it loads `directory` by `auto_class` of transformers, and computes its logits.

    `trust_remote_code`: may it run the code that lies beside the weights? `offload`: options of `from_pretrained` that
    leave weights on the disk, {} for none.
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
"""Runs in a directory with `PROBE`, with a `Task` in JSON as its argument, and leaves `LOGITS` there."""


def interpreter(task: Task, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run `SCRIPT` in `directory` in an interpreter of its own, which takes seconds to import transformers."""
    command = [sys.executable, "-I", "-c", SCRIPT, json.dumps(asdict(task))]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True)


start: Callable[[Task, Path], subprocess.CompletedProcess[str]] = interpreter
"""How a fresh process is made. A program that verifies many checkpoints may put a faster way here: a fork of a process
that has imported transformers, and never this package."""


def fresh_logits(
    checkpoint: Checkpoint, probe: Mapping[str, Tensor], *, remote_code: bool, memory_limit: int | None = None
) -> Tensor:
    """The logits on the batch `probe` of a process without this package or a network.

    `remote_code` lets it run the code that lies beside the weights. A model that is larger than `memory_limit` bytes
    is read from the disk as it runs. Raises `CheckpointError` with the last line that the process wrote.
    """
    with TemporaryDirectory() as scratch:
        # Copies: a decoder may be given the very tensor that the encoder gets.
        save_file({name: value.clone() for name, value in probe.items()}, Path(scratch) / PROBE)
        task = Task(
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
