"""How many threads compute or carry messages, and what they do while there is nothing to do.

Draft and target share the cores of a small machine and never compute at the same time for one
session. A thread that spins while it waits takes a core from the other worker (two processes with
spinning OpenMP threads on two cores run ten times slower), so idle threads must sleep. OpenMP reads
its variables when it is loaded: they must be set before torch is imported.

gRPC's event engine hands every message from a thread that polls to one that works and from there
to the one Python waits with. Without it the last one polls itself: two threads less to wake on the
way, a third of the time of a small message. gRPC, too, reads its variable when it is loaded.

All threads of a worker share one heap: the C library gives back the free end of the first heap
only; what a burst has left at the end of another stays, some ten MB that come and go by chance.
"""

from __future__ import annotations

import ctypes
import os

_M_ARENA_MAX = -8  # Of malloc.h.
_GRPC = {"GRPC_EXPERIMENTS": "-event_engine_client,-event_engine_listener"}


def thread_environment(num_threads: int) -> dict[str, str]:
    """Returns the variables that a worker's process needs before torch and gRPC are imported.

    Args:
        num_threads: Compute threads; 0 = one per core this process may use.
    """
    count = num_threads or len(os.sched_getaffinity(0))
    return {
        **_GRPC,
        "OMP_NUM_THREADS": str(count),
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "5000",
        "TOKENIZERS_PARALLELISM": "false",
        "MALLOC_ARENA_MAX": "1",
        # What transformers prints while it loads is no line of our log.
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }


def apply_thread_environment(num_threads: int) -> None:
    """Sets what is not set yet in this process; call it before anything imports torch.

    Args:
        num_threads: Compute threads; 0 = OMP_NUM_THREADS if set, else one per core.
    """
    for name, value in thread_environment(num_threads).items():
        if num_threads and name == "OMP_NUM_THREADS":
            os.environ[name] = value
        else:
            os.environ.setdefault(name, value)
    # The C library has read its variable by now.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, int(os.environ["MALLOC_ARENA_MAX"]))


def apply_grpc_environment() -> None:
    """Sets what is not set yet in this process; call it before anything imports gRPC."""
    for name, value in _GRPC.items():
        os.environ.setdefault(name, value)
