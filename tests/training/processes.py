"""Two processes that train together, forked from this one, which has imported everything already."""

import os
import socket
import sys
import traceback
from collections.abc import Callable

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState


def in_two_processes(work: Callable[[int], None]) -> None:
    """Call `work(rank)` in two processes that `torch.distributed` connects; both must return."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [_fork(rank, port, work) for rank in range(2)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0, 0]


def _fork(rank: int, port: int, work: Callable[[int], None]) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        for kind in (AcceleratorState, GradientState, PartialState):
            kind._reset_state()
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        work(rank)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
