"""Memory on CPUs: blocks that a step frees are kept for the next step."""

import ctypes

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt(3)."""


def keep_memory() -> None:
    """Makes glibc keep freed blocks of up to 1 GiB instead of returning them to the system at once.

    Otherwise every step requests its large tensors from the system again, page by page, which takes about a tenth of
    its time and varies from process to process. Does nothing with another C library.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    for threshold in (2**30, 2**25):  # older versions of glibc accept 32 MiB at most
        if mallopt(MMAP_THRESHOLD, threshold):
            break
    mallopt(TRIM_THRESHOLD, 2**31 - 1)
