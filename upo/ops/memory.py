"""Memory on CPUs: what a step frees is kept for the next one."""

import ctypes

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt(3)."""


def keep_memory() -> None:
    """Tells glibc to keep freed blocks of up to 1 GiB instead of giving them back to the system at once.

    Otherwise each step gets its large tensors from the system anew, page by page: a tenth of its time, and more or less
    by chance from process to process. Does nothing where the C library is another one.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    for threshold in (2**30, 2**25):  # older versions know no more than 32 MiB
        if mallopt(MMAP_THRESHOLD, threshold):
            break
    mallopt(TRIM_THRESHOLD, 2**31 - 1)
