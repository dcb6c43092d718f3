"""The same training on one process and on two, which start as forks of a server that has imported everything."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate  # noqa: F401 - imported once, by the server
import torch

import mcsmoe.training.distillation  # noqa: F401


def on_two(work: Callable[[], Any], directory: Path) -> list[Any]:
    """Run `work`, a function of a module, in two processes joined by gloo; what each returned, by rank."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    files = [directory / f"{rank}.pt" for rank in range(2)]
    processes = [context.Process(target=_one, args=(work, rank, port, file)) for rank, file in enumerate(files)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        process.kill()
    assert [process.exitcode for process in processes] == [0, 0]
    return [torch.load(file) for file in files]


def _one(work: Callable[[], Any], rank: int, port: int, file: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    torch.save(work(), file)
    torch.distributed.destroy_process_group()
