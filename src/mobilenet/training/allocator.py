"""Keeps freed memory in the process, which makes a training step on the processor 10 to 30% shorter.

By default glibc maps each large tensor anew from the system, which fills it with zeros page by page, and gives it back
when it is freed: in each step for every feature map of the network. V2 0.5 at 32 pixels, batches of 128, one thread:
in float32 of 1.65 s of processor time a step 0.5 s, in bfloat16 of 0.92 s 0.1 s; for 13% more memory at the peak.
"""

import contextlib
import ctypes
from collections.abc import Iterator

_MMAP_MAX, _TRIM_THRESHOLD = -4, -1  # from glibc's malloc.h
_DEFAULTS = {_MMAP_MAX: 65_536, _TRIM_THRESHOLD: 128 << 10}
_KEEPING = {_MMAP_MAX: 0, _TRIM_THRESHOLD: (1 << 31) - 1}


@contextlib.contextmanager
def keeping_memory() -> Iterator[None]:
    """Keeps freed memory for the next allocation while it is entered, then gives it back; needs glibc, else nothing."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        yield
        return
    for name, value in _KEEPING.items():
        libc.mallopt(name, value)
    try:
        yield
    finally:
        for name, value in _DEFAULTS.items():
            libc.mallopt(name, value)
        libc.malloc_trim(0)
