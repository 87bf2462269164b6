"""Keeps freed memory in the process, where a step will want it again.

glibc maps every large tensor anew and gives it back when it is freed, so that
each op's result is paid for page by page: on a virtual machine that is most of
the time of a memory-bound op (adding two tensors of 64 MB took 97 ms so, and
18 ms in memory used before), and varies with what the host does. A training
step asks for the same sizes again and again, which an accelerator's caching
allocator makes use of as well.
"""

from __future__ import annotations

import ctypes
import functools

# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_NEVER = 2**31 - 1


@functools.cache
def keep_freed_memory() -> bool:
    """Have malloc keep what is freed; False where this C library has no such setting."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _NEVER))
