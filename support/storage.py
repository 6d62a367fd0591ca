"""Files that are whole or not there: atomic writes, checkpoints, and folders of results that are renamed into place.

A run is completed in results/.new/<run>, where its checkpoint lies, and which one process holds by a lock. When it is
complete it is signed by SHA256SUMS and renamed to results/<run>; what it replaces is kept, one deep, in
results/.previous/<run>. So a kill at any moment leaves a checkpoint to go on from, or a signed folder to rename.

For whoever must not lose a training.
"""

import contextlib
import fcntl
import hashlib
import io
import os
import shutil
import sys
import time

import torch

CHECKPOINT, SUMS = "checkpoint.pt", "SHA256SUMS"
STAMPS = ".trained"  # the folder that tells by which code the runs beside it were trained


class RunError(Exception):
    """What went wrong, where, and what to do: a sentence for the person at the keyboard."""


def write_file(path, data):
    """Write beside `path`, then rename: a reader finds the old file or the new one, never half, and so does who starts
    the machine again after a power cut: the data is on the disk before the rename, and the rename when this returns.
    Raises RunError."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(data)
        flush(beside)
        os.replace(beside, path)
        flush(path.parent)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def flush(path):
    """Wait until a file, or the names in a folder, are on the disk itself, as far as the system can tell.

    A folder that can't be flushed, on some network disks, is left to the system."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if hasattr(fcntl, "F_FULLFSYNC"):
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)  # macOS's fsync stops at the disk's own cache
        else:
            os.fsync(descriptor)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        os.close(descriptor)


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
            print(f"{holder}: waiting for it", file=sys.stderr)
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
            changes, reason = differences(saved["training"], self.training), "is of another training"
        except Exception as error:  # of whatever kind: the file is not whole, or not ours
            changes, reason = str(error).splitlines()[:1], "is damaged"
        if changes:
            aside = self.path.parent.with_suffix(f".aside-{time.time_ns()}")
            os.replace(self.path, aside)
            print(f"the checkpoint {self.path} {reason}: {'; '.join(changes)}. It is set aside as {aside}, and the "
                  "training starts over", flush=True)
            return None
        for difference in differences(saved["machine"], self.machine):
            print(f"the training goes on elsewhere, so the last bits may differ: {difference}", flush=True)
        return saved["state"]


def differences(old, new):
    return [f"{key} was {old.get(key)}, is {new[key]}" for key in new if old.get(key) != new[key]]


def digest(data):
    """The SHA-256 of bytes, in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def read_sums(folder):
    """What SHA256SUMS says: file name -> digest. Raises OSError or ValueError if it can't be read."""
    return dict(line.split("  ")[::-1] for line in (folder / SUMS).read_text().splitlines())


def write_sums(folder, sums):
    write_file(folder / SUMS, "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)).encode())


def sign(folder):
    """Write SHA256SUMS over the other files of a folder, which marks it as complete."""
    paths = [path for path in folder.iterdir() if path.name not in (SUMS, CHECKPOINT)]
    write_sums(folder, {path.name: digest(path.read_bytes()) for path in paths})


def verify(folder, pictures=True):
    """Raise RunError unless the files of a run are those that were signed."""
    remedy = f"`make {folder.name.split('-')[0]}` trains a new one; `git checkout {folder}` brings a published one back"
    try:
        sums = read_sums(folder)
        if "metrics.json" not in sums:
            raise ValueError(f"{SUMS} is incomplete")
        for name in sorted({path.name for path in folder.iterdir()} - {SUMS, CHECKPOINT} | set(sums)):
            wanted = pictures or not name.endswith(".png")
            if wanted and digest((folder / name).read_bytes()) != sums.get(name):
                raise RunError(f"{folder / name} is not the file that the run wrote: {remedy}")
    except (OSError, ValueError) as error:
        raise RunError(f"{folder} is damaged ({error}): {remedy}") from None


def read_signed(path):
    """The bytes of a file of a signed folder, b"" if it neither exists nor is signed. Raises RunError if damaged."""
    try:
        sums = read_sums(path.parent) if (path.parent / SUMS).exists() else {}
        if path.name not in sums and not path.exists():
            return b""
        data = path.read_bytes()
        if digest(data) != sums.get(path.name):
            raise ValueError("wrong digest")
    except (OSError, ValueError) as error:
        raise RunError(f"{path} is damaged ({error}): `git checkout {path.parent}` brings what is published back; "
                       f"or delete the file and its line in {SUMS}, and `make study-{path.stem}`") from None
    return data


def signed_files(folder):
    """The names of a signed folder's files. Raises RunError if one is damaged, missing or not signed."""
    if not (folder / SUMS).exists():
        return []
    here = {path.name for path in folder.iterdir() if not path.name.startswith(".")} - {SUMS}
    names = sorted(here | set(read_sums(folder)))
    for name in names:
        read_signed(folder / name)
    return names


def write_signed(path, data):
    """Replace one file of a signed folder: first its digest, then the file.

    A kill in between leaves a digest that only `data` fits, so that whoever still has it can go on."""
    sums = read_sums(path.parent) if (path.parent / SUMS).exists() else {}
    write_sums(path.parent, sums | {path.name: digest(data)})
    write_file(path, data)


def put_in_place(new):
    """Sign a completed folder of results/.new, and rename it to its place. Returns where the folder is now that it
    replaced, or None."""
    sign(new)
    (new / CHECKPOINT).unlink(missing_ok=True)
    results = new.parent.parent
    final, previous = results / new.name, results / ".previous" / new.name
    previous.parent.mkdir(exist_ok=True)
    replaced = previous if final.exists() else None
    if replaced:
        shutil.rmtree(previous, ignore_errors=True)
        os.replace(final, previous)
        flush(previous.parent)
    os.replace(new, final)
    flush(results)
    return replaced


def stamp(final, code):
    """Note by which code a run was trained that is in its place now. Raises RunError."""
    (final.parent / STAMPS).mkdir(exist_ok=True)
    write_file(final.parent / STAMPS / final.name, code.encode())


def stamped(final, code):
    """Whether a complete run was trained on this machine, by this code."""
    path = final.parent / STAMPS / final.name
    return path.exists() and path.read_text() == code and (final / SUMS).exists()


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
