"""How the C library of this process gets memory from the system."""

from __future__ import annotations

import ctypes

# Numbers of the parameters of mallopt, from glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Makes this process keep the memory that it frees, and use it again, instead of returning it to the system.

    Each batch on a CPU allocates and frees tensors of many megabytes. By default glibc returns the large ones to the
    system and gets others, which the system fills with zeros, page by page. That takes a third of the time of a
    training step of `ssdlite320` (docs/performance.md). Training on a CPU, `ssd detect` and `ssd eval` call this
    function.

    The process then gives no memory back: it stays at its peak. Only Linux with glibc has this setting; elsewhere,
    and if another allocator has replaced glibc's, nothing changes.

    Returns:
        Whether glibc has taken the setting.

    Source: mallopt(3), M_MMAP_MAX and M_TRIM_THRESHOLD.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # TypeError: Windows
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, -1))
