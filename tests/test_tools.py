"""Tests of tools/report.py and of the Makefile: the pages, what checks them, and what each target runs."""

import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from PIL import Image

import bn
import common
from studies import study
from studies.run import STUDIES
from support import cifar10, plots, runs
from tests.world import PROJECT, SCRIPTS, change_metrics, make_files, metrics_of, put
from tools import report


def rewrite(path, old, new):
    """Replace a text in a file, which must have it."""
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_the_pages_have_the_numbers_of_the_runs(trained):
    page = (trained.results / "README.md").read_text()
    for variant in SCRIPTS:
        metrics = metrics_of(trained, variant)
        for text in ((trained.folder / "README.md").read_text(), page):
            assert f"| {variant} | 1 | 48,634 | 5 ({metrics['best_epoch']}) |" in text
            assert text.count(f"**{100 * metrics['test_accuracy']:.2f}**") >= 2  # next to others, and in its own row
        counts = plots.confusion_counts(runs.load_tensors(trained.results / variant, "predictions")).fill_diagonal_(0)
        *names, count = re.search(rf"\| {variant.upper()} \| (\w+) → (\w+): (\d+) \|", page).groups()
        assert counts[tuple(map(cifar10.CLASSES.index, names))] == int(count) == counts.max()


def test_seeds_are_pooled_and_shown(copied, capsys):
    for variant in SCRIPTS:
        for name, accuracy in {variant: 1.0, f"{variant}-seed=1": 0.9, f"{variant}-seed=2": 0.8}.items():
            put(copied.results / name, {"metrics.json": (copied.results / variant / "metrics.json").read_bytes()})
            change_metrics(copied.results / name, run=name, test_accuracy=accuracy)
    report.main(["pages"])
    text = (copied.folder / "README.md").read_text()
    assert "| bn | 3 |" in text and text.count("**90.00 ± 10.00**") == 6  # next to others, and in rows of their own
    report.main(["show", "--seed", "1"])
    assert "| ln-seed=1 | 1 |" in capsys.readouterr().out
    rewrite(copied.folder / "README.md", "<!-- end of findings -->", "")
    for args, words in ((["show", "--seed", "3"], "bn-seed=3"), (["pages"], "findings")):
        with pytest.raises(SystemExit, match="1"):
            report.main(args)
        assert words in capsys.readouterr().err
    assert (copied.folder / "README.md").read_text() == text.replace("<!-- end of findings -->", "")


def test_plots_makes_all_figures_and_pages_again_from_the_saved_files_alone(copied):
    shutil.rmtree(copied.data)
    figures = sorted(copied.results.glob("**/*.png"))
    pages = [copied.folder / "README.md", copied.results / "README.md"]
    before = [page.read_bytes() for page in pages]
    for figure in figures:
        figure.unlink()
    rewrite(pages[0], "| bn |", "| BN |")
    report.main(["plots"])
    assert len(figures) == 10 and sorted(copied.results.glob("**/*.png")) == figures
    assert [page.read_bytes() for page in pages] == before


@pytest.mark.parametrize("damage, words", [
    (lambda world: shutil.copy(world.results / "gn" / "model.pt", world.results / "ln"), "its weights"),
    (lambda world: rewrite(world.results / "gn" / "metrics.json", '"translate": 4', '"translate": 3'), "`make gn`"),
    (lambda world: rewrite(world.folder / "README.md", "| bn |", "| BN |"), "`make plots`"),
    (lambda world: put(world.results, {"ablation.md": b"of other recipes"}), "`make ablation`"),
    (lambda world: os.truncate(world.results / "gn" / "model.pt", 100_000), "gn/model.pt"),
    (lambda world: shutil.rmtree(world.results), "`make all`")])
def test_check_names_what_runs_did_not_leave(copied, capsys, damage, words):
    damage(copied)
    with pytest.raises(SystemExit, match="1"):
        report.main(["check"])
    assert words in capsys.readouterr().err


def test_check_passes_and_says_which_runs_have_no_script(copied, capsys):
    report.main(["check"])
    assert capsys.readouterr().out.count("correct answers differ by 0") == 3
    (copied.folder / "gn.py").unlink()
    for command in ("summary", "pages", "check"):
        report.main([command])
    assert "there is no gn.py" in capsys.readouterr().out
    assert "| gn |" not in (copied.folder / "README.md").read_text() and (copied.results / "gn" / "model.pt").exists()


def test_summary_prints_the_layers_the_budget_and_receptive_fields(world, capsys):
    report.main(["summary"])
    text = capsys.readouterr().out
    assert text.count("48,634 parameters, fewer than 50,000") == 3
    for layer, field in {"C1": 3, "C10": 44, "GAP": 72}.items():
        assert len(re.findall(rf"\({layer}\).* {field}x{field} ", text)) == 3
    model, outputs = common.build_model(bn.RECIPE).eval(), []
    model.C10.register_forward_hook(lambda layer, inputs, output: outputs.append(output))
    x = torch.randn(1, 3, 128, 128, requires_grad=True)
    model(x)
    outputs[0][0, :, 16, 16].sum().backward()
    assert (x.grad.abs().sum((0, 1, 3)) > 0).sum() == 44  # rows that C10 depends on, far from the borders


@pytest.mark.slow
def test_the_published_pages_and_figures_are_those_of_the_published_results():
    for path, text in report.pages(runs.published()).items():
        assert path.read_text(encoding="utf-8") == text, path
    assert all(module.plot(study.results_of(module)).axes for module in STUDIES)


# --- Makefile, with a Python that only logs what it is asked to run ---

SEEDS, PAGES = "-m studies.run seeds", ("-m studies.run norms", "-m tools.report pages")
TEST = "-m pytest -q -n 2 --dist worksteal test_common.py tests"


def make(folder, line=""):
    """Call make on a copy of the Makefile in a folder, and return the commands that it ran, and its output."""
    shutil.copy(PROJECT / "Makefile", folder)
    put(folder, {f"{name}.py": b"RECIPE = Recipe()\n" for name in SCRIPTS} | {"helper.py": b"", "log": b""})
    put(folder, {"python": b'#!/bin/sh\n[ "$1" = -c ] || echo "$@" >> log\n'})
    (folder / "python").chmod(0o755)
    command = ["make", "VENV=no", "PYTHON=./python", *line.split()]
    outer = {"MAKEFLAGS", "MAKELEVEL"}  # of `make test`
    env = {name: value for name, value in os.environ.items() if name not in outer}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=True)
    return (folder / "log").read_text().splitlines(), done.stdout.splitlines()


@pytest.mark.parametrize("line, commands", [
    ("bn", ["bn.py"]), ("gn ARGS=--epochs=1", ["gn.py --epochs=1"]), ("all", [f"{SEEDS} --seeds 0 --jobs 1", *PAGES]),
    ("all JOBS=3", [f"{SEEDS} --seeds 0 --jobs 3", *PAGES]),
    ("all ARGS=--epochs=1", [*(f"{name}.py --epochs=1" for name in SCRIPTS), "-m tools.report show --epochs=1"]),
    ("seeds", [SEEDS, *PAGES]), ("seeds JOBS=3", [f"{SEEDS} --jobs 3", *PAGES]),
    ("ablation study-batch-size JOBS=2",
     ["-m studies.run ablation --jobs 2", PAGES[1], "-m studies.run batch_size --jobs 2", PAGES[1]]),
    ("study-groups bench", ["-m studies.run groups", PAGES[1], "-m tools.bench"]),
    ("study-augmentation ARGS=--cutout=4", ["-m studies.augmentation --cutout=4"]),
    ("data summary plots check", [f"-m tools.report {name}" for name in ("data", "summary", "plots", "check")]),
    ("test test-all", ["-m ruff check", f"{TEST} -m not slow", TEST])])
def test_each_target_runs_its_commands(tmp_path, line, commands):
    assert make(tmp_path, line)[0] == commands


def test_make_alone_lists_every_target_and_clean_leaves_data_results_and_checkpoints(tmp_path):
    commands, lines = make(tmp_path)
    targets = [*SCRIPTS, *"help all seeds test test-all data summary plots check bench ablation clean".split()]
    targets += [f"study-{name.replace('_', '-')}" for name in ["augmentation", *map(study.name_of, STUDIES)]]
    assert commands == [] and {line.split()[1] for line in lines} == set(targets)
    kept, removed = ["data", "results/bn", "results/.unfinished"], [".venv", "support/__pycache__"]
    for name in kept + removed:
        put(tmp_path / name, {"file": b""})
    assert make(tmp_path, "clean")[0] == []
    assert all((tmp_path / name).exists() == (name in kept) for name in kept + removed)


# --- Whole commands in a copy of the project ---


def code_of_readme(heading):
    """Return the first block of Python below a line of README.md."""
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    return re.search("```python\n(.*?)```", text[text.index(f"\n{heading}"):], re.DOTALL)[1].encode()


@pytest.fixture
def shell(tmp_path):
    """Return a function that runs shell commands in a copy of the project with synthetic data and short runs."""
    ignored = shutil.ignore_patterns(".*", "data", "results", "tests")
    folder = shutil.copytree(PROJECT, tmp_path / "copy", ignore=ignored)
    for name, digest in make_files().md5.items():
        rewrite(folder / "support" / "cifar10.py", cifar10.MD5[name], digest)
    rewrite(folder / "common.py", "epochs: int = option(20,", "epochs: int = option(2,")
    rewrite(folder / "common.py", "batch_size: int = option(128,", "batch_size: int = option(16,")
    put(folder / "data", make_files().binaries)

    def shell(line, expected=0):
        env = os.environ | {"OMP_NUM_THREADS": "1", "VENV": "no", "PYTHON": sys.executable, "MAKEFLAGS": "-e"}
        done = subprocess.run(line, shell=True, cwd=folder, env=env, capture_output=True, text=True)
        assert done.returncode == expected and "Traceback" not in done.stderr, done.stdout + done.stderr
        return done.stdout + done.stderr

    shell.folder, shell.results, shell.studies = folder, folder / "results", folder / "results" / "studies"
    return shell


@pytest.mark.slow
def test_a_script_of_ones_own_is_a_variant_by_being_there(shell):
    put(shell.folder, {"rms.py": code_of_readme("## Your own normalization"), "my-norm.py": b"RECIPE = 1\n"})
    assert "my-norm.py cannot be a variant" in shell("make summary", 2)
    assert "make rms " in shell("rm my-norm.py && make help && make -j2 rms bn")
    assert "rms.py" not in shell("make all JOBS=2")  # which was trained
    texts = [path.read_text(encoding="utf-8") for path in (shell.folder / "README.md", shell.results / "README.md")]
    assert all("| BN, % | GN, % | LN, % | RMS, % |" in text and "\n| rms | 1 |" in text for text in texts)
    assert "## What a normalization does\n" in texts[1] and '"rms"' in (shell.studies / "norms.json").read_text()
    assert "RMSNorm (norm)" in shell("rm results/*.png && make -j2 summary plots && ls results/norms.png")
    (shell.folder / "rms.py").unlink()
    assert "rms: there is no rms.py" in shell("make -j2 study-augmentation plots && make check")
    assert "RMS" not in (shell.results / "README.md").read_text() and (shell.results / "rms" / "model.pt").exists()
    Image.new("RGB", (100, 60), "blue").save(shell.folder / "picture.png")
    put(shell.folder, {"show.py": code_of_readme("To classify pictures")})
    (answer,) = eval(shell("$PYTHON show.py"))
    assert set(answer) == set(cifar10.CLASSES) and sum(answer.values()) == pytest.approx(1, abs=1e-3)


@pytest.mark.slow
def test_the_runs_of_a_study_can_be_run_by_xargs(shell):
    rewrite(shell.folder / "studies" / "dropout.py", '("bn", "gn", "ln"), (0.0, 0.05, 0.2,', '("bn",), (0.0,')
    rewrite(shell.folder / "studies" / "dropout.py", "--train-images 10000", "--epochs 1")
    rewrite(shell.folder / "studies" / "study.py", "SEEDS = (0, 1, 2)", "SEEDS = (0, 1)")
    shell("$PYTHON -m studies.run dropout --list > list.txt && xargs -P 2 -L 1 env OMP_NUM_THREADS=1 < list.txt")
    assert len(list(shell.studies.glob(".unfinished/dropout/*.json"))) == 4
    assert "makes a significant difference" in shell("$PYTHON -m studies.run dropout")
    assert shell("$PYTHON -m studies.run dropout --list") == ""
    shell("$PYTHON -m studies.run groups --list | true")  # nobody reads it
