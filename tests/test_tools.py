"""Proofs of tools/ and of the Makefile: pages, check, benchmark, what is trained when."""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch import nn

import bn
import common
import gn
import ln
from studies import findings
from support import cifar10, machine, scripts, storage
from tests.world import SCRIPTS, change_metrics, flip_bit, make_files, metrics_of, put, run, truncate
from tools import attempts, bench, report

needs_make = pytest.mark.skipif(not shutil.which("make"), reason="no make")


# --- Pages ---


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
        report.main(["pages"])
        text = (copied.folder / "README.md").read_text()
        assert "| bn | 2 |" in text and text.count("**95.00 ± 7.07**") == 2


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


# --- Check ---


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


# --- Smaller commands ---


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
    for name in "normalize", "Concatenate":  # which an implementation may replace
        monkeypatch.setattr(common, name, getattr(common, name))
    monkeypatch.setattr(machine, "precision", lambda device: "float32")
    for name, value in {"STEPS": 2, "WARMUP": 1, "EVALUATED": 30, "MATRIX": 64, "COPIED": 10**6}.items():
        monkeypatch.setattr(bench, name, value)
    monkeypatch.setattr(bn, "RECIPE", replace(bn.RECIPE, batch_size=10))
    world.results.mkdir()
    concatenate, usual = common.Concatenate, bench.Usual(0)
    assert common.Concatenate is bench.UsualConcatenate
    common.Concatenate = concatenate
    ours, without = bench.Ours("bn"), bench.Ours("bn", "channels_last")
    assert common.Concatenate is bench.UsualConcatenate
    assert all(implementation.train() > 0 for implementation in (usual, ours, without))
    assert next(without.model.parameters()).is_contiguous()
    ours.model.load_state_dict(usual.model.state_dict())
    assert usual.accuracy()[0] == pytest.approx(common.evaluate(ours.model, *ours.val_set)[1])
    picture, target = usual.val_loader.dataset[7]
    assert target == ours.val_set[1][7]
    torch.testing.assert_close(picture, common.normalize(ours.val_set[0][7:8])[0])
    assert set(ours.parts()) == {"augmentation", "forward", "backward", "optimizer"}
    assert ours.bytes_a_second() > 1e8 and min(ours.multiply_adds_a_second().values()) > 1e6
    assert ours.checkpoint() > 0 and not list(world.results.glob(".bench*"))


def test_the_floor_counts_every_convolution_three_times_but_the_images_gradient():
    widths, sides = [3, *bn.RECIPE.widths, 10], [32, 32, 32, 16, 16, 16, 16, 8, 8, 8, 1]
    areas = [9 if name.startswith("C") else 1 for name in common.LAYERS if name[0] in "Cc"]
    macs = [a * b * area * side**2 for a, b, area, side in zip(widths, widths[1:], areas, sides, strict=False)]
    assert bench.convolution_multiply_adds(bn.RECIPE) == pytest.approx(3 * sum(macs) - macs[0], abs=30)  # c11's bias


def test_what_a_step_moves_at_least_is_each_layers_output_and_its_gradient_there_and_back(monkeypatch):
    sides = [32, 32, 32, 16, 16, 16, 16, 16, 8, 8, 8, 8, 1, 1]
    widths = [16, 16, 16, 16, 16, 32, 32, 32, 32, 32, 32, 32, 32, 10]
    for precision, size in (("float32", 4), ("bfloat16", 2)):
        monkeypatch.setattr(machine, "precision", lambda device, precision=precision: precision)
        moved = [4 * size * width * side**2 for width, side in zip(widths, sides, strict=True)]
        assert bench.activation_bytes(bn.RECIPE) == sum(moved)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(8), nn.GroupNorm(4, 8), nn.GroupNorm(1, 8)])
def test_the_norms_that_were_tried_compute_what_pytorchs_do(norm):
    torch.manual_seed(0)
    x, gradient = (torch.randn(4, 8, 6, 6).contiguous(memory_format=torch.channels_last) for _ in range(2))
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    results = []
    for layer in norm, attempts.Normalized(norm):
        norm.zero_grad()
        inputs = x.clone().requires_grad_()
        outputs = layer(inputs)
        outputs.backward(gradient)
        results.append((outputs, inputs.grad, norm.weight.grad.clone(), norm.bias.grad.clone()))
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("attempt", [attempts.add_in_place, attempts.maxima_in_evaluation, attempts.own_norms])
def test_an_attempt_changes_the_speed_alone(attempt):
    torch.manual_seed(0)
    plain, images = common.build_model(bn.RECIPE), torch.randn(4, 3, 32, 32)
    changed = copy.deepcopy(plain)
    attempt(changed)
    for model in (plain, changed):
        model.train()
    torch.testing.assert_close(changed(images), plain(images), atol=1e-3, rtol=1e-3)
    if attempt is not attempts.own_norms:  # which keep no statistics for evaluation
        torch.testing.assert_close(changed.eval()(images), plain.eval()(images))


def test_the_page_of_the_benchmark_has_the_ratios_of_its_numbers():
    seconds = {name: {"train": [1e-3] * 3, "evaluate": [4e-4] * 3} for name in bench.IMPLEMENTATIONS}
    seconds["bn"] = {"train": [4e-4, 5e-4, 1e-3], "evaluate": [1e-4] * 3}
    rates = [{"bfloat16": rate, "float32": 7e10} for rate in (1e11, 2e11, 3e11)]
    details = {"multiply_adds_a_second": rates, "bytes_a_second": [5e10] * 3, "convolutions": [0.032],
               "checkpoint": [0.1], "checkpoint_unflushed": [0.04], "start_up": [5.0],
               "parts": [{"augmentation": 0.001, "forward": 0.02, "backward": 0.0395, "optimizer": 0.0005}]}
    speed = {"seconds": seconds, "details": details, "batch_size": 128, "train_images": 45_000,
             "multiply_adds": 25_000_000, "bytes": 500_000, "epochs": 20, "jobs": 2, "threads": 3,
             "side_by_side": {"train": [8e-4] * 3, "evaluate": [2e-4] * 3}, "machine": "an abacus"}
    page = bench.page({"speed": speed})
    assert "trains 2.00x and evaluates 4.00x" in page
    assert "| bn without channels_last | 2.00x as long | 4.00x as long |" in page
    assert "| forward | 20.0 | 32.8% |" in page and "but forward and backward take 2.5% of a step" in page
    assert "sees 32.0 ms of a step in convolutions, 50%" in page
    assert ("takes 23.1 s: 351 steps 22.5 s, evaluation of 5,000 validation images 0.50 s, the checkpoint 0.100 s, of "
            "which 0.060 s to flush") in page
    assert "| bn with additions in place | 2.00x as long | 4.00x as long |" in page
    assert "| 1 at a time, 3 threads each | 7.8 | 7.7 |" in page
    assert "| 2 at a time, 1 thread each | 9.7 | 12.3 |" in page
    assert "| arithmetic in bfloat16 | 400 GFLOP/s | 5.62 | 4.1x as long |" in page
    assert "| arithmetic in float32 | 140 GFLOP/s | 16.05 | 1.4x as long |" in page
    assert "| memory | 50 GB/s | 0.45 | 51.3x as long |" in page
    assert "arithmetic in bfloat16 binds here, and an epoch takes 4.1x as long as it must" in page
    page = bench.page({"speed": speed | {"bytes": 10_000_000}})
    assert "memory binds here, and an epoch takes 2.6x as long as it must" in page
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


# --- A fourth variant, in a checkout of its own ---


def code_of_readme(heading):
    """The first block of Python under a heading of README.md."""
    text = (common.ROOT / "README.md").read_text(encoding="utf-8")
    return re.search("```python\n(.*?)```", text[text.index(heading):], re.DOTALL)[1]


@pytest.fixture(scope="session")
def own_checkout(tmp_path_factory):
    """A copy of the project with synthetic data and short trainings, in which the README's script has been added."""
    folder, files = tmp_path_factory.mktemp("own") / "checkout", make_files()
    shutil.copytree(common.ROOT, folder, ignore=shutil.ignore_patterns(".*", "data", "results", "__pycache__"))
    for name, old, new in (("common.py", "VAL_PER_CLASS = 500", "VAL_PER_CLASS = 3"),
                           ("common.py", "epochs: int = setting(20,", "epochs: int = setting(2,"),
                           ("common.py", "batch_size: int = setting(128,", "batch_size: int = setting(16,"),
                           *(("support/cifar10.py", cifar10.DIGESTS[name], digest)
                             for name, digest in files.digests.items())):
        text = (folder / name).read_text(encoding="utf-8")
        assert text.count(old) == 1
        (folder / name).write_text(text.replace(old, new), encoding="utf-8")
    for path in folder.glob("*.py"):  # scripts that a student has put there
        if path.stem in scripts.found(common.ROOT) and path.stem not in SCRIPTS:
            path.unlink()
    put(folder / "data", files.cache)
    (folder / "rms.py").write_text(code_of_readme("## Your own normalization"), encoding="utf-8")
    return folder


def make_in(folder, *args):
    """Run make with this Python, but for the check of its packages, which takes as long as a short training."""
    python = folder / "python"
    python.write_text(f'#!/bin/sh\n[ "$1" = -c ] || exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    command = ["make", *args, "VENV=no", f"PYTHON={python}"]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # for each of the two jobs of -j2
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=one_thread)
    return done.returncode, done.stdout + done.stderr


@needs_make
def test_the_script_of_the_readme_is_a_variant_by_being_there_and_none_without_it(own_checkout):
    folder, results = own_checkout, own_checkout / "results"
    assert "make rms " in make_in(folder, "help")[1]
    status, text = make_in(folder, "-j2", "rms", "bn")
    assert status == 0 and (results / "rms" / "curves.png").exists(), text
    status, text = make_in(folder, "-j2", "all")
    assert status == 0 and "rms.py" not in text, text
    readme, page = ((path / "README.md").read_text(encoding="utf-8") for path in (folder, results))
    for text in (readme, page):
        assert "| BN, % | GN, % | LN, % | RMS, % |" in text and "\n| rms | 1 |" in text
    assert "## rms\n" in page and page.count("\n| rms |") == 3  # the table of runs, of norms and of confusions
    for name in ("comparison", "confusions", "norms"):
        assert (results / f"{name}.png").stat().st_size > 10_000
    assert set(json.loads((results / "studies" / "norms.json").read_text())) == {"bn", "gn", "ln", "rms"}
    before = {path: path.read_bytes() for path in results.glob("**/*") if path.is_file()}
    status, text = make_in(folder, "-j2", "summary", "plots")
    assert status == 0 and "rms.py\n" in text and "RMSNorm (norm)" in text
    assert all(path.read_bytes() == data for path, data in before.items() if path != results / "README.md")
    assert (results / "augmentation.png").exists() and "(augmentation.png)" in (results / "README.md").read_text()
    status, text = make_in(folder, "check")
    assert status == 0 and "rms: files as signed; test accuracy" in text and "0 images differ" in text
    (folder / "rms.py").unlink()
    for target in ("plots", "check"):
        status, text = make_in(folder, target)
        assert status == 0 and "rms: there is no rms.py, so it is left out of the pages" in text, text
    assert (results / "rms" / "model.pt").exists()
    assert "RMS" not in (folder / "README.md").read_text(encoding="utf-8").partition("<!-- end of results -->")[0]
    assert make_in(folder, "rms")[0] == 2 and "make rms" not in make_in(folder, "help")[1]


TINY = """\"\"\"Is it fast?\"\"\"
from studies import study
FLAGS = "--epochs 1 --no-test --dropout-after 'c3 C10'"
TRAININGS = {("bn", 1, seed): ("bn", f"{FLAGS} --seed {seed}") for seed in range(4)}
STUDY = study.Study("tiny", __doc__, "", lambda found: f"{len(found['bn', 1])} trainings", None,
                    lambda found: study.pictures.empty(2, 2), trainings=TRAININGS)
if __name__ == "__main__":
    study.main(STUDY)
"""


@needs_make
@pytest.mark.skipif(shutil.which("xargs") is None, reason="xargs is missing")
def test_four_at_a_time_through_xargs_lose_nothing_and_the_study_finds_them(own_checkout, tmp_path):
    folder = tmp_path / "checkout"
    shutil.copytree(own_checkout, folder, ignore=shutil.ignore_patterns("results"))
    (folder / "studies" / "tiny.py").write_text(TINY)

    def command(line):
        done = subprocess.run(line, shell=True, cwd=folder, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    tiny = f"{sys.executable} -m studies.tiny"
    status, text = command(f"{tiny} --list > list.txt && xargs -P4 -L1 env OMP_NUM_THREADS=1 < list.txt")
    assert status == 0, text
    studies = folder / "results" / "studies"
    assert len(list(studies.glob(".running/tiny/*/metrics.json"))) == 4
    assert command(f"{tiny} --list") == (0, "")
    assert command(tiny) == (0, "4 trainings\n") and (folder / "results" / "tiny.png").exists()
    lines = [json.loads(line) for line in (studies / "tiny.jsonl").read_text().splitlines()]
    assert sorted(line["seed"] for line in lines) == [0, 1, 2, 3]
    assert {line["recipe"]["dropout_after"] for line in lines} == {"c3 C10"}


def test_augmentation_is_drawn_by_any_flags(trained, capsys):
    report.main(["augmentation", "--crop", "8", "--cutout", "0"])
    path = trained.results / "augmentation-crop=8-cutout=0.png"
    assert path.stat().st_size > 10_000 and str(path) in capsys.readouterr().out
    path.unlink()


@needs_make
def test_the_readmes_lines_classify_a_picture(own_checkout):
    if not (own_checkout / "results" / "bn").exists():
        assert make_in(own_checkout, "bn")[0] == 0
    Image.new("RGB", (100, 60), "blue").save(own_checkout / "picture.png")
    code = code_of_readme("To classify pictures")
    assert len(code.splitlines()) == 3
    done = subprocess.run([sys.executable, "-c", code], cwd=own_checkout, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (answer,) = eval(done.stdout)
    assert set(answer) == set(common.CLASSES) and sum(answer.values()) == pytest.approx(1, abs=1e-3)


@needs_make
def test_a_script_that_cannot_be_a_variant_is_named(own_checkout):
    (own_checkout / "my-norm.py").write_text(code_of_readme("## Your own normalization"))
    status, text = make_in(own_checkout, "my-norm")
    assert status == 2 and "my-norm.py can't be a variant" in text and "Traceback" not in text
    status, text = make_in(own_checkout, "summary")
    assert status == 2 and "my-norm.py can't be a variant" in text and "Traceback" not in text
    (own_checkout / "my-norm.py").unlink()


# --- Makefile, with a Python that only notes what it is asked to run ---


PAGES = ["-m studies.norms", "-m tools.report pages"]


@pytest.fixture
def checkout(tmp_path):
    shutil.copy(common.ROOT / "Makefile", tmp_path)
    for name in SCRIPTS:
        (tmp_path / f"{name}.py").write_text("RECIPE = Recipe()\n")
    (tmp_path / "requirements.txt").write_text("")
    log, python = tmp_path / "log", tmp_path / "python"
    python.write_text(f"""#!/bin/sh
[ "$1" = -c ] && exit 0
echo "$@" >> {log}
test ! -e "{tmp_path}/fail-$2"
""")
    python.chmod(0o755)

    def make(*args):
        log.write_text("")
        command = ["make", *args, "VENV=no", f"PYTHON={python}"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        return done.returncode, log.read_text().splitlines(), done.stdout
    return tmp_path, make


@needs_make
def test_make_trains_a_variant_with_its_flags(checkout):
    _, make = checkout
    assert make("bn")[1] == ["bn.py"]
    assert make("gn", "ARGS=--epochs 1")[1] == ["gn.py --epochs 1"]
    flags = "--epochs 1"
    assert make("all", f"ARGS={flags}")[1] == [*(f"{v}.py {flags}" for v in SCRIPTS), f"-m tools.report show {flags}"]


@needs_make
def test_make_trains_one_at_a_time_for_all_and_many_for_seeds(checkout):
    folder, make = checkout
    assert make("all")[1] == ["-m studies.seeds --seeds 0 --jobs 1", *PAGES]
    assert make("all", "JOBS=3")[1] == ["-m studies.seeds --seeds 0 --jobs 3", *PAGES]
    assert make("seeds")[1] == ["-m studies.seeds", *PAGES]
    assert make("seeds", "JOBS=3")[1] == ["-m studies.seeds --jobs 3", *PAGES]
    (folder / "fail-studies.seeds").write_text("")
    assert make("seeds")[:2] == (2, ["-m studies.seeds"])


@needs_make
def test_make_alone_lists_every_target(checkout):
    _, make = checkout
    status, ran, out = make()
    assert status == 0 and ran == []
    studies = [f"study-{study.name}" for study in findings.STUDIES]
    commands = "bn gn ln all seeds test data summary plots augmentation check bench ablation torture clean".split()
    for target in commands + studies:
        assert sum(line.startswith(f"make {target} ") for line in out.splitlines()) == 1, target


@needs_make
def test_make_runs_a_study_and_then_writes_the_pages(checkout):
    _, make = checkout
    for study in findings.STUDIES:
        assert make(f"study-{study.name}")[1] == [f"-m studies.{study.name}", PAGES[1]]
    assert make("study-dropout", "JOBS=2")[1] == ["-m studies.dropout --jobs 2", PAGES[1]]
    assert make("ablation")[1] == ["-m studies.ablation", PAGES[1]]
    assert make("ablation", "JOBS=2")[1] == ["-m studies.ablation --jobs 2", PAGES[1]]
    assert make("test")[1] == ["-m ruff check", "-m pytest -q -n 2 --dist worksteal test_common.py tests"]
