"""What a run needs to know of the machine: signals, processor, device and environment."""

import argparse
import contextlib
import functools
import platform
import signal
from pathlib import Path

import torch


def interrupt_on_sigterm():
    """Make SIGTERM raise KeyboardInterrupt, as Ctrl-C does."""
    def interrupt(number, frame):
        raise KeyboardInterrupt(number)

    signal.signal(signal.SIGTERM, interrupt)


@functools.cache
def cpu_info():
    """Return what Linux reports about the first CPU, a dict of strings; empty elsewhere."""
    with contextlib.suppress(OSError):
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
        return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
    return {}


def find_device(name):
    """Return the torch.device of a name, or the fastest for "auto". Raises argparse.ArgumentTypeError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        if torch.device(name).type not in ("cpu", "cuda", "mps"):
            raise RuntimeError("use cpu, cuda, mps or auto")
        return torch.zeros(1, device=name).device  # fails where there is none
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0]
        raise argparse.ArgumentTypeError(f"no device {name!r} here: {reason}") from None


def environment(device, precision):
    """Return what the last bits of a run depend on, as a dict of plain values."""
    name = (torch.cuda.get_device_name(device) if device.type == "cuda" else
            cpu_info().get("model name") or platform.processor())
    return {"device": device.type, "processor": name, "threads": torch.get_num_threads(), "precision": precision,
            "torch": str(torch.__version__)}
