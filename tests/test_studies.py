"""Tests of studies/: which runs are started and kept, what happens to them, and what is found in their numbers."""

import json
import os
import random
import shlex
import shutil
import signal
import time
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest
import scipy.stats
import torch
from torch import nn

import bn
import common
import studies.run
from studies import (
    ablation,
    batch_size,
    connections,
    corruptions,
    dropout,
    groups,
    learning_rate,
    norms,
    predictions,
    signals,
    stats,
    study,
)
from studies.run import STUDIES
from support import cli, files, machine, plots, runs
from tests.world import SCRIPTS, change_metrics, metrics_of, put, run
from tools import report


@pytest.fixture
def tiny(copied, monkeypatch):
    """Return a study of four runs: bn.py itself with two seeds, and two that diverge."""
    tiny = ModuleType("studies.tiny")
    tiny.SETTING, tiny.started, tiny.plan = "quickly", [], lambda: {("bn", rate, seed): (
        "bn", f"--no-test --other-lr {rate:g} --seed {seed}") for rate in (0.1, 1e38) for seed in (0, 1)}
    tiny.__doc__, tiny.findings = "What matters.", lambda results: [
        (f"{len(results)} things matter.", tiny.holds), ("Nothing else does.", True)]
    tiny.holds = True
    tiny.plot = lambda results: plots.new_figure(2, 2)

    def start(command, **options):  # in this process
        tiny.started.append(command[1:])
        status = run(runs.load_script(command[1].removesuffix(".py")), *command[2:])
        return SimpleNamespace(communicate=lambda: (None, None), returncode=status)

    monkeypatch.setattr(studies.run, "STUDIES", (tiny,))
    monkeypatch.setattr(report, "STUDIES", (tiny,))
    monkeypatch.setattr(study, "subprocess", SimpleNamespace(Popen=start))
    monkeypatch.setattr(machine, "interrupt_on_sigterm", lambda: None)  # only the main thread can
    monkeypatch.chdir(copied.folder)
    return tiny


def call(*args):
    """Call `python -m studies.run`, and return its exit status."""
    try:
        studies.run.main(args)
    except SystemExit as stop:
        return stop.code
    return 0


def missing(capsys, *args):
    """Return scripts and flags of the commands that `python -m studies.run NAME --list` prints."""
    capsys.readouterr()
    assert call(*args, "--list") == 0
    return [shlex.split(line)[1:] for line in capsys.readouterr().out.splitlines()]


def test_a_study_runs_what_is_missing_once(copied, tiny, capsys, monkeypatch):
    commands, staging = missing(capsys, "tiny"), study.staging_folder()
    assert len(commands) == 4 and tiny.started == [] and study.origin(tiny) == study.made_on(tiny) == ""
    assert run(bn.RECIPE, *commands[2][1:]) == 1  # diverges, and waits in the staging folder for the next call
    assert missing(capsys, "tiny") == [commands[0], commands[1], commands[3]]
    put(staging, {"notes.txt": b"not a run"})
    assert call("tiny", "--jobs", "1") == 0 and tiny.started == [commands[0], commands[1], commands[3]]
    lines = [json.loads(line) for line in study.runs_file().read_text().splitlines()]
    assert all(set(line) == {*runs.METRICS, "flags"} for line in lines) and sum(line["diverged"] for line in lines) == 2
    assert {path.name for path in staging.iterdir()} == {"notes.txt", "lock", ".unfinished"}
    assert call("tiny") == 0 and len(tiny.started) == 3 and study.results_of(tiny)["bn", 0.1][0]["run"] == "bn-no-test"
    assert "2 things matter. Nothing else does." in capsys.readouterr().out and (copied.results / "tiny.png").exists()
    assert f"torch {torch.__version__}" in study.made_on(tiny)
    monkeypatch.setattr(bn, "RECIPE", replace(bn.RECIPE, translate=3))
    assert study.origin(tiny) == " [made with an earlier bn.py: translate was 4, is 3]"
    assert len(missing(capsys, "tiny")) == 4
    (copied.folder / "bn.py").unlink()
    assert len(study.results_of(tiny)) == 2 and "an earlier bn.py: deleted since" in study.origin(tiny)
    assert study.results_of(batch_size) is None and study.origin(batch_size) == ""
    assert call("tiny") == 1 and "tiny: there is no variant 'bn'" in capsys.readouterr().err


def test_a_finding_that_its_results_do_not_support_leaves_the_pages_and_fails_the_check(copied, tiny, capsys):
    tiny.table = lambda results: "| a table |"
    assert call("tiny", "--jobs", "1") == 0
    report.main(["plots"])
    report.main(["check"])
    assert "2 things matter. Nothing else does." in (copied.results / "README.md").read_text()
    tiny.holds = False
    report.main(["plots"])
    for page in "README.md", "studies.md":
        text = (copied.results / page).read_text()
        assert "matter." not in text and f"({study.UNSUPPORTED}.) Nothing else does." in text
    assert "| a table |" in text
    with pytest.raises(SystemExit, match="1"):
        report.main(["check"])
    assert "tiny: these results do not support: 2 things matter." in capsys.readouterr().err


def test_studies_of_trained_networks_need_some(world, tiny, capsys, monkeypatch):
    del tiny.plan
    shutil.rmtree(files.RESULTS)
    assert call("tiny") == 1 and "tiny: nothing to measure yet: type `make all`" in capsys.readouterr().err


def test_what_cannot_be_run_is_named(copied, tiny, capsys, monkeypatch):
    assert call("tiny", "--jobs", "0") == 1 and "--jobs must be 1 or more, got 0" in capsys.readouterr().err
    study.staging_folder().mkdir(parents=True, exist_ok=True)
    with files.lock(study.staging_folder() / "lock", "locked"):
        assert call("tiny") == 1 and f"already being run by process {os.getpid()}" in capsys.readouterr().err
    put(study.staging_folder(), {"bn-other_lr=1e+38-no-test": b"in the way"})
    assert call("tiny", "--jobs", "1") == 1 and len(tiny.started) == 4 and len(study.saved_runs()) == 3
    last = capsys.readouterr().err.splitlines()[-2:]
    assert "1 of 4" in last[0] and "--other-lr 1e+38 --seed 0" in last[1]
    monkeypatch.setattr(files, "DATA", copied.folder / "README.md")
    assert call("tiny") == 1 and "README.md" in capsys.readouterr().err and len(tiny.started) == 4


def test_seeds_runs_what_was_not_trained_by_this_code_here_in_this_precision(copied, tiny, capsys, monkeypatch):
    seed_0 = {name: [f"{name}.py", "--seed", "0"] for name in SCRIPTS}
    assert [command[-1] for command in missing(capsys, "seeds", "--seeds", "0", "1")] == ["1"] * 3
    monkeypatch.setattr(bn, "RECIPE", replace(bn.RECIPE, epochs=1))
    change_metrics(copied.results / "bn", precision="float8")
    assert call("seeds", "--seeds", "0", "--jobs", "1") == 0 and tiny.started == [seed_0["bn"]]
    shutil.rmtree(copied.results / "ln")
    (copied.folder / "gn.py").write_text("RECIPE = other_code\n")
    assert missing(capsys, "seeds", "--seeds", "0") == [seed_0["gn"], seed_0["ln"]]
    (copied.results / ".checkout").unlink()  # as in a fresh clone
    assert missing(capsys, "seeds", "--seeds", "0") == list(seed_0.values())


# --- Runs in parallel: scripts that do something else than train ---


def write_scripts(world, count, code):
    """Replace the three scripts by code, which begins when `count` of them have been started."""
    for name in SCRIPTS:
        (world.folder / f"{name}.py").write_text(f"""
NAME = {name!r}
RECIPE = None
import os, pathlib, sys, time
pathlib.Path(NAME + ".threads").write_text(os.environ.get("OMP_NUM_THREADS", "all"))
end = time.monotonic() + 20
while len(list(pathlib.Path().glob("*.threads"))) < {count}:
    assert time.monotonic() < end
    time.sleep(0.02)
{code}
""")


@pytest.mark.parametrize("jobs, threads", [(3, "1"), (1, "all")])
def test_parallel_runs_share_the_threads_and_a_single_one_has_the_terminal(world, capfd, monkeypatch, jobs, threads):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    write_scripts(world, jobs, "print('first'); print('last of', NAME)")
    assert call("seeds", "--seeds", "0", "--jobs", str(jobs)) == 1
    out, errors = capfd.readouterr()
    assert out.count("first\n") == (3 if jobs == 1 else 0) and errors.count("last of") == (0 if jobs == 1 else 3)
    assert [(world.folder / f"{name}.threads").read_text() for name in SCRIPTS] == [threads] * 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_ends_all_its_runs_and_says_how_to_resume(world, capsys, monkeypatch, number):
    monkeypatch.setattr(study, "GRACE_SECONDS", 0.1)
    write_scripts(world, 2, f"if NAME == 'bn': os.kill(os.getppid(), {int(number)})\ntime.sleep(60)")
    start = time.monotonic()
    assert call("seeds", "--seeds", "0", "--jobs", "2") == 128 + number  # returns when all processes have ended
    assert time.monotonic() - start < 20 and not (world.folder / "ln.threads").exists()  # the third has not begun
    assert "run the same command again" in capsys.readouterr().err


# --- The studies ---


def test_every_study_has_its_parts_and_runs_with_names_of_their_own(world):
    for module in STUDIES:
        title, blank, *theory = module.__doc__.splitlines()
        assert title.endswith(".") and not blank and theory
        planned = set(module.plan().values()) if hasattr(module, "plan") else ()
        names = {cli.parse_args(runs.load_script(name), shlex.split(flags))[1].run for name, flags in planned}
        assert len(names) == len(planned) and (planned or hasattr(module, "measure"))
        assert module.SETTING and module.findings and (hasattr(module, "table") or hasattr(module, "plot"))


def made_up(accuracy, count=5, gap=10, loss=1.0, diverged=False):
    """Return made-up metrics of runs around a validation accuracy in percent, with a standard deviation near 0.3."""
    return [{"diverged": diverged, "val_accuracy": (accuracy + change) / 100, "val_loss": loss + change / 100,
             "train_accuracy": (accuracy + gap + change + (-0.1) ** seed) / 100, "parameters": 48_000, "macs": 9.5e6}
            for seed, change in enumerate((-0.4, -0.2, 0, 0.2, 0.4)[-count:])]


def holds(module, results):
    """Return which of a study's findings are supported; its table and figure can be made in any case."""
    assert module.table(results).startswith("| ") and module.plot(results).axes
    return [supported for _, supported in module.findings(results)]


def test_t_tests_are_students_for_two_cells_and_holm_keeps_the_order():
    a, b = [1.0, 2.0, 4.0], [3.0, 5.0, 4.5, 6.0]
    test = stats.contrast({"a": a, "b": b}, {"b": 1, "a": -1})
    expected = scipy.stats.ttest_ind(b, a)
    assert test.p == pytest.approx(expected.pvalue)
    assert (test.low, test.high) == pytest.approx(expected.confidence_interval())
    assert test.text() == "+2.29 [-0.39, 4.98]" and test._replace(estimate=-2.0, low=-3.0, high=-1.0).size(1) == (
        "2.0 [1.0, 3.0]")
    values = {name: test._replace(p=p) for name, p in {"x": 0.03, "y": 0.01, "z": 0.04}.items()}
    assert {name: found.p for name, found in stats.holm(values).items()} == pytest.approx(
        {"x": 0.06, "y": 0.03, "z": 0.06})
    assert stats.holm(values)["y"].significant and not stats.holm(values)["x"].significant


def test_welchs_test_is_scipys():
    a, b = [1.0, 2.0, 4.0], [3.0, 5.0, 14.5, 6.0]
    expected = scipy.stats.ttest_ind(b, a, equal_var=False)
    test = stats.welch({"a": a, "b": b}, {"b": 1, "a": -1})
    assert (test.p, test.low, test.high) == pytest.approx((expected.pvalue, *expected.confidence_interval()))


def test_the_interaction_of_two_by_two_cells_is_the_square_of_its_t_test():
    cells = {("a", 0): [1.0, 2.0, 4.0], ("a", 1): [3.0, 5.0, 4.5], ("b", 0): [2.0, 2.5, 2.6], ("b", 1): [1.0, 2.0, 0.0]}
    test = stats.contrast(cells, {("a", 0): 1, ("a", 1): -1, ("b", 0): -1, ("b", 1): 1})
    assert stats.interaction(cells) == pytest.approx(test.p)
    additive = {(line, x): [value + 5 * x + 3 * (line == "b") for value in (1.0, 2.0, 3.0)] for line, x in cells}
    assert stats.interaction(additive) == pytest.approx(1)
    assert stats.main_effects(additive, 0)[1].estimate == pytest.approx(5)
    assert stats.against(additive, 0)["b", 1].estimate == pytest.approx(5)


@pytest.mark.parametrize("deviation", [0.3, 3.0])
def test_one_table_in_twenty_has_a_false_positive(deviation):
    rng, false = random.Random(0), 0
    for _ in range(400):
        cells = {(line, x): [rng.gauss(80, deviation) for _ in range(3)] for line in "abc" for x in range(4)}
        false += any(test.significant for test in stats.against(cells, 0).values())
    assert 0.02 * 400 < false < 0.08 * 400


def test_dropout():
    results = {(line, rate): made_up(80 - 2 * rate, gap=10 - 4 * rate) for line in SCRIPTS for rate in dropout.RATES}
    assert holds(dropout, results) == [True, True]
    assert "by 2.00 [1.66, 2.34] percentage points, but lowers validation accuracy by 1.00" in (
        dropout.findings(results)[0][0])
    assert "| batch norm | 80.00 ± 0.32 | 79.60 ± 0.32 | **79.00 ± 0.32** |" in dropout.table(results)
    assert holds(dropout, results | {("ln", 0.5): made_up(90, gap=0)}) == [False, False]
    assert holds(dropout, {key: made_up(80) for key in results}) == [False, True]


def test_connections_groups_and_ablation():
    reached = {("bn", "none"): 80.1, ("bn", "concat"): 81.5, ("gn", "none"): 78, ("ln", "none"): 78}
    results = {(line, way): made_up(reached.get((line, way), 80)) for line in SCRIPTS for way in connections.WAYS}
    assert holds(connections, results) == [True, True] and study.DEPENDS in connections.table(results)
    assert "| none | added | concatenated |" in connections.table(results)
    assert holds(connections, {key: made_up(79) for key in results}) == [False, False]
    results = {("gn", number): made_up(70 - 3 * (number == "channels")) for number in groups.GROUPS}
    results |= {(line, x): made_up({"bn": 72, "none": 70}[line]) for line, xs in groups.REFERENCES.items() for x in xs}
    assert holds(groups, results) == [True] * 3 and "1 group | 70.00" in groups.table(results)
    assert "| batch norm | **72.00 ± 0.32** | +2.00 [" in groups.table(results)
    changed = {("gn", 1): made_up(67), ("gn", "channels"): made_up(70), ("none", "usual"): made_up(75)}
    assert holds(groups, results | changed) == [False, False, False]
    reached = {"SGD": (75, 74, 73), "ReL": (75, 75, 75), "lin": (78, 78, 78)}
    results = {(line, change): made_up(reached.get(change[:3], (77, 77, 77))[list(SCRIPTS).index(line)])
               for line in SCRIPTS for change in ("the recipe", *ablation.CHANGES)}
    assert holds(ablation, results) == [True] * 3 and "| **-2.00 [" in ablation.table(results)
    assert holds(ablation, {key: made_up(77) for key in results}) == [False, False, True]


def test_learning_rate():
    fall = {"bn": 2, "gn": 10, "ln": 12, "none": 0}
    results = {(line, rate): made_up(60 - fall[line] * (rate == 100) - 5 * (line == "none"), 3,
                                     diverged=line == "none" and rate > 0.1)
               for line in fall for rate in learning_rate.RATES}
    assert holds(learning_rate, results) == [True, True] and "3 of 3 diverged |" in learning_rate.table(results)
    assert "10.0 [9.5, 10.5] with group and" in learning_rate.findings(results)[0][0]
    assert holds(learning_rate, results | {("ln", 30.0): made_up(60, 3, diverged=True)}) == [False, True]
    assert holds(learning_rate, {(line, rate): results["gn", rate] for line, rate in results}) == [False, False]


def test_batch_norm_in_ghost_batches_and_by_batch_statistics(trained, monkeypatch):
    norm, x = batch_size.GhostBatches(nn.BatchNorm2d(3), 2), torch.randn(4, 3, 5, 5)
    torch.testing.assert_close(norm(x)[2:], nn.BatchNorm2d(3)(x[2:]))
    assert torch.equal(norm.eval()(x), norm.norm(x))
    monkeypatch.setattr(batch_size, "SIZES", (2, 10))
    for name, value in {"BATCH": 10, "IMAGES": 30, "EPOCHS": 1, "SEEDS": (0, 1)}.items():
        monkeypatch.setattr(batch_size, name, value)
    results = json.loads(json.dumps(batch_size.measure()))
    assert set(results["trained"]) == set(results["evaluated"]) == set(SCRIPTS)
    assert results["evaluated"]["ln"]["2"] == results["evaluated"]["ln"]["10"]
    assert batch_size.table(results).count("| layer norm |") == 2 and batch_size.plot(results).axes


def test_predictions_are_compared_on_the_same_images(trained):
    results = json.loads(json.dumps(predictions.measure()))
    for variant, (mean, low, high, _) in results["accuracy"].items():
        assert low < mean < high and mean == pytest.approx(100 * metrics_of(trained, variant)["test_accuracy"])
    assert results["disagreement"]["bn bn"] is None and results["disagreement"]["bn gn"] > 0
    assert predictions.findings(results) == []  # of one seed
    assert "| batch norm - layer norm |" in predictions.table(results)
    certain = torch.tensor([[0.95, 0.05], [0.85, 0.15], [0.25, 0.75], [0.75, 0.25]])
    error = predictions.calibration_error(certain, torch.tensor([0, 1, 1, 0]))
    assert error == pytest.approx((0.05 + 0.85 + 2 * 0.25) / 4)
    values = torch.tensor([1.0, 0, 1, 1])
    assert predictions.interval(values)[:3] == pytest.approx((75, 75 - 196 / 4, 75 + 196 / 4), rel=0.001)


def test_signals_fade_without_normalization(trained):
    results = signals.measure()
    assert all(supported for _, supported in signals.findings(results)) and signals.plot(results).axes
    results["bn"] = results["none"] = results["same"]
    assert not any(supported for _, supported in signals.findings(results))


def test_corruptions():
    usual = {line: [0.70, 0.71, 0.72] for line in [*SCRIPTS, "bn adapted"]}
    results = {corruptions.CLEAN: [usual]} | {name: [usual] * len(how[1]) for name, how in
                                              corruptions.CORRUPTIONS.items()}
    assert holds(corruptions, results) == [False, False, False]
    results["Gaussian noise"] = [usual, usual, usual | {"bn adapted": [0.80, 0.81, 0.82]}]
    results["Gaussian blur"] = [usual, usual, usual | {"bn": [0.60, 0.61, 0.62]}]
    results["contrast"] = [usual, usual, usual | {"bn": [0.1, 0.1, 0.1]}]
    assert holds(corruptions, results) == [True, True, True]
    assert "5 | 61.00 ± 1.00 | **71.00 ± 1.00** | **71.00 ± 1.00** | 71.00 ± 1.00 |" in corruptions.table(results)
    results["Gaussian noise"] = results["contrast"]
    assert not holds(corruptions, results)[2]


def test_corrupted_images_are_what_the_names_say():
    clean = torch.randint(60, 190, (4, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte() / 255
    strengths = {"contrast": 0.4, "Gaussian noise": 0.1, "Gaussian blur": 1.0}
    flat, noisy, blurred = (corruptions.CORRUPTIONS[name][0](255 * clean, x) / 255
                                      for name, x in strengths.items())
    torch.testing.assert_close(flat, clean.mean((2, 3), keepdim=True) * 0.6 + clean * 0.4, atol=0.005, rtol=0)
    assert (noisy - clean).std().item() == pytest.approx(0.1, rel=0.05) and blurred.std() < clean.std() / 2


def test_norms_are_measured_and_share_statistics_as_pytorchs_layers_do(trained):
    results = norms.measure()
    assert results["bn"]["after"]["means"] == pytest.approx([0] * 8, abs=0.01)
    assert results["bn"]["after"]["deviations"] == pytest.approx([1] * 8, abs=0.01)
    assert all(supported for _, supported in norms.findings(results)) and norms.plot(results).axes
    assert not all(supported for _, supported in norms.findings(results | {"bn": results["ln"]}))
    assert "| one filter × 10: output, mean over 16 filters | 0.0 % |" in norms.table(results)
    for variant, layer in {"bn": nn.BatchNorm1d(6), "gn": nn.GroupNorm(3, 6), "ln": nn.GroupNorm(1, 6)}.items():
        x = torch.randn(norms.CUBE, generator=torch.Generator().manual_seed(0), requires_grad=True)
        layer(x)[0, 0, 0].backward()
        assert torch.equal(norms.shared_statistics(variant), x.grad != 0), variant


def test_corruptions_are_measured_and_adapted_batch_norm_has_the_statistics_of_the_images(copied, monkeypatch):
    shutil.copytree(copied.results / "bn", copied.results / "bn-seed=1")
    monkeypatch.setattr(corruptions, "CORRUPTIONS", {"contrast": corruptions.CORRUPTIONS["contrast"]})
    results = corruptions.measure()  # of the variants with two seeds
    assert results[corruptions.CLEAN][0]["bn"] == [metrics_of(copied, "bn")["test_accuracy"]] * 2
    assert [set(lines) for lines in results["contrast"]] == [{"bn", "bn adapted"}] * 3
    model, images = common.load_model(copied.results / "bn"), copied.images.flatten(0, 1) // 2
    adapted, seen = corruptions.adapted(model, images).C1.norm, model.C1.conv(common.normalize(images))
    torch.testing.assert_close(adapted.running_mean, seen.mean((0, 2, 3)), atol=0.01, rtol=0.01)  # or bfloat16
    torch.testing.assert_close(adapted.running_var, seen.var((0, 2, 3)), atol=0.01, rtol=0.02)
    assert corruptions.adapted(common.load_model(copied.results / "ln"), images) is None
