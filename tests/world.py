"""A small world for the proofs: synthetic data in every official format, folders of its own, and runs in them.

pytest loads it as a plugin (pyproject.toml), so that its fixtures are there for every test.
"""

import functools
import hashlib
import io
import json
import pickle
import re
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import bn
import common
import gn
import ln
from support import cifar10, runs, scripts, storage
from tools import report

SCRIPTS = {"bn": bn.RECIPE, "gn": gn.RECIPE, "ln": ln.RECIPE}


# --- The data ---


PER_BATCH = 60  # images in each of the six files: 300 to train and validate, 60 to test
BATCHES = list(cifar10.PICKLE_DIGESTS)


def make_images():
    """Images that a network can learn: each class has a pattern of its own, under noise."""
    draw = torch.Generator().manual_seed(1)
    patterns = F.interpolate(torch.rand(10, 3, 4, 4, generator=draw), 32)
    targets = torch.stack([torch.randperm(PER_BATCH, generator=draw) % 10 for _ in BATCHES])
    images = patterns[targets] * 160 + torch.rand(6, PER_BATCH, 3, 32, 32, generator=draw) * 95
    return images.to(torch.uint8), targets


@functools.cache
def make_files():
    """The synthetic data in every official format."""
    images, targets = make_images()
    planes = images.flatten(2)  # (6, N, 3072)
    files = SimpleNamespace(images=images, targets=targets)
    files.cache = {f"{name}.bin": torch.cat([targets[i, :, None].to(torch.uint8), planes[i]], 1).numpy().tobytes()
                   for i, name in enumerate(BATCHES)}
    files.pickles = {name: pickle.dumps({b"data": planes[i].numpy(), b"labels": targets[i].tolist()}, 2)
                     for i, name in enumerate(BATCHES)}
    files.sheets = {"train_lables.json": json.dumps(targets[:5].flatten().tolist()).encode(),
                    "test_lables.json": json.dumps(targets[5].tolist()).encode()}
    for i, name in enumerate(BATCHES):
        png = io.BytesIO()
        Image.fromarray(images[i].flatten(2).permute(0, 2, 1).contiguous().numpy()).save(png, "PNG")  # (N, 1024, 3)
        files.sheets[f"{name}.png"] = png.getvalue()
    files.archive, files.package = tar("cifar-10-batches-py", files.pickles), tar("package", files.sheets)
    files.digests = {name: md5(data) for name, data in files.cache.items()}
    files.pickle_digests = {name: md5(data) for name, data in files.pickles.items()}
    return files


def md5(data):
    return hashlib.md5(data).hexdigest()


def tar(folder, files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def put(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


def truncate(data):
    return data[: len(data) * 2 // 3]


def flip_bit(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1:]


# --- Folders ---


def make_world(folder, patch):
    """The project's folders below `folder`, with the digests and the split of the synthetic data."""
    world = SimpleNamespace(**vars(make_files()), folder=folder, data=folder / "data", results=folder / "results")
    patch.setattr(common, "DATA", world.data)
    patch.setattr(common, "RESULTS", world.results)
    patch.setattr(cifar10, "DIGESTS", world.digests)
    patch.setattr(common, "VAL_PER_CLASS", 3)
    patch.setattr(cifar10, "PICKLE_DIGESTS", world.pickle_digests)
    patch.setattr(cifar10, "STALL", 2)
    patch.setattr(scripts, "found", lambda folder: list(SCRIPTS))  # whatever else a student has put there
    patch.setattr(report, "README", folder / "README.md")
    if not report.README.exists():
        blocks = "".join(f"<!-- {name}: x -->\n<!-- end of {name} -->\n" for name in ("results", "findings"))
        report.README.write_text(f"before\n{blocks}after\n")
    return world


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Synthetic data in the cache, and empty results."""
    world = make_world(tmp_path, monkeypatch)
    put(world.data, world.cache)
    return world


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """No data yet, no npm, and a mirror that refuses the connection."""
    world = make_world(tmp_path, monkeypatch)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("CIFAR10_URL", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    return world


# --- What has run there ---


def patch_recipes(patch):
    """A recipe for 270 images: more steps, less haste."""
    for script in (bn, gn, ln):
        slower = replace(script.RECIPE, batch_size=16, max_lr=0.05, aux_lr=0.1, epochs=5)
        patch.setattr(script, "RECIPE", slower)


def run(script, *flags):
    """Run a script's main on the CPU; its exit status."""
    try:
        common.main(script, ["--device", "cpu", *flags])
    except SystemExit as stop:
        return stop.code
    return 0


@pytest.fixture(scope="session")
def trained_folder(tmp_path_factory):
    """A folder in which the three scripts have run as they stand, and the comparison is written."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        world = make_world(folder, patch)
        put(world.data, world.cache)
        patch_recipes(patch)
        for script in (bn, gn, ln):
            common.main(script.RECIPE, ["--device", "cpu"])
        report.write_pages()
    return folder


@pytest.fixture
def trained(trained_folder, monkeypatch):
    patch_recipes(monkeypatch)
    return make_world(trained_folder, monkeypatch)


@pytest.fixture
def copied(trained, tmp_path, monkeypatch):
    """A copy of the trained world that a test may damage."""
    shutil.copytree(trained.folder, tmp_path / "copy")
    return make_world(tmp_path / "copy", monkeypatch)


def change_metrics(folder, **values):
    metrics = json.loads((folder / "metrics.json").read_text()) | values
    (folder / "metrics.json").write_text(json.dumps(metrics))
    storage.sign(folder)


def metrics_of(world, name):
    return json.loads((world.results / name / "metrics.json").read_text())


def what_is_left(world, name):
    """The weights, and the numbers but for durations."""
    metrics, history = runs.read(world.results / name)
    numbers = [{key: value for key, value in row.items() if not re.match("seconds|peak_memory", key)}
               for row in [metrics, *history]]
    weights = torch.load(world.results / name / "model.pt", weights_only=True)
    return numbers, {key: value.tolist() for key, value in weights.items()}


# --- Other processes, and interruptions ---


def child(world, code, **options):
    """Start a Python process in which common has the folders and digests of a world."""
    setup = ("import pathlib, common, bn; from support import cifar10, runs; "
             f"common.DATA = pathlib.Path({str(world.data)!r}); common.RESULTS = pathlib.Path({str(world.results)!r}); "
             f"cifar10.DIGESTS = {world.digests!r}; "
             f"common.VAL_PER_CLASS = 3; cifar10.PICKLE_DIGESTS = {world.pickle_digests!r}\n")
    return subprocess.Popen([sys.executable, "-c", setup + code], cwd=common.ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def interrupt_after(epochs, monkeypatch):
    train_epoch, done = common.train_epoch, []

    def interrupted(*args):
        if len(done) == epochs:
            raise KeyboardInterrupt
        done.append(True)
        return train_epoch(*args)

    monkeypatch.setattr(common, "train_epoch", interrupted)
