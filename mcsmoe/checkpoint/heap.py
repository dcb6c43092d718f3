"""Memory that goes back to the system when it is freed."""

import ctypes

LARGE = 2**20
"""Bytes from which a block of memory is the system's own."""
MMAP_THRESHOLD = -3
"""M_MMAP_THRESHOLD in malloc.h."""


def return_freed_memory() -> None:
    """Have this process give each block of `LARGE` bytes or more back to the system as soon as it is freed.

    glibc, which alone has this setting, otherwise moves the limit up to the largest block that was freed, at most
    32 MB: weights below that come to lie among what lives longer, and the heap grows with every layer.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, LARGE)
