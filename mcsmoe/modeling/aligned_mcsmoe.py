"""Weights at addresses that do not depend on where a file has them.

This file travels beside the weights as remote code: it imports torch only.
"""

from torch import nn


def align_weights(model: nn.Module) -> None:
    """Move weights in main memory to addresses that torch's allocator would give them.

    Weights mapped from a file lie at any multiple of 8 bytes, and the last bits of MKL's products depend on
    it: a reloaded model would differ from the one that was saved.
    """
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.device.type == "cpu" and tensor.data_ptr() % 64:
            tensor.data = tensor.data.clone()
