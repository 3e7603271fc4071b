"""Puts compiled code into memory and calls it: written first, then made executable, never both at once."""

import ctypes
import mmap
import os
from collections.abc import Mapping

from ..errors import MobileNetError


class Code:
    """Is an image of code in memory.

    Attributes:
        address: of each function, by name.
        size: bytes.
    """

    def __init__(self, image: bytes, functions: Mapping[str, int]) -> None:
        """Maps the image.

        Raises:
            MobileNetError: a function is outside the image, or the system lets no new code run.
        """
        wrong = [name for name, offset in functions.items() if not 0 <= offset < len(image)]
        if wrong:
            raise MobileNetError(f"compiled code: function {wrong[0][:60]!r} is outside of its {len(image)} bytes")
        self.size = len(image)
        self._memory = mmap.mmap(-1, len(image), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._memory.write(image)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mprotect(ctypes.c_void_p(start), ctypes.c_size_t(len(image)), mmap.PROT_READ | mmap.PROT_EXEC):
            raise MobileNetError(
                f"compiled code: the system does not let it run: {os.strerror(ctypes.get_errno())}; "
                "MOBILENET_TARGET=numpy runs without"
            )
        self.address = {name: start + offset for name, offset in functions.items()}

    def function(self, name: str) -> "ctypes._CFunctionType":
        """Returns `void name(address, count)`; Python's lock is released while it runs."""
        return ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(self.address[name])
