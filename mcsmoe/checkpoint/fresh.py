"""A checkpoint loaded in a fresh process, as a user loads it who has its directory but not this package."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mcsmoe import warm
from mcsmoe.checkpoint.reader import Checkpoint
from mcsmoe.checkpoint.streamed import LARGE, MMAP_THRESHOLD, block_names
from mcsmoe.errors import CheckpointError
from mcsmoe.families import family_of, skeleton

PROBE = "probe.safetensors"
LOGITS = "logits.safetensors"
HASHES = "hashes.json"


@dataclass(frozen=True)
class FreshLoad:
    """The task of a fresh process: load `directory` with the transformers class `auto_class`, and compute logits.

    `trust_remote_code` allows it to run the code beside the weights. `places` says where each module's weights are
    while it does not run, "cpu" or "disk"; None keeps all in memory.
    """

    directory: str
    auto_class: str
    trust_remote_code: bool
    threads: int
    places: dict[str, str] | None


SCRIPT = f"""
import json, os, sys
sys.modules["mcsmoe"] = None  # whoever loads the checkpoint does not have this package
# Nor what is on the hub; and no older remote code answers, where modules are cached here. What is imported already has
# read its environment.
os.environ.update(HF_HUB_OFFLINE="1", HF_MODULES_CACHE=os.getcwd())
import huggingface_hub, torch, transformers.dynamic_module_utils, xxhash
huggingface_hub.constants.HF_HUB_OFFLINE = True
transformers.dynamic_module_utils.HF_MODULES_CACHE = os.getcwd()
from safetensors.torch import load_file, save_file
task = json.loads(sys.argv[1])
torch.set_num_threads(task["threads"])
transformers.logging.set_verbosity_error()
offload = {{"device_map": task["places"], "offload_folder": "offload"}} if task["places"] else {{}}
if offload:
    import ctypes
    from accelerate.utils import set_module_tensor_to_device
    from transformers.integrations.accelerate import load_offloaded_parameter
    getattr(ctypes.CDLL(None), "mallopt", lambda *_: None)({MMAP_THRESHOLD}, {LARGE})
model, report = getattr(transformers, task["auto_class"]).from_pretrained(
    task["directory"], trust_remote_code=task["trust_remote_code"], local_files_only=True, output_loading_info=True,
    **offload)
# Tensors that are not the model's were told from those that may be there before.
bad = {{kind: sorted(map(str, keys)) for kind, keys in report.items() if keys and kind != "unexpected_keys"}}
if bad:
    sys.exit(f"loading report: {{bad}}")
hashes = {{}}
for name, value in model.state_dict().items():
    value = load_offloaded_parameter(model, name) if value.is_meta else value
    hashes[name] = xxhash.xxh3_128_hexdigest(value.contiguous().view(-1).view(torch.uint8).numpy())
json.dump(hashes, open("{HASHES}", "w"))
def fill_while_it_runs(path):
    # accelerate fills a module while that runs, but DBRX passes on weights of one that does not.
    block = model.get_submodule(path)
    names = [name for name, value in block.state_dict().items() if value.is_meta]
    for module in block.modules():
        hook = getattr(module, "_hf_hook", None)
        for each in getattr(hook, "hooks", [hook]):
            each and setattr(each, "offload", False)
    def fill(*_):
        for name in names:
            # A copy, because the last bits of products depend on addresses, which in a file are any multiple of 8.
            value = load_offloaded_parameter(model, f"{{path}}.{{name}}").clone()
            set_module_tensor_to_device(block, name, "cpu", value)
    def empty(*_):
        for name in names:
            set_module_tensor_to_device(block, name, "meta")
    block.register_forward_pre_hook(fill)
    block.register_forward_hook(empty)
for path, place in (task["places"] or {{}}).items():
    if place == "disk":
        fill_while_it_runs(path)
with torch.no_grad():
    save_file({{"logits": model.eval()(**load_file("{PROBE}")).logits.contiguous()}}, "{LOGITS}")
"""
"""Script of the fresh process: its argument is a `FreshLoad` as JSON; it reads `PROBE` and writes `HASHES` and
`LOGITS`, all in the working directory."""


def fork(task: FreshLoad, directory: Path) -> tuple[int, str]:
    """Run `SCRIPT` in `directory` in a fork of the warm process; its exit code and what it wrote on stderr."""
    command = ["-c", SCRIPT, json.dumps(asdict(task))]
    warm.start()
    with open(os.devnull, "r+") as nothing, TemporaryFile("w+") as errors:
        code = warm.run(command, directory=directory, files=[nothing.fileno(), nothing.fileno(), errors.fileno()])
        errors.seek(0)
        return interpreter(task, directory) if code is None else (code, errors.read())


def interpreter(task: FreshLoad, directory: Path) -> tuple[int, str]:
    """The same with a new interpreter, which takes seconds to import transformers."""
    command = [sys.executable, "-I", "-c", SCRIPT, json.dumps(asdict(task))]
    ended = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    return ended.returncode, ended.stderr


start: Callable[[FreshLoad, Path], tuple[int, str]] = fork
"""Runs the fresh process; tests replace it."""


class Fresh(NamedTuple):
    """What a fresh process found: logits on the probe, and the content hash of every tensor by its name in memory."""

    logits: Tensor
    hashes: dict[str, str]


def load_fresh(
    checkpoint: Checkpoint, probe: Mapping[str, Tensor], *, remote_code: bool, offloaded: bool = False
) -> Fresh:
    """Load a checkpoint, and run it on the batch `probe`, in a process that has neither this package nor a network.

    `remote_code` allows it to run the code beside the weights. `offloaded`, it keeps blocks on the disk, beside the
    checkpoint, and one of them in memory. Raises `CheckpointError` with the last line the process wrote if it fails.
    """
    directory = checkpoint.directory.resolve()
    with TemporaryDirectory(prefix=f".{directory.name}.", dir=directory.parent) as scratch:
        # save_file refuses tensors that share memory, and encoder and decoder may get the same one.
        save_file({name: value.clone() for name, value in probe.items()}, Path(scratch) / PROBE)
        task = FreshLoad(
            str(directory),
            family_of(checkpoint.config).auto_class,
            remote_code,
            torch.get_num_threads(),
            offloading(checkpoint) if offloaded else None,
        )
        code, errors = start(task, Path(scratch))
        if code != 0:
            last = (errors.strip().splitlines() or ["no message"])[-1]
            raise CheckpointError(f"{checkpoint.directory}: does not load in a fresh process: {last}")
        hashes = json.loads((Path(scratch) / HASHES).read_text())
        return Fresh(load_file(Path(scratch) / LOGITS)["logits"], hashes)


def offloading(checkpoint: Checkpoint) -> dict[str, str]:
    """Where the weights of each module are kept: those of blocks on the "disk", all others in memory ("cpu")."""
    model = skeleton(checkpoint.config)
    blocks = block_names(model, family_of(checkpoint.config).layers(checkpoint.config))
    return dict.fromkeys(blocks, "disk") | dict.fromkeys(_around(model, "", blocks), "cpu")


def _around(module: nn.Module, path: str, blocks: list[str]) -> list[str]:
    """Modules and parameters below `module` that hold no block, and that no other of them holds."""
    found = [f"{path}{name}" for name, _ in module.named_parameters(recurse=False)]
    for name, child in module.named_children():
        inside = f"{path}{name}."
        if any(block.startswith(inside) for block in blocks):
            found += _around(child, inside, blocks)
        elif f"{path}{name}" not in blocks:
            found.append(f"{path}{name}")
    return found
