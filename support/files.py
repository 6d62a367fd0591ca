"""Files that are complete or absent: the project's folders, atomic writes, locks, run folders and checkpoints.

A run is assembled in results/.unfinished/<run>/ and then renamed to results/<run>. Its checkpoint lies next to that
folder and is deleted after the renaming. So a kill at any moment leaves a checkpoint to resume from, or a complete run.
"""

import contextlib
import fcntl
import hashlib
import io
import os
import shutil
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
DATA, RESULTS = ROOT / "data", ROOT / "results"


class RunError(Exception):
    """An error that a person can act on; its text says what went wrong, where, and what to do."""

    status = 1  # exit status of a command that ends with it


def write_file(path, data):
    """Replace `path` atomically by the bytes `data`: write a temporary file, fsync, rename. Raises RunError."""
    temporary = path.with_name(f".{path.name}.new")  # after a kill, the next write replaces it
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        flush(temporary)
        os.replace(temporary, path)
        flush(path.parent)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def flush(path):
    """Wait until a file, or the names in a folder, are on the disk; ignore folders that cannot be flushed."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext():
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def lock(path, activity, wait=False):
    """Hold a lock on a file. If another process holds it, wait, or raise RunError("<activity> by process 12")."""
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            message = f"{activity} by process {file.read()}"
            if not wait:
                raise RunError(f"{message}: wait until it ends, or stop it") from None
            print(f"{message}: waiting for it", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


# --- Runs ---


@contextlib.contextmanager
def run_folder(final):
    """Hold the run `final` against other processes, and yield an empty folder to assemble it in.

    The folder is removed at the end unless it was published. Raises RunError if results cannot be written.
    """
    staging = final.parent / ".unfinished" / final.name
    with contextlib.ExitStack() as stack:
        try:
            if final.is_file():
                raise OSError(f"{final} is not a folder")
            staging.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock(staging.with_name(f"{final.name}.lock"), f"{final.name} is already being trained"))
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir()
        except OSError as error:
            raise RunError(f"cannot write results, so nothing was trained: {error}") from None
        stack.callback(shutil.rmtree, staging, ignore_errors=True)
        yield staging


def publish(staging, final):
    """Rename a complete folder to its place; return the folder of the run that it replaced, or None."""
    previous = final.parent / ".previous" / final.name
    replaced = previous if final.exists() else None
    if replaced:
        previous.parent.mkdir(exist_ok=True)
        shutil.rmtree(previous, ignore_errors=True)
        os.replace(final, previous)
    os.replace(staging, final)
    flush(final.parent)
    return replaced


class Checkpoint:
    """A file from which an interrupted run resumes: a SHA-256 digest, then the bytes of torch.save.

    A checkpoint whose IDENTITY differs from the run's metrics is set aside. In another ENVIRONMENT the run resumes, but
    not necessarily to the same bits.
    """

    IDENTITY = ("recipe", "code", "seed", "train_images")
    ENVIRONMENT = ("device", "processor", "threads", "precision", "torch")

    def __init__(self, path, metrics):
        self.path = path
        self.identity, self.environment = ({key: metrics[key] for key in keys}
                                           for keys in (self.IDENTITY, self.ENVIRONMENT))

    def save(self, state):
        """Replace the file. Raises RunError."""
        buffer = io.BytesIO()
        torch.save({"identity": self.identity, "environment": self.environment, "state": state}, buffer)
        write_file(self.path, hashlib.sha256(buffer.getbuffer()).digest() + buffer.getbuffer())

    def load(self):
        """Return the saved state, or None if there is none. A file that cannot be used is set aside with a message."""
        if not self.path.exists():
            return None
        try:
            data = self.path.read_bytes()
            if hashlib.sha256(data[32:]).digest() != data[:32]:  # torch.load misses most flipped bits
                raise ValueError("wrong digest")
            saved = torch.load(io.BytesIO(data[32:]), map_location="cpu", weights_only=True)
            reasons, verdict = differences(saved["identity"], self.identity), "belongs to another run"
        except Exception as error:  # any kind: the file may be anything
            reasons, verdict = f"{type(error).__name__}: {error}".splitlines()[:1], "is damaged"
        if reasons:
            aside = self.path.with_suffix(f".aside-{time.time_ns()}")
            os.replace(self.path, aside)
            print(f"the checkpoint {self.path} {verdict} ({'; '.join(reasons)}): it is now {aside}, and training "
                  "starts from the beginning", flush=True)
            return None
        for difference in differences(saved["environment"], self.environment):
            print(f"resuming in another environment, results may not be bit-identical: {difference}", flush=True)
        return saved["state"]


def differences(old, new):
    """Return a text for each key whose value differs between two dicts of plain values."""
    return ["the code changed" if key == "code" else f"{key} was {old.get(key)}, is {new[key]}"
            for key in new if old.get(key) != new[key]]
