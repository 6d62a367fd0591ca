"""Tests of tools/report.py and of the Makefile: the pages, what checks them, and what each target runs."""

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from PIL import Image

import common
from studies import connections, study
from studies.run import STUDIES
from support import cifar10, plots, runs
from tests.world import FROZEN, PROJECT, SCRIPTS, change_metrics, make_files, metrics_of, put, rewrite
from tools import report


def test_the_pages_have_the_numbers_of_the_runs_and_the_report_the_assignments_form(trained):
    page = (trained.results / "README.md").read_text()
    for variant, title in report.NAMES.items():
        metrics, section = metrics_of(trained, variant), page.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
        for text in ((trained.folder / "README.md").read_text(), page):
            assert f"| {variant} | 1 | {metrics['best_epoch']} |" in text and "48,634 parameters, 5 epochs" in text
            assert text.count(f"**{100 * metrics['test_accuracy']:.2f}**") >= 1 + (text is page)  # next to others, too
        assert re.findall("^### (.*)", section, re.MULTILINE) == ["Target", "Results", "Misclassified images"]
        assert f"`{' '.join(common.LAYERS)}`" in section and ("dropout: 0.05 after C10" in section) == (variant == "gn")
        for part, name in {"train": "Training", "val": "Validation", "test": "Test"}.items():
            numbers = f"{100 * metrics[f'{part}_accuracy']:.2f} %, loss {metrics[f'{part}_loss']:.3f}\n"
            assert f"- {name} accuracy {numbers}" in section
        counts = plots.confusion_counts(runs.load_tensors(trained.results / variant, "predictions"))
        share = counts.diag() / counts.sum(1)
        best, worst = (cifar10.CLASSES[index] for index in (share.argmax(), share.argmin()))
        assert f"test accuracy: {best} {share.max():.1%}; worst class: {worst} {share.min():.1%}\n" in section
        *names, count = re.search(r"test images \(true → predicted\): (\w+) → (\w+): (\d+)", section).groups()
        assert counts[tuple(map(cifar10.CLASSES.index, names))] == int(count) == counts.fill_diagonal_(0).max()
        assert "Early stopping did not occur" in section and all(
            f"({variant}/{figure}.png)" in section for figure in ("curves", "confusion", "misclassified"))
        assert "Early stopping: after epoch 5" in report.section([metrics | {"stopped_early": True}])
        assert all(f"`make study-{name}`" in section for name in ("dropout", "connections"))
    assert "\n## Findings\n" in page and all(number in page for number in ("1502.03167", "1607.08022", "`make study-g"))


def test_seeds_are_pooled_and_shown_with_their_number_and_epochs_by_variant(copied, capsys, monkeypatch):
    for variant in ("gn", "ln"):
        for name, accuracy in {variant: 1.0, f"{variant}-seed=1": 0.9, f"{variant}-seed=2": 0.8}.items():
            if name != variant:
                shutil.copytree(copied.results / variant, copied.results / name)
            change_metrics(copied.results / name, run=name, test_accuracy=accuracy)
    change_metrics(copied.results / "gn-seed=2", code="x")
    change_metrics(copied.results / "bn", epochs=1, best_epoch=1)
    shutil.copytree(copied.results / "bn", copied.results / "bn-seed=1")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out := io.BytesIO(), "ascii", write_through=True))
    report.main(["reports"])
    assert b"left out: gn-seed=2, not tested or of other recipe, code," in out.getvalue()  # and no terminal needs UTF-8
    text, page = (folder.joinpath("README.md").read_text() for folder in (copied.folder, copied.results))
    assert "| bn | 2 | 1 |" in text and "| gn | 2 | 5 |" in text and "| ln | 3 |" in text
    assert "**95.00 ± 7.07** | **90.00 ± 10.00** | validation set |" in page and "**90.00 ± 10.00**" in text
    assert "- Test accuracy 100.00 % (90.00 ± 10.00, n = 3), loss " in page
    report.main(["show", "--seed", "1"])
    page = (copied.results / "README-seed=1.md").read_text()
    assert b"| ln-seed=1 | 1 |" in out.getvalue() and "### Misclassified images\n\n![Mistakes of ln-seed=1]" in page
    assert "(README-seed=1.png)" in page and (copied.results / "README-seed=1.png").exists()
    rewrite(copied.folder / "README.md", "<!-- end of findings -->", "")
    for args, words in ((["show", "--seed", "3"], "bn-seed=3"), (["reports"], "two markers")):
        with pytest.raises(SystemExit, match="1"):
            report.main(args)
        assert words in capsys.readouterr().err
    assert (copied.folder / "README.md").read_text() == text.replace("<!-- end of findings -->", "")


@pytest.mark.parametrize("old, new, words", [
    ("dropout=0.05", "dropout=0", "`make gn`"), ("def ", "def (", "gn.py cannot be loaded: SyntaxError"),
    ("dropout=0.05", "dropout='no'", "gn.py cannot be loaded: RecipeError: dropout must be of type float, got 'no'"),
    ("(channels, groups)", "(channels)", "network of gn.py cannot be used: TypeError"), ("", "", "no gn.py")])
def test_reports_survive_any_edit_and_name_what_no_longer_fits(copied, capsys, monkeypatch, old, new, words):
    monkeypatch.setattr(plots, "save_figure", lambda *args: None)
    lines = [json.dumps(metrics_of(copied, variant) | {"flags": flags, "recipe": study.planned_run(variant, flags)[1]})
             for variant, flags in connections.plan().values()]
    put(copied.results / "studies", {"runs.jsonl": "\n".join(lines).encode()})
    assert study.origin(connections) == ""
    tiny = 'dropout_after="C10", hidden_lr=0.05, other_lr=0.1, batch_size=16, epochs=5'
    rewrite(copied.folder / "gn.py", 'dropout_after="C10"', tiny)
    rewrite(copied.folder / "gn.py", old, new) if old else (copied.folder / "gn.py").unlink()
    monkeypatch.delitem(sys.modules, "gn")
    monkeypatch.syspath_prepend(copied.folder)
    for command in ("data", "summary", "plots", "check"):
        with contextlib.suppress(SystemExit):
            report.main([command])
    printed, pages = "\n".join(capsys.readouterr()), [path.read_text() for path in copied.results.glob("*.md")]
    assert words in printed and study.UNSUPPORTED in "".join(pages)
    earlier = "dropout was 0.05, is 0.0]" if new == "dropout=0" else ""
    assert all((f" [made with an earlier gn.py: {earlier}" in page) == (new != "(channels)") for page in pages)


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
    for command in ("summary", "reports", "check"):
        report.main([command])
    assert "there is no gn.py" in capsys.readouterr().out
    assert "| gn |" not in (copied.folder / "README.md").read_text() and (copied.results / "gn" / "model.pt").exists()


def test_summary_prints_the_layers_and_the_budget(world, capsys):
    report.main(["summary"])
    text = capsys.readouterr().out
    assert text.count("48,634 parameters, fewer") == text.count("(C10)") == text.count("(millions): 9.23") == 3


# --- Makefile, with a Python that only logs what it is asked to run ---

SEEDS, PAGES = "-m studies.run seeds", ("-m studies.run quick", "-m tools.report reports")
TEST = "-m pytest -q -n 2 --dist worksteal test_common.py tests"


def make(folder, line=""):
    """Call make on a copy of the Makefile in a folder, and return the commands that it ran, and its output."""
    shutil.copy(PROJECT / "Makefile", folder)
    put(folder, {"bn.py": b"RECIPE = 1\n", "gn.py": b"RECIPE=1\n", "ln.py": b"if 1:\n  RECIPE: int = 1\n", "log": b"",
                 "helper.py": b"# RECIPE = 1\n", "my python": b'#!/bin/sh\n[ "$1" = -c ] || echo "$@" >> log\n'})
    (folder / "my python").chmod(0o755)
    command = ["make", "VENV=0", "PYTHON=./my python", *line.split()]
    outer = {"MAKEFLAGS", "MAKELEVEL"}  # of `make test`
    env = {name: value for name, value in os.environ.items() if name not in outer}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=True)
    return (folder / "log").read_text().splitlines(), done.stdout.splitlines()


@pytest.mark.parametrize("line, commands", [
    ("bn", ["bn.py"]), ("gn ARGS=--epochs=1", ["gn.py --epochs=1"]), ("all", [f"{SEEDS} --seeds 0 --jobs 1", *PAGES]),
    ("all JOBS=3", [f"{SEEDS} --seeds 0 --jobs 3", *PAGES]),
    ("all ARGS=--epochs=1", [*(f"{name}.py --epochs=1" for name in SCRIPTS), "-m tools.report show --epochs=1"]),
    ("seeds", [SEEDS, *PAGES]), ("seeds JOBS=3", [f"{SEEDS} --jobs 3", *PAGES]),
    ("study-ablation study-batch-size JOBS=2",
     ["-m studies.run ablation --jobs 2", PAGES[1], "-m studies.run batch-size --jobs 2", PAGES[1]]),
    ("study-groups bench", ["-m studies.run groups", PAGES[1], "-m tools.bench"]),
    ("data summary plots check", [f"-m tools.report {name}" for name in ("data", "summary", "plots", "check")]),
    ("test test-all", ["-m ruff check", f"{TEST} -m not slow", TEST])])
def test_each_target_runs_its_commands(tmp_path, line, commands):
    assert make(tmp_path, line)[0] == commands


def test_make_alone_lists_every_target_and_clean_leaves_data_results_and_checkpoints(tmp_path):
    commands, lines = make(tmp_path)
    targets = [*SCRIPTS, *"help all seeds test test-all data summary plots check bench clean".split()]
    targets += [f"study-{name.replace('_', '-')}" for name in map(study.name_of, STUDIES)]
    assert commands == [] and {line.split()[1] for line in lines} == set(targets)
    kept = ["data", "results/bn", "results/.unfinished", "results/studies/.unfinished"]
    removed = [".venv", "support/__pycache__"]
    for name in kept + removed:
        put(tmp_path / name, {"file": b""})
    assert make(tmp_path, "clean")[0] == []
    assert all((tmp_path / name).exists() == (name in kept) for name in kept + removed)


# --- Whole commands in a copy of the project ---


def code_of(page, heading):
    """Return the first block of Python below a heading of a page."""
    text = (PROJECT / page).read_text(encoding="utf-8")
    return re.search("```python\n(.*?)```", text[text.index(f"\n{heading}"):], re.DOTALL)[1].encode()


@pytest.fixture
def shell(tmp_path):
    """Return a function that runs shell commands in a copy of the project with synthetic data and short runs."""
    ignored = shutil.ignore_patterns(".*", "data", "results", "tests")
    folder = shutil.copytree(PROJECT, tmp_path / "copy", ignore=ignored)
    for path in folder.glob("*.py"):
        path.unlink() if path.name != "common.py" else None
    shutil.copytree(FROZEN, folder, ignore=ignored, dirs_exist_ok=True)
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
    put(shell.folder, {"rms.py": code_of("README.md", "### Your own normalization"), "my-norm.py": b"RECIPE = 1\n"})
    assert "my-norm.py cannot be a variant" in shell("make summary", 2)
    assert "make rms " in shell("rm my-norm.py && make help && make -j2 rms bn")
    assert "rms.py" not in shell("make all JOBS=2")  # which was trained
    texts = [path.read_text(encoding="utf-8") for path in (shell.folder / "README.md", shell.results / "README.md")]
    assert "| BN | GN | LN | RMS |" in texts[1] and all("\n| rms | 1 |" in text for text in texts)
    assert "\n## RMS\n" in texts[1] and '"rms"' in (shell.studies / "norms.json").read_text()
    assert "(norms.png)" in (shell.results / "studies.md").read_text(encoding="utf-8")
    assert "RMSNorm (norm)" in shell("rm results/*.png && make -j2 summary plots && ls results/norms.png")
    (shell.folder / "rms.py").unlink()
    assert "rms: there is no rms.py" in shell("make -j2 plots && make check")
    assert "## RMS" not in (shell.results / "README.md").read_text(encoding="utf-8") and (
        shell.results / "rms" / "model.pt").exists()
    Image.new("RGB", (100, 60), "blue").save(shell.folder / "picture.png")
    put(shell.folder, {"show.py": code_of("docs/commands.md", "## Saved networks")})
    assert shell("$PYTHON show.py").strip() in cifar10.CLASSES


@pytest.mark.slow
def test_a_copy_of_the_project_survives_edits_of_everything(shell):
    def reports(*words):
        text = shell("make -k summary plots check; cat results/README.md")
        assert all(word in text for word in words), text

    assert "agree with the saved results" in shell("make all check JOBS=2")
    bn, gn, ln = (shell.folder / f"{name}.py" for name in SCRIPTS)
    for script in (bn, gn, ln):
        rewrite(script, "widths=WIDTHS, ", "")
    rewrite(bn, "norm=batch_norm", "norm=batch_norm, hidden_lr=1, weight_decay=0")
    rewrite(gn, "(channels, groups):", "(channels):")
    rewrite(ln, "GroupNorm(1, channels)", "GroupNorm(1, channels, affine=False)")
    reports("another recipe than bn.py", "network of gn.py cannot be used", "of another network than")
    rewrite(shell.folder / "common.py", '"C10": 32,', '"C10": 32, "c10b": 32,')
    reports("other recipe fields or layers")
    shell("PYTHONIOENCODING=ascii make bn")
    reports("C8 C9 C10 c10b GAP c11` with fewer than 50,000 parameters (it has 49,722)", "49,722 parameters, fewer")
    gn.write_text("RECIPE = (")
    ln.unlink()
    put(shell.folder, {"rms.py": code_of("README.md", "### Your own normalization")})
    reports("gn.py cannot be loaded: SyntaxError", "No tested run: `make rms` trains it")
    text = shell("make all", 2)
    assert all(words in text for words in ("SyntaxError", "\n| bn | 1 |", "49,722 parameters", "\n| rms | 1 |"))


@pytest.mark.slow
def test_the_runs_of_a_study_can_be_run_by_xargs(shell):
    rewrite(shell.folder / "studies" / "dropout.py", "RATES = (0.0, 0.2,", "RATES = (0.0,")
    rewrite(shell.folder / "studies" / "dropout.py", "--train-images 10000", "--epochs 1")
    seeds = '("bn", "gn", "ln"), (0, 1, 2, 3, 4)'
    rewrite(shell.folder / "studies" / "study.py", f"SEEDS = {seeds}", 'SEEDS = ("bn",), (0, 1)')
    shell("$PYTHON -m studies.run dropout --list > list.txt && xargs -P 2 -L 1 env OMP_NUM_THREADS=1 < list.txt")
    assert len(list(shell.studies.glob(".unfinished/*.json"))) == 4
    assert study.UNSUPPORTED in shell("$PYTHON -m studies.run dropout")
    assert shell("$PYTHON -m studies.run dropout --list") == ""
    shell("$PYTHON -m studies.run groups --list | true")  # nobody reads it
