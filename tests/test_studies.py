"""Tests of studies/: which runs are started and kept, what happens to them, and what is said of their numbers."""

import json
import os
import shlex
import shutil
import signal
import time
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

import bn
import common
import studies.run
from studies import ablation, batch_size, connections, corruptions, dropout, groups, learning_rate, norms, study
from support import cli, files, machine, plots, runs
from tests.world import PROJECT, SCRIPTS, change_metrics, child, metrics_of, patch_recipes, put, run


@pytest.fixture
def tiny(copied, monkeypatch):
    """Return a study of four runs: bn.py itself with seed 0, which is published, with seed 1, and two that diverge."""
    tiny = ModuleType("studies.tiny")
    tiny.SETTING, tiny.started, tiny.plan = "quickly", [], lambda: {("bn", rate, seed): (
        "bn", f"--no-test --aux-lr {rate:g} --seed {seed}") for rate in (0.1, 1e38) for seed in (0, 1)}
    tiny.finding = lambda results: f"{len(results)} things matter"
    tiny.plot = lambda results: plots.new_figure(2, 2)

    def start(command, **options):  # in this process
        tiny.started.append(command[1:])
        status = run(runs.load_script(command[1].removesuffix(".py")), *command[2:])
        return SimpleNamespace(communicate=lambda: (None, None), returncode=status)

    monkeypatch.setattr(studies.run, "STUDIES", (tiny,))
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
    commands, staging = missing(capsys, "tiny"), study.staging_folder(tiny)
    assert len(commands) == 3 and tiny.started == [] and study.origin(tiny) == ""  # with one run of four saved
    assert run(bn.RECIPE, *commands[1][1:]) == 1  # diverges, and waits in the staging folder for the next call
    assert missing(capsys, "tiny") == [commands[0], commands[2]]
    put(staging, {"notes.txt": b"not a run"})
    assert call("tiny", "--jobs", "1") == 0 and tiny.started == [commands[0], commands[2]]
    lines = [json.loads(line) for line in study.results_file(tiny).read_text().splitlines()]
    assert all(set(line) == {*runs.METRICS, "flags"} for line in lines) and sum(line["diverged"] for line in lines) == 2
    assert {path.name for path in staging.iterdir()} == {"notes.txt", "lock", ".unfinished"}
    assert call("tiny") == 0 and len(tiny.started) == 2 and study.results_of(tiny)["bn", 0.1][0]["run"] == "bn"
    assert "2 things matter" in capsys.readouterr().out and (copied.results / "tiny.png").exists()
    monkeypatch.setattr(bn, "RECIPE", replace(bn.RECIPE, translate=3))
    assert study.origin(tiny) == " [of an earlier bn.py: translate was 4, is 3]" and len(missing(capsys, "tiny")) == 4
    (copied.folder / "bn.py").unlink()
    assert len(study.results_of(tiny)) == 2 and "there is no variant 'bn'" in study.origin(tiny)
    assert study.results_of(batch_size) is None and study.origin(batch_size) == ""
    assert call("tiny") == 1 and "tiny: there is no variant 'bn'" in capsys.readouterr().err


def test_what_cannot_be_run_is_named(copied, tiny, capsys, monkeypatch):
    assert call("tiny", "--jobs", "0") == 1 and "--jobs must be 1 or more, got 0" in capsys.readouterr().err
    with files.lock(study.staging_folder(tiny) / "lock", "locked"):
        assert call("tiny") == 1 and f"already being run by process {os.getpid()}" in capsys.readouterr().err
    put(study.staging_folder(tiny), {"bn-aux_lr=1e+38-no-test": b"in the way"})
    assert call("tiny", "--jobs", "1") == 1 and len(tiny.started) == 3 and len(study.saved_runs(tiny)) == 3
    last = capsys.readouterr().err.splitlines()[-2:]
    assert "1 of 3" in last[0] and "--aux-lr 1e+38 --seed 0" in last[1]
    monkeypatch.setattr(files, "DATA", copied.folder / "README.md")
    assert call("tiny") == 1 and "README.md" in capsys.readouterr().err and len(tiny.started) == 3


@pytest.mark.parametrize("total, limit, jobs", [
    (64e9, "max\n", 8), (64e9, "4294967296\n", 2), (64e9, "1000000000\n", 1), (5e9, None, 2), (1e9, None, 1)])
def test_as_many_runs_fit_as_cores_memory_and_the_limit_of_a_container_allow(
        tmp_path, monkeypatch, total, limit, jobs):
    put(tmp_path, {"memory.max": limit.encode()} if limit else {})
    monkeypatch.setattr(study, "Path", lambda path: tmp_path / path.rpartition("/")[2])
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": int(total / 4096), "SC_PAGE_SIZE": 4096}.get)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert study.default_jobs() == jobs


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


@pytest.mark.slow
def test_a_killed_command_leaves_no_run_behind(world):
    write_scripts(world, 1, f"""sys.path.insert(0, {str(PROJECT)!r})
from support import machine
machine.interrupt_on_sigterm()
print("running", flush=True)
time.sleep(60)""")
    process = child(world, "from studies import run\nrun.main(['seeds', '--jobs', '1'])")
    assert process.stdout.readline() == "running\n"
    process.kill()
    process.communicate(timeout=5)  # the run holds the same pipes


# --- The studies ---


def test_every_study_has_its_parts_and_runs_with_names_of_their_own(world):
    for module in (*studies.run.STUDIES, ablation):
        title, blank, *theory = module.__doc__.splitlines()
        assert title.endswith(".") and not blank and theory
        planned = module.plan().values() if hasattr(module, "plan") else ()
        names = {cli.parse_args(runs.load_script(name), shlex.split(flags))[1].run for name, flags in planned}
        assert len(names) == len(planned) and (planned or hasattr(module, "measure"))
        assert module is ablation or all(hasattr(module, name) for name in ("SETTING", "finding", "table", "plot"))


def made_up(accuracy, diverged=False, **values):
    """Return made-up metrics of three runs around a validation accuracy in percent, with a deviation of 0.5."""
    return [{"diverged": diverged, "val_accuracy": (accuracy + change) / 100,
             "train_accuracy": (accuracy + 10 + change) / 100} | values for change in (-0.5, 0, 0.5)]


def test_dropout_and_what_is_significant():
    low, within, beyond = [1.0, 2.0, 3.0], [3.9, 3.9, 3.9], [3.9, 3.9, 4.6]  # of twice the larger deviation
    assert not study.differs(low, within) and study.exceeds(beyond, low) and not study.exceeds(low, beyond)
    results = {(variant, rate): made_up(72 if (variant, rate) == ("gn", 0.2) else 70.5 if rate else 70)
               for variant in (*SCRIPTS, "mine") for rate in dropout.RATES}
    finding, table = dropout.finding(results), dropout.table(results)
    assert "not borne out" in finding and "accuracy of GN (at 0.2), and lowers that of no variant" in finding
    assert "| group norm | 70.00 ± 0.50 | 70.50 ± 0.50 | **72.00 ± 0.50** | 70.50 ± 0.50 |" in table
    assert table.count("**") == 2 and "| mine | 70.00 ± 0.50 |" in table and len(dropout.plot(results).axes) == 2
    results["bn", 0.05] = results["bn", 0.2] = made_up(65, train_accuracy=0.66)
    assert dropout.finding(results).count("BN (at 0.05 and 0.2)") == 2  # the gap narrows, and accuracy falls


def test_connections(world, monkeypatch):
    patch_recipes(monkeypatch)
    monkeypatch.setattr(connections, "ROUNDS", 2)
    monkeypatch.setattr(connections, "STEPS", 1)
    timing = connections.measure()
    assert len(timing["seconds"]) == 9 and all(rounds[0] > 0 for rounds in timing["seconds"].values())
    timing["seconds"] = {name: [10.0, 12.0, 30.0] for name in timing["seconds"]} | {
        "ln concat": [15.0, 15.0, 33.0], "bn concat": [11.0, 12.0, 36.0]}
    put(study.results_file(connections).parent, {"connections.json": runs.to_json(timing)})
    assert connections.measure() == timing  # not measured again
    reached = {"none": 70, "add": 72, "concat": 75}
    results = {(variant, way): made_up(72 if variant == "gn" else reached[way], parameters=48_000, macs=9.5e6,
                                       val_loss=0.9 if (variant, way) == ("gn", "concat") else 1)
               for variant in SCRIPTS for way in connections.WAYS}
    adding, concatenating = connections.finding(results).split(";")
    assert all(words in adding for words in ("accuracy of BN, LN", "loss of no variant"))
    assert all(words in concatenating for words in ("accuracy of BN, LN", "loss of GN", "1.00 to 1.25"))
    row = "| layer norm, concatenated | **75.00 ± 0.50** | 1.000 ± 0.000 | 10.00 ± 0.00 | 48,000 | 9.5 | 15.0 | 1.25 |"
    assert row in connections.table(results)


def test_learning_rate_groups_and_batch_size():
    last = {"bn": 3.0, "gn": 1.0, "ln": 0.3, "none": 0.03}
    results = {(line, rate): made_up(60, diverged=rate > last[line]) for line in last for rate in learning_rate.RATES}
    results["ln", 0.3] = made_up(30)  # finite, but far from its best
    assert learning_rate.finding(results).endswith("batch norm 3, group norm 1, layer norm 0.1, no norm 0.03")
    assert "| 60.00 ± 0.50 | **60.00 ± 0.50** | 3 of 3 diverged |" in learning_rate.table(results)
    results = {("gn", number): made_up(70 + 2 * (number in (4, 8))) for number in groups.GROUPS}
    results |= {("bn", None): made_up(75), ("none", None): made_up(72)}
    assert ": 4, 8 (72.00 ± 0.50 %); batch norm 75.00 ± 0.50 %; no norm 72.00" in groups.finding(results)
    assert "| **70.00 ± 0.50** | 72.00 ± 0.50 | 72.00 ± 0.50 | **70.00 ± 0.50** |" in groups.table(results)
    results = {(variant, size): made_up(55 if (variant, size) == ("bn", 2) else 60)
               for variant in SCRIPTS for size in batch_size.SIZES}
    assert "BN -5.0, GN +0.0 (noise), LN +0.0 (noise)" in batch_size.finding(results)
    assert f"| batch norm | **55.00 ± 0.50** |{' 60.00 ± 0.50 |' * 7}" in batch_size.table(results)


def test_corruptions():
    usual = {line: [0.70, 0.71, 0.72] for line in [*SCRIPTS, "bn adapted"]}
    results = {corruptions.CLEAN: [usual]} | {name: [usual] * len(how[1]) for name, how in corruptions.ALL.items()}
    results["Gaussian blur"] = [usual, usual, usual | {"bn": [0.66, 0.67, 0.68], "ln": [0.69, 0.70, 0.71]}]
    results["contrast"] = [usual, usual, usual | {"gn": [0.1, 0.1, 0.1], "bn adapted": [0.8, 0.8, 0.8]}]
    table, finding = corruptions.table(results), corruptions.finding(results)
    assert "| Gaussian blur, 1 | **67.00 ± 1.00** | 71.00 ± 1.00 | 70.00 ± 1.00 | 71.00 ± 1.00 |" in table
    assert "| contrast, 0.15 | 71.00 ± 1.00 | **10.00 ± 0.00** | 71.00 ± 1.00 | 80.00 ± 0.00 |" in table
    assert "noise BN, GN, LN; blur GN, LN; brightness and contrast BN, LN;" in finding
    assert finding.endswith("better than all of them at brightness and contrast")


def test_corrupted_images_are_what_the_names_say():
    clean = torch.randint(60, 190, (4, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte() / 255
    strengths = {"contrast": 0.4, "Gaussian noise": 0.1, "Gaussian blur": 1.0, "brightness": 0.2}
    flat, noisy, blurred, brighter = (corruptions.ALL[name][0](255 * clean, x) / 255 for name, x in strengths.items())
    torch.testing.assert_close(flat, clean.mean((2, 3), keepdim=True) * 0.6 + clean * 0.4, atol=0.005, rtol=0)
    torch.testing.assert_close(brighter.amax(1), clean.amax(1) + 0.2, atol=0.005, rtol=0)  # HSV's value
    assert (noisy - clean).std().item() == pytest.approx(0.1, rel=0.05) and blurred.std() < clean.std() / 2


def test_norms_are_measured_and_share_statistics_as_pytorchs_layers_do(trained):
    results = norms.measure()
    assert results["bn"]["after"]["means"] == pytest.approx([0] * 8, abs=0.01)
    assert results["bn"]["after"]["deviations"] == pytest.approx([1] * 8, abs=0.01)
    means = results["ln"]["after"]["means"]
    assert max(means) - min(means) > 0.1 and f"{max(means) - min(means):.2f} (LN)" in norms.finding(results)
    for variant, layer in {"bn": nn.BatchNorm1d(6), "gn": nn.GroupNorm(3, 6), "ln": nn.GroupNorm(1, 6)}.items():
        x = torch.randn(norms.CUBE, generator=torch.Generator().manual_seed(0), requires_grad=True)
        layer(x)[0, 0, 0].backward()
        assert torch.equal(norms.shared_statistics(variant), x.grad != 0), variant


def test_corruptions_are_measured_and_adapted_batch_norm_has_the_statistics_of_the_images(copied, monkeypatch):
    shutil.copytree(copied.results / "bn", copied.results / "bn-seed=1")
    monkeypatch.setattr(corruptions, "ALL", {"contrast": corruptions.ALL["contrast"]})
    results = corruptions.measure()  # of the variants with two seeds
    assert results[corruptions.CLEAN][0]["bn"] == [metrics_of(copied, "bn")["test_accuracy"]] * 2
    assert [set(lines) for lines in results["contrast"]] == [{"bn", "bn adapted"}] * 3
    model, images = common.load_model(copied.results / "bn"), copied.images.flatten(0, 1) // 2
    adapted, seen = corruptions.adapted(model, images).C1.norm, model.C1.conv(common.normalize(images))
    torch.testing.assert_close(adapted.running_mean, seen.mean((0, 2, 3)), atol=0.01, rtol=0.01)  # or bfloat16
    torch.testing.assert_close(adapted.running_var, seen.var((0, 2, 3)), atol=0.01, rtol=0.02)
    assert corruptions.adapted(common.load_model(copied.results / "ln"), images) is None


def test_the_ablation_compares_each_change_with_the_recipe(monkeypatch):
    monkeypatch.setattr(ablation, "CHANGES", {"gn": {"no flips": "--no-flip", "too fast": "--aux-lr 1e30"}})
    results = {("gn", None): made_up(81, macs=9_200_000, val_loss=0.6),
               ("gn", "no flips"): made_up(90.5, macs=9_200_000, val_loss=0.5)[:1],
               ("gn", "too fast"): made_up(0, True, macs=9_200_000, val_loss=None, val_accuracy=None)[:1]}
    monkeypatch.setattr(study, "by_cell", lambda module: results)
    page = ablation.page(" [of an earlier gn.py]")
    assert " [of an earlier gn.py]\n" in page
    assert "| the recipe of gn.py | 9.2 | 81.00 ± 0.50 | 0.600 ± 0.000 |  |" in page
    assert "| no flips | 9.2 | 90.00 | 0.500 | +9.00 |\n| too fast | 9.2 | – | – | diverged |\n" in page
    monkeypatch.setattr(study, "by_cell", lambda module: None)  # a run is missing
    assert ablation.page("") is None
