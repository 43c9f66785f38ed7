"""How much memory this machine has."""

from contextlib import suppress
from pathlib import Path

import psutil

_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def machine_memory_bytes() -> int:
    """Return the memory of this machine, or of this container if it has less."""
    sizes = [int(psutil.virtual_memory().total)]
    for path in _LIMITS:
        with suppress(OSError, ValueError):  # "max" means no limit
            sizes.append(int(Path(path).read_text()))
    return min(sizes)
