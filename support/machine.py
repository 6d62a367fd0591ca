"""What a training has to do with the machine: signals, memory, the processor, the device, what to compute in. For
common.py, and for readers who ask why bfloat16 is used on one machine and float32 on another."""

import argparse
import contextlib
import ctypes
import functools
import os
import platform
import resource
import signal
import sys
from pathlib import Path

import torch


def interrupt_on_sigterm():
    """Let SIGTERM do what Ctrl-C does: raise KeyboardInterrupt, here with the signal's number."""
    def interrupt(number, frame):
        raise KeyboardInterrupt(number)

    signal.signal(signal.SIGTERM, interrupt)


@contextlib.contextmanager
def interrupts_held():
    """Hold SIGINT and SIGTERM back to the end of the block, for what would swallow them: the import of a compiled
    package turns whatever is raised in it into its own failure, which many who import it in a try overlook."""
    held, numbers = [], (signal.SIGINT, signal.SIGTERM)
    handlers = [signal.signal(number, lambda number, frame: held.append(number)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)
        if held:
            signal.raise_signal(held[0])


def keep_freed_memory():
    """Tell glibc to keep freed memory for the next tensor; by default large blocks go back to the kernel every time."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "gnu_get_libc_version"):
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no large block is mapped on its own
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD, bytes: the heap doesn't shrink


def peak_memory_mb():
    """The most memory that this process has held so far, in units of 10^6 bytes, on the host (not on a GPU)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS, in units of 1024 elsewhere
    return round(peak * (1 if sys.platform == "darwin" else 1024) / 1e6)


def free_memory():
    """Bytes of memory that a new process could have; all that the machine has where Linux doesn't tell."""
    with contextlib.suppress(OSError):
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@functools.cache
def cpu():
    """What Linux says of the first CPU: a dict of strings, empty elsewhere."""
    with contextlib.suppress(OSError):
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
        return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
    return {}


def cpu_model():
    """The processor's name."""
    return cpu().get("model name") or platform.processor()


def cpu_has(instructions):
    """Whether the processor has a set of instructions, by Linux's name for it; False where that can't be told."""
    return instructions in cpu().get("flags", "").split()


def find_device(name):
    """The torch.device of a name, or the "best" there is, as a type for argparse. Raises its ArgumentTypeError."""
    if name == "best":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.zeros(1, device=name).device  # fails where there is none
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0]
        raise argparse.ArgumentTypeError(f"no device {name!r} here: {reason}") from None


def precision(device):
    """What convolutions compute in: "bfloat16" where the hardware has instructions for it, else "float32".

    bfloat16 halves what goes through memory, of which there is more than of arithmetic. Weights stay in float32."""
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device.type == "cpu" and cpu_has("avx512_bf16")
    return "bfloat16" if fast else "float32"


def mixed_precision(device):
    """A context in which convolutions and products compute in that."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision(device) == "bfloat16")


def compute_settings(device):
    """What the last bits of a training depend on, the processor aside: a dict of plain values."""
    return {"device": device.type, "precision": precision(device), "threads": torch.get_num_threads(),
            "torch": str(torch.__version__)}


def in_words():
    """The processor and how it computes, for pages that tell of speed."""
    settings = compute_settings(torch.device("cpu"))
    return "{CPU}, {threads} threads, {precision}, torch {torch}".format(CPU=cpu_model(), **settings)
