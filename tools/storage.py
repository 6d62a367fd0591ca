"""Files that are whole or not there: atomic writes, and folders of results that are signed and renamed into place.

A run is completed in results/.new/<run>, signed by SHA256SUMS, and renamed to results/<run>. What it replaces is kept,
one deep, in results/.previous/<run>.
"""

import contextlib
import hashlib
import os
import shutil


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


def begin(final):
    """An empty folder in which to complete the run of folder `final`, whose files stay. Raises RunError."""
    new = final.parent / ".new" / final.name
    try:
        finish_interrupted(final.parent)
        if final.exists() and not final.is_dir():
            raise OSError(f"{final} is not a folder")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        write_file(new / "probe", b"is there room, and the permission?")
        (new / "probe").unlink()
    except (OSError, RunError) as error:
        raise RunError(f"cannot write results, so nothing was trained: {error}") from None
    return new


def discard(new):
    """Remove a folder that `begin` made, unless its run is complete."""
    if not (new / "SHA256SUMS").exists():
        shutil.rmtree(new, ignore_errors=True)


def sign(folder):
    """Write SHA256SUMS over the other files of a folder, which marks it as complete."""
    files = sorted(path for path in folder.iterdir() if path.name != "SHA256SUMS")
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files]
    write_file(folder / "SHA256SUMS", "".join(lines).encode())


def verify(folder, pictures=True):
    """Raise RunError unless the files of a run are those that were signed."""
    remedy = f"`make {folder.name.split('-')[0]}` trains a new one; `git checkout {folder}` brings a published one back"
    try:
        sums = dict(reversed(line.split("  ")) for line in (folder / "SHA256SUMS").read_text().splitlines())
        if "metrics.json" not in sums:
            raise ValueError("SHA256SUMS is incomplete")
        for name in sorted({path.name for path in folder.iterdir()} - {"SHA256SUMS"} | set(sums)):
            if pictures or not name.endswith(".png"):
                if hashlib.sha256((folder / name).read_bytes()).hexdigest() != sums.get(name):
                    raise RunError(f"{folder / name} is not the file that the run wrote: {remedy}")
    except (OSError, ValueError) as error:
        raise RunError(f"{folder} is damaged ({error}): {remedy}") from None


def put_in_place(new):
    """Sign a folder that `begin` made, and rename it to its place."""
    sign(new)
    results = new.parent.parent
    final, previous = results / new.name, results / ".previous" / new.name
    previous.parent.mkdir(exist_ok=True)
    if final.exists():
        shutil.rmtree(previous, ignore_errors=True)
        os.replace(final, previous)
    os.replace(new, final)


def finish_interrupted(results):
    """Put in place what was signed, but kept from its place by a kill between two renames."""
    for sums in results.glob(".new/*/SHA256SUMS"):
        with contextlib.suppress(RunError):
            verify(sums.parent)
            put_in_place(sums.parent)
