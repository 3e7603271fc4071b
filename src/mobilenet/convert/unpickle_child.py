"""Turns a .pth file into a safetensors file: run as a process of its own by `unpickle`, which gives it two open files.

The file to read is standard input, the file to write standard output. Nothing else can be had: before the pickle is
looked at the process gives up making processes, sockets and files (seccomp on Linux), and limits its memory, time and
output. torch's own unpickler with `weights_only` makes nothing but tensors and plain containers. This module imports
nothing of the package, so that it starts quickly and what it may do is seen here.
"""

import contextlib
import ctypes
import json
import os
import platform
import resource
import struct
import sys
from collections.abc import Mapping
from typing import Any

SECONDS = 60  # of processor time
MEMORY = 1 << 30  # bytes besides the file's, three times
EXIT_REFUSED = 3

_CONTAINERS = ("state_dict", "model", "model_state_dict", "state_dict_ema", "ema")
_DTYPES = {"torch.float32": "F32", "torch.float16": "F16", "torch.bfloat16": "BF16", "torch.float64": "F64"}

# The system calls that are left, with their numbers on each machine (None: it has none): memory, reading, time.
# Not among them: any that makes a process or thread, a connection, a file or a name, or changes another process.
_CALLS = (
    ("read", 0, 63), ("write", 1, 64), ("close", 3, 57), ("fstat", 5, 80), ("newfstatat", 262, 79),
    ("stat", 4, None), ("lstat", 6, None), ("statx", 332, 291), ("lseek", 8, 62), ("pread64", 17, 67),
    ("readv", 19, 65), ("mmap", 9, 222), ("munmap", 11, 215), ("mremap", 25, 216), ("mprotect", 10, 226),
    ("madvise", 28, 233), ("brk", 12, 214), ("futex", 202, 98), ("getdents64", 217, 61), ("readlink", 89, None),
    ("readlinkat", 267, 78), ("access", 21, None), ("faccessat", 269, 48), ("faccessat2", 439, 439),
    ("getcwd", 79, 17), ("fcntl", 72, 25), ("ioctl", 16, 29), ("rt_sigaction", 13, 134), ("rt_sigprocmask", 14, 135),
    ("rt_sigreturn", 15, 139), ("sigaltstack", 131, 132), ("getrandom", 318, 278), ("clock_gettime", 228, 113),
    ("clock_nanosleep", 230, 115), ("gettimeofday", 96, 169), ("sched_yield", 24, 124),
    ("sched_getaffinity", 204, 123), ("getpid", 39, 172), ("gettid", 186, 178), ("getuid", 102, 174),
    ("geteuid", 107, 175), ("getgid", 104, 176), ("getegid", 108, 177), ("uname", 63, 160), ("sysinfo", 99, 179),
    ("getrusage", 98, 165), ("exit", 60, 93), ("exit_group", 231, 94), ("restart_syscall", 219, 128),
    ("rseq", 334, 293), ("set_robust_list", 273, 99), ("dup", 32, 23), ("membarrier", 324, 283),
    ("getcpu", 309, 168),
)  # fmt: skip
_MACHINES = ("x86_64", "aarch64")
_ALLOWED = {
    machine: [number for _, *numbers in _CALLS if (number := numbers[column]) is not None]
    for column, machine in enumerate(_MACHINES)
}
_AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# open and openat, with the place of their flags: allowed to read only.
_OPEN = {"x86_64": {2: 1, 257: 2}, "aarch64": {56: 2}}
_ADVICE = ("Weights only load failed", "Check the documentation", "Please file an issue")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def main() -> int:
    """Reads standard input and writes standard output; returns 3, with the reason on stderr, if it refuses."""
    import torch

    torch.set_num_threads(1)
    size = os.fstat(0).st_size
    limit(size)
    forbid()
    try:
        data = encode(torch, tensors_of(torch, sys.stdin.buffer))
    except MemoryError:
        return _refuse("needs more memory than a file of its size should")
    except Exception as error:
        # Between the lines of torch's text stands advice to read the file without weights_only.
        said = [line.strip() for line in str(error).splitlines() if not line.startswith(_ADVICE)]
        return _refuse(f"{type(error).__name__}: {next(filter(None, said), 'it holds no tensors')}"[:300])
    sys.stdout.buffer.write(data)
    return 0


def _refuse(reason: str) -> int:
    print(reason, file=sys.stderr)
    return EXIT_REFUSED


def tensors_of(torch: Any, file: Any) -> dict[str, Any]:
    """Returns the state dict in a .pth file: name -> tensor; raises whatever torch raises on anything else."""
    found = torch.load(file, map_location="cpu", weights_only=True)
    if isinstance(found, Mapping):
        found = next((found[key] for key in _CONTAINERS if isinstance(found.get(key), Mapping)), found)
    if not isinstance(found, Mapping) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise ValueError("holds no state dict: needed is a mapping of names to tensors")
    return {str(name): tensor.detach() for name, tensor in found.items()}


def encode(torch: Any, tensors: Mapping[str, Any]) -> bytes:
    """Returns the safetensors file of the tensors of floats; counters are left out."""
    header: dict[str, Any] = {}
    parts: list[bytes] = []
    offset = 0
    for name, tensor in tensors.items():
        dtype = _DTYPES.get(str(tensor.dtype))
        if dtype is None:
            continue
        parts.append(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        end = offset + len(parts[-1])
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    return b"".join([struct.pack("<Q", len(text)), text, *parts])


def limit(size: int) -> None:
    """Limits memory, processor time, the size of what is written, and leaves no core file.

    Args:
        size: of the file to read, in bytes.
    """
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    for what, most in (
        (resource.RLIMIT_AS, now + 3 * size + MEMORY),
        (resource.RLIMIT_CPU, SECONDS),
        (resource.RLIMIT_FSIZE, 2 * size + (1 << 20)),
        (resource.RLIMIT_CORE, 0),
    ):
        with contextlib.suppress(ValueError):  # the limit there is, is lower
            resource.setrlimit(what, (most, most))


def forbid() -> None:
    """Gives up system calls that make processes, connections or files, for good; see `man 2 seccomp`.

    Raises:
        OSError: this system has no seccomp.
    """
    machine = platform.machine()
    if sys.platform != "linux" or machine not in _MACHINES:
        raise OSError(f"pickles are read on Linux (x86-64 or AArch64) only, this is {sys.platform} {machine}")
    program = filter_program(machine)
    libc = ctypes.CDLL(None, use_errno=True)
    code = ctypes.create_string_buffer(program, len(program))
    head = struct.pack("HL", len(program) // 8, ctypes.addressof(code))
    no_new_privileges, set_seccomp, mode_filter = 38, 22, 2
    if libc.prctl(no_new_privileges, 1, 0, 0, 0) or libc.prctl(set_seccomp, mode_filter, head, 0, 0):
        raise OSError(ctypes.get_errno(), "this system can't forbid system calls (seccomp)")


def filter_program(machine: str) -> bytes:
    """Returns the BPF program: the architecture is checked, then the call, for open its flags; refused is EPERM."""
    load, equal, has, give = 0x20, 0x15, 0x45, 0x06  # BPF: load a word; if equal; if any bit is set; return
    allow, refuse, kill = 0x7FFF0000, 0x00050001, 0x80000000
    steps = [(load, 0, 0, 4), (equal, 1, 0, _AUDIT[machine]), (give, 0, 0, kill), (load, 0, 0, 0)]
    for call in _ALLOWED[machine]:
        steps += [(equal, 0, 1, call), (give, 0, 0, allow)]
    for call, place in _OPEN[machine].items():
        steps += [(equal, 0, 4, call), (load, 0, 0, 16 + 8 * place), (has, 1, 0, _WRITING), (give, 0, 0, allow)]
        steps += [(give, 0, 0, refuse)]
    return b"".join(struct.pack("HBBI", *step) for step in [*steps, (give, 0, 0, refuse)])


if __name__ == "__main__":
    sys.exit(main())
