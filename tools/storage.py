"""Files that are whole or not there: atomic writes, checkpoints, and folders of results that are renamed into place.

A run is completed in results/.new/<run>, where its checkpoint lies, and which one process holds by a lock. When it is
complete it is signed by SHA256SUMS and renamed to results/<run>; what it replaces is kept, one deep, in
results/.previous/<run>. So a kill at any moment leaves a checkpoint to go on from, or a signed folder to rename.

At the end, what depends on the machine: its memory and its processor.
"""

import contextlib
import ctypes
import fcntl
import functools
import hashlib
import io
import os
import platform
import resource
import shutil
import sys
import time
from pathlib import Path

import torch

CHECKPOINT, SUMS = "checkpoint.pt", "SHA256SUMS"


class RunError(Exception):
    """What went wrong, where, and what to do: a sentence for the person at the keyboard."""


def write_file(path, data):
    """Write beside `path`, then rename: a reader finds the old file or the new one, never half. Raises RunError."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(data)
        os.replace(beside, path)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


@contextlib.contextmanager
def lock(path, what, wait=False):
    """Hold `what` by a lock on the file `path`, until the block or this process ends, in whatever way.

    Waits for another process that holds it, or raises RunError."""
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = f"process {file.read()} is at work on {what}"
            if not wait:
                raise RunError(f"{holder}: wait until it ends, or stop it") from None
            print(f"{holder}: waiting for it", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextlib.contextmanager
def unfinished(final):
    """The folder results/.new/<run> for a run that is to become the folder `final`, held against other processes.

    It is empty but for the checkpoint of an interrupted run, and stays if it has one at the end. Raises RunError."""
    new = final.parent / ".new" / final.name
    with contextlib.ExitStack() as stack:
        try:
            if final.exists() and not final.is_dir():
                raise OSError(f"{final} is not a folder")
            new.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock(new.with_name(f"{new.name}.lock"), f"the run {final.name}"))
            for path in new.iterdir():
                if path.name != CHECKPOINT:
                    path.unlink() if path.is_file() else shutil.rmtree(path)
            write_file(new / "probe", b"is there room, and the permission?")
            (new / "probe").unlink()
        except OSError as error:
            raise RunError(f"cannot write results, so nothing was trained: {error}") from None
        try:
            yield new
        finally:
            if new.exists() and not (new / CHECKPOINT).exists() and not (new / SUMS).exists():
                shutil.rmtree(new, ignore_errors=True)


class Checkpoint:
    """A file from which an interrupted training goes on: a SHA-256 digest, then what torch.save made of the state.

    `training` says what is trained: a checkpoint of another training is of no use. `machine` says on what: on another
    one the training goes on, but not necessarily to the same bits. Both are dicts of plain values."""

    def __init__(self, path, training, machine):
        self.path, self.training, self.machine = path, training, machine

    def save(self, state):
        """Replace the checkpoint. Raises RunError."""
        buffer = io.BytesIO()
        torch.save({"training": self.training, "machine": self.machine, "state": state}, buffer)
        write_file(self.path, hashlib.sha256(buffer.getbuffer()).digest() + buffer.getbuffer())

    def load(self):
        """The saved state, or None if there is none. A file that can't be used is set aside, and the reason printed."""
        if not self.path.exists():
            return None
        try:
            data = self.path.read_bytes()
            if hashlib.sha256(data[32:]).digest() != data[:32]:
                raise ValueError("wrong digest")
            saved = torch.load(io.BytesIO(data[32:]), map_location="cpu", weights_only=True)
            differ, reason = differences(saved["training"], self.training), "is of another training"
        except Exception as error:  # of whatever kind: the file is not whole, or not ours
            differ, reason = str(error).splitlines()[:1], "is damaged"
        if differ:
            aside = self.path.parent.with_suffix(f".aside-{time.time_ns()}")
            os.replace(self.path, aside)
            print(f"the checkpoint {self.path} {reason}: {'; '.join(differ)}. It is set aside as {aside}, and the "
                  "training starts over", flush=True)
            return None
        for difference in differences(saved["machine"], self.machine):
            print(f"the training goes on elsewhere, so the last bits may differ: {difference}", flush=True)
        return saved["state"]


def differences(old, new):
    return [f"{key} was {old.get(key)}, is {new[key]}" for key in new if old.get(key) != new[key]]


def keep(folder, *names):
    """Delete the other files of an unfinished run, but for its checkpoint."""
    for path in folder.iterdir():
        if path.name not in (*names, CHECKPOINT):
            path.unlink()


def sign(folder):
    """Write SHA256SUMS over the other files of a folder, which marks it as complete."""
    files = sorted(path for path in folder.iterdir() if path.name not in (SUMS, CHECKPOINT))
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files]
    write_file(folder / SUMS, "".join(lines).encode())


def verify(folder, pictures=True):
    """Raise RunError unless the files of a run are those that were signed."""
    remedy = f"`make {folder.name.split('-')[0]}` trains a new one; `git checkout {folder}` brings a published one back"
    try:
        sums = dict(reversed(line.split("  ")) for line in (folder / SUMS).read_text().splitlines())
        if "metrics.json" not in sums:
            raise ValueError(f"{SUMS} is incomplete")
        for name in sorted({path.name for path in folder.iterdir()} - {SUMS, CHECKPOINT} | set(sums)):
            if pictures or not name.endswith(".png"):
                if hashlib.sha256((folder / name).read_bytes()).hexdigest() != sums.get(name):
                    raise RunError(f"{folder / name} is not the file that the run wrote: {remedy}")
    except (OSError, ValueError) as error:
        raise RunError(f"{folder} is damaged ({error}): {remedy}") from None


def put_in_place(new):
    """Sign a completed folder of results/.new, and rename it to its place."""
    sign(new)
    (new / CHECKPOINT).unlink(missing_ok=True)
    results = new.parent.parent
    final, previous = results / new.name, results / ".previous" / new.name
    previous.parent.mkdir(exist_ok=True)
    if final.exists():
        shutil.rmtree(previous, ignore_errors=True)
        os.replace(final, previous)
    os.replace(new, final)


def finish_interrupted(results):
    """Put in place what was signed, but kept from its place by a kill; the names of those runs."""
    names = []
    for sums in sorted(results.glob(f".new/*/{SUMS}")):
        new = sums.parent
        with contextlib.suppress(RunError), lock(new.with_name(f"{new.name}.lock"), new.name):
            verify(new)
            put_in_place(new)
            names.append(new.name)
    return names


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


@functools.cache
def cpu():
    """What Linux says of the first CPU; empty elsewhere."""
    with contextlib.suppress(OSError):
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
        return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
    return {}


def cpu_model():
    return cpu().get("model name") or platform.processor()


def cpu_has(instructions):
    return instructions in cpu().get("flags", "").split()
