"""What this machine has: memory and disk that are free, and memory that this process holds."""

import shutil
from pathlib import Path

SHARE = 0.8
"""Share of the free memory that is used when nobody sets a limit."""
PROCESS = 700_000_000
"""Bytes that the process takes besides the work: torch, transformers and what they import later. Not measured anew in
each run, because the batch size depends on it, and on that the last bits of statistics."""
MEMORY = Path("/proc/meminfo")


def available_memory(device: str) -> int:
    """Bytes that may be used when nobody sets a limit: a share of what is free, in memory and on the GPU."""
    free = _field(MEMORY, "MemAvailable") or 2**63
    if device != "cpu":
        import torch

        free = min(free, torch.cuda.mem_get_info()[0])
    return int(SHARE * free) + PROCESS


def working_memory_limit(limit: int | None, device: str) -> int:
    """Bytes for the work itself under a `limit` for the whole process (None: what is free)."""
    return (limit or available_memory(device)) - PROCESS


def free_disk(path: Path) -> int:
    """Bytes that are free on the disk of `path`, which need not exist yet."""
    directory = next(parent for parent in path.absolute().parents if parent.is_dir())
    return shutil.disk_usage(directory).free


def _field(path: Path, name: str) -> int | None:
    """A field of a file of the system, in bytes; None where there is no such file."""
    try:
        line = next(line for line in path.read_text().splitlines() if line.startswith(f"{name}:"))
    except (OSError, StopIteration):
        return None
    return int(line.split()[1]) * 1024
