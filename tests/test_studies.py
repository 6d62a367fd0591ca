"""Proofs of studies/: what is trained, what is not trained again, what is said of the numbers."""

import contextlib
import json
import os
import shlex
import shutil
import signal
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import bn
import common
import gn
import ln
from studies import (
    ablation,
    batch_size,
    confusions,
    connections,
    corruptions,
    dropout,
    findings,
    groups,
    learning_rate,
    norms,
    seeds,
    study,
    tried,
)
from studies.trainings import numbers_file, plan, pooled, print_commands, train_missing
from support import jobs, machine, pictures, runs, scripts, storage
from support.storage import RunError
from tests.world import SCRIPTS, metrics_of, run
from tools import report

# --- Trainings ---


@pytest.fixture
def trainings(monkeypatch):
    """The commands of the trainings, which run in this process instead."""
    done = []

    def run_here(commands, count, folder, ended):
        for name, (_, script, *flags) in commands.items():
            done.append([script, *flags])
            ended(name, run(common.script_of(script[:2]), *flags), "")

    monkeypatch.setattr(jobs, "run", run_here)
    return done


@pytest.fixture
def small_ablation(trainings, monkeypatch):
    """An ablation of short runs, and the list of commands."""
    monkeypatch.setattr(ablation, "FLAGS", "--epochs 1 --no-test")
    monkeypatch.setattr(ablation, "CHANGES", {"bn": {"no flips": "--no-flip", "far too fast": "--aux-lr 1e30"}})
    monkeypatch.setattr(tried, "TRIED", [("standing still", "still", "still")])
    return trainings


def lines_of(name):
    return runs.read_lines(numbers_file(name))


def forget(name, run):
    """Take a run out of a study's lines."""
    lines = [line for name, line in lines_of(name).items() if name != run]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    storage.write_signed(numbers_file(name), text.encode())


def test_the_ablation_trains_what_is_missing_and_tells_it_on_its_page(world, small_ablation):
    ablation.main([])
    assert len(small_ablation) == 5
    lines = lines_of("ablation")
    seeds = [lines[f"bn-epochs=1{seed}-no-test"] for seed in ("", "-seed=1", "-seed=2")]
    storage.write_signed(numbers_file("tried"), json.dumps({"name": "still", **seeds[0]}).encode())
    page = ablation.page()
    (accuracy, deviation), (loss, loss_deviation) = (
        [scale * f(m[key] for m in seeds) for f in (statistics.mean, statistics.stdev)]
        for key, scale in (("val_accuracy", 100), ("val_loss", 1)))
    assert (f"| the recipe of bn.py | 9.2 | {accuracy:.2f} ± {deviation:.2f} "
            f"| {loss:.3f} ± {loss_deviation:.3f} |  |" in page)
    changed = lines["bn-epochs=1-flip=False-no-test"]
    reached, changed_loss = 100 * changed["val_accuracy"], changed["val_loss"]
    assert f"| no flips | 9.2 | {reached:.2f} | {changed_loss:.3f} | {reached - accuracy:+.2f} |" in page
    assert "| far too fast | 9.2 | – | – | diverged |" in page
    first = f"{100 * seeds[0]['val_accuracy']:.2f} | {seeds[0]['val_loss']:.3f} |"
    assert f"| standing still | 1 | 9.2 | {first} {first}" in page
    forget("ablation", "bn-epochs=1-seed=1-no-test")
    assert ablation.page() is None
    ablation.main([])
    assert len(small_ablation) == 6 and ablation.page() == page


def test_the_page_of_the_ablation_is_published_and_checked(copied, small_ablation, monkeypatch, capsys):
    ablation.main([])
    line = lines_of("ablation")["bn-epochs=1-no-test"]
    storage.write_signed(numbers_file("tried"), json.dumps({"name": "still", **line}).encode())
    report.main(["pages"])
    assert (copied.results / "ablation.md").read_text() == ablation.page()
    report.main(["check"])
    assert "results/ablation.md: as results/ yields" in capsys.readouterr().out
    monkeypatch.setattr(ablation, "FLAGS", "--epochs 2 --no-test")
    with pytest.raises(SystemExit, match="no longer those of the scripts: type `make ablation`"):
        report.main(["check"])


def test_trainings_leave_one_signed_file(world, small_ablation):
    ablation.main([])
    folder = world.results / "studies"
    assert sorted(path.name for path in folder.iterdir()) == [".running", "SHA256SUMS", "ablation.jsonl"]
    assert storage.signed_files(folder) == ["ablation.jsonl"]
    assert not list(folder.glob(".running/*/*/metrics.json"))
    for line in lines_of("ablation").values():
        assert set(line) == {*runs.METRICS, "history"} and set(line["history"]) == set(runs.HISTORY)
        assert len(line["history"]["epoch"]) == (0 if line["diverged"] else line["epochs"])


def test_an_ablation_of_another_recipe_is_not_taken_for_this_ones(world, small_ablation, monkeypatch):
    ablation.main([])
    monkeypatch.setattr(bn, "RECIPE", replace(bn.RECIPE, crop=3))
    assert ablation.page() is None
    ablation.main([])
    assert len(small_ablation) == 10 and len(lines_of("ablation")) == 5
    assert all(line["recipe"]["crop"] == 3 for line in lines_of("ablation").values())


def test_an_ablation_names_the_runs_that_cannot_be_trained_and_trains_the_others(world, small_ablation):
    waiting = world.results / "studies" / ".running" / "ablation"
    waiting.mkdir(parents=True)
    (waiting / "bn-epochs=1-seed=1-no-test").write_text("in the way")
    with pytest.raises(SystemExit) as stop:
        ablation.main([])
    assert str(stop.value.code) == ("ablation: 1 of 5 trainings failed:\n"
                                    "  bn.py --epochs 1 --no-test --seed 1: ended with status 1")
    assert len(small_ablation) == 5 and len(lines_of("ablation")) == 4


def test_without_a_data_set_nothing_is_started(world, small_ablation):
    shutil.rmtree(world.data)
    world.data.write_text("a file in the folder's place")
    with pytest.raises(SystemExit, match=r"ablation: .*data"):
        ablation.main([])
    assert small_ablation == []


def test_a_run_that_finished_before_a_kill_is_not_trained_again(world, trainings, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(runs, "collect", lambda *args: None)  # a kill comes before
        with pytest.raises(RunError, match=r"1 of 1 trainings failed:\n.* ended with status 0"):
            train_missing("some", {("bn", 1, 0): ("bn", "--epochs 1 --no-test")})
    train_missing("some", {("bn", 1, 0): ("bn", "--epochs 1 --no-test")})
    assert len(trainings) == 1 and list(lines_of("some")) == ["bn-epochs=1-no-test"]


def test_what_is_published_of_a_script_is_not_trained_for_a_study(world, trainings, monkeypatch):
    monkeypatch.setattr(bn, "RECIPE", replace(bn.RECIPE, epochs=1))
    run(bn.RECIPE)
    plan = {("bn", 1, seed): ("bn", f"--epochs 1 --no-test --seed {seed}") for seed in (0, 1)}
    train_missing("some", plan)
    assert [command[1:6] for command in trainings] == [["--epochs", "1", "--no-test", "--seed", "1"]]
    assert [metrics["run"] for metrics in pooled("some", plan)["bn", 1]] == ["bn", "bn-seed=1-no-test"]
    assert pooled("some", plan)["bn", 1][0]["val_loss"] == metrics_of(world, "bn")["val_loss"]
    monkeypatch.setattr(bn, "RECIPE", replace(bn.RECIPE, crop=3))  # what is published is no longer the script's
    assert pooled("some", plan) is None
    train_missing("some", plan)
    assert len(trainings) == 3 and len(pooled("some", plan)["bn", 1]) == 2


def test_every_run_of_a_study_can_be_parsed_and_has_a_name_of_its_own():
    for one in findings.STUDIES:
        names = {plan(*training)[0] for training in one.trainings.values()}
        assert len(names) == len(one.trainings)
        assert {seed for *_, seed in one.trainings} >= ({0, 1} if one.trainings else set())
        assert sum(map(bool, (one.trainings, one.measure, one.read))) in (1, 3)  # `read` is for several, or for neither


def test_a_study_is_named_as_its_module_and_its_make_target():
    for module in (norms, connections, dropout, groups, batch_size, learning_rate, corruptions, confusions):
        assert module.__name__ == f"studies.{module.STUDY.name}" and module.STUDY in findings.STUDIES
        assert module.STUDY.question.endswith("?") and len(module.STUDY.expectation) > 100
    assert len(findings.STUDIES) == 8


def test_a_study_trains_what_is_missing_and_is_told_in_the_results(copied, trainings, monkeypatch):
    plan = {(line, rate, seed): (line, f"--epochs 1 --no-test --aux-lr {rate:g} --seed {seed}")
            for line in ("bn", "gn") for rate in (0.3, 1e38) for seed in (0, 1)}
    small = study.Study(
        "small", "How?\n\nWell, one\nhopes.", "quickly", lambda found: "so",
        lambda found: "".join(f"{line} {x:g} {len(group)}\n" for (line, x), group in found.items()),
        lambda found: pictures.empty(9, 3), trainings=plan)
    monkeypatch.setattr(findings, "STUDIES", [small, confusions.STUDY])
    study.main(small, [])
    report.main(["pages"])
    assert len(trainings) == 8
    page, readme = (copied.results / "README.md").read_text(), (copied.folder / "README.md").read_text()
    assert "## How?\n\nWell, one hopes.\n\n![so](small.png)" in page and "gn 1e+38 2" in page
    assert (copied.results / "small.png").exists()
    assert "- How? so.\n" in readme and "- Which classes are easy, which hard? \"Best at" in readme
    study.main(small, [])
    assert len(trainings) == 8
    report.main(["check"])


def test_what_is_missing_is_listed_as_commands_and_nothing_else(world, small_ablation, capsys):
    ablation.main(["--list"])
    lines = capsys.readouterr().out.splitlines()
    waiting = world.results / "studies" / ".running" / "ablation"
    assert len(lines) == 5 and small_ablation == []
    assert shlex.split(lines[0])[1:] == [
        "bn.py", "--epochs", "1", "--no-test", "--seed", "0", "--numbers-only", "--results", str(waiting)]
    assert {common.ROOT / shlex.split(line)[0] for line in lines} == {Path(sys.executable)}
    assert run(bn.RECIPE, *shlex.split(lines[1])[2:]) == 0
    capsys.readouterr()
    ablation.main(["--list"])
    assert capsys.readouterr().out.splitlines() == [*lines[:1], *lines[2:]]
    for module in (norms, confusions):
        study.main(module.STUDY, ["--list"])
    assert capsys.readouterr().out == "" and not waiting.with_name("norms").exists()


def test_a_list_that_nobody_reads_to_its_end_ends_without_a_word(capfd):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe, contextlib.redirect_stdout(pipe):
        print_commands({"a training": ["bn.py"]})
        print("more")
    assert capfd.readouterr() == ("", "")


# --- Side by side ---


@pytest.fixture
def fake_scripts(world, monkeypatch):
    """A folder in which scripts can be put that do something else than train."""
    monkeypatch.setattr(common, "ROOT", world.folder)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    return world.folder


THREE = {(name, 1, 0): (name, "--seed 1") for name in SCRIPTS}


def test_trainings_run_side_by_side_and_share_the_threads(fake_scripts, capfd):
    for name in SCRIPTS:  # each waits until all three are at work
        (fake_scripts / f"{name}.py").write_text(f"""
import os, pathlib, time
pathlib.Path("{name}.here").write_text(os.environ["OMP_NUM_THREADS"])
end = time.monotonic() + 30
while not all(pathlib.Path(name + ".here").exists() for name in ("bn", "gn", "ln")):
    assert time.monotonic() < end, "alone"
    time.sleep(0.05)
print("the end of {name}")
""")
    with pytest.raises(RunError) as stop:
        train_missing("some", THREE, 3)
    assert str(stop.value).splitlines()[0] == "3 of 3 trainings failed:"
    ends = [f"{name}.py --seed 1: the end of {name} (status 0)" for name in SCRIPTS]
    assert sorted(str(stop.value).splitlines()[1:]) == [f"  {end}" for end in ends]
    assert [(fake_scripts / f"{name}.here").read_text() for name in SCRIPTS] == ["1"] * 3
    assert sorted(capfd.readouterr().out.splitlines()) == ends


def test_one_at_a_time_has_all_threads_and_the_terminal(fake_scripts, capfd, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name in SCRIPTS:
        (fake_scripts / f"{name}.py").write_text("import os; print('threads', os.environ.get('OMP_NUM_THREADS'))")
    with pytest.raises(RunError):
        train_missing("some", THREE, 1)
    out = [line for line in capfd.readouterr().out.splitlines() if line]
    assert out[::2] == ["threads None"] * 3 and out[1] == "bn.py --seed 1: ended with status 0"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_study_ends_all_its_trainings_and_says_how_to_go_on(fake_scripts, number):
    for name, other in zip(SCRIPTS, ["gn", "ln", "bn"], strict=True):
        (fake_scripts / f"{name}.py").write_text(f"""
import os, pathlib, time
pathlib.Path("{name}.here").touch()
while not pathlib.Path("{other}.here").exists():
    time.sleep(0.05)
if "{name}" == "bn":
    os.kill(os.getppid(), {int(number)})
time.sleep(60)
pathlib.Path("late").touch()
""")
    start, before = time.monotonic(), signal.getsignal(signal.SIGTERM)
    with pytest.raises(RunError, match=r"^interrupted; the same command goes on from there$"):
        train_missing("some", THREE, 3)
    signal.signal(signal.SIGTERM, before)
    assert time.monotonic() - start < 30 and not (fake_scripts / "late").exists()


def test_as_many_trainings_run_as_there_are_cores_and_memory_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert 1e8 < machine.free_memory() < 1e14
    for memory, count in ((100e9, 8), (7e9, 3), (1e9, 1)):
        monkeypatch.setattr(machine, "free_memory", lambda memory=memory: memory)
        assert jobs.fitting() == count
    monkeypatch.setattr(machine, "free_memory", lambda: 100e9)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert jobs.fitting() == 1


@pytest.mark.parametrize("count", ["0", "-1"])
def test_no_trainings_at_a_time_are_refused(world, small_ablation, count):
    with pytest.raises(SystemExit, match=f"ablation: jobs can't be {count}: 1 or more"):
        ablation.main(["--jobs", count])


# --- Seeds ---


def test_seeds_are_trained_if_they_were_not_here_or_by_other_code(world, trainings, monkeypatch, capsys):
    for script in (bn, gn, ln):
        monkeypatch.setattr(script, "RECIPE", replace(script.RECIPE, batch_size=90, epochs=1))
    code = {name: f"code of {name}" for name in SCRIPTS}
    monkeypatch.setattr(scripts, "code", lambda folder, name: code[name])
    assert run(common.script_of("bn")) == 0
    capsys.readouterr()
    seeds.main(["--list", "--seeds", "0", "1"])
    listed = [line.split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines()]
    assert listed == ["gn.py", "ln.py", "bn.py --seed 1", "gn.py --seed 1", "ln.py --seed 1"]
    seeds.main(["--seeds", "0"])
    assert trainings == [["gn.py"], ["ln.py"]]
    seeds.main(["--seeds", "0"])
    code["ln"] = "another"
    seeds.main(["--seeds", "0"])
    shutil.rmtree(world.results / "bn")
    seeds.main(["--seeds", "0"])
    assert trainings[2:] == [["ln.py"], ["bn.py"]]
    monkeypatch.setattr(bn, "RECIPE", replace(bn.RECIPE, max_lr=1e30, aux_lr=1e30))
    code["bn"] = "too fast"
    with pytest.raises(SystemExit, match=r"seeds: 1 of 1 trainings failed:\n  bn.py, seed 0: "):
        seeds.main(["--seeds", "0"])


def test_the_code_of_a_training_is_its_script_and_what_its_weights_depend_on(tmp_path):
    (tmp_path / "support").mkdir()
    names = ("bn.py", *scripts.TRAINING)
    for name in names:
        (tmp_path / name).write_text("")
        assert (common.ROOT / name).exists()
    seen = {scripts.code(tmp_path, "bn")}
    for number, name in enumerate(names):
        (tmp_path / name).write_text("x")
        seen.add(scripts.code(tmp_path, "bn"))
        assert len(seen) == number + 2
    (tmp_path / "gn.py").write_text("y")
    assert scripts.code(tmp_path, "bn") in seen and scripts.code(tmp_path, "gn") not in seen


# --- Findings ---


def fabricated(accuracy, sd=0.5, diverged=False):
    """Metrics of three runs around an accuracy in per cent."""
    return [{"diverged": diverged, "val_accuracy": None if diverged else (accuracy + deviation) / 100,
             "train_accuracy": None if diverged else (accuracy + 10 + deviation) / 100} for deviation in (-sd, 0, sd)]


def test_a_difference_is_stated_only_beyond_twice_the_spread():
    found = {(line, p): fabricated(70 + (2 if line == "gn" and p == 0.2 else 0.5) * (p > 0))
             for line in SCRIPTS for p in dropout.SHARES}
    assert dropout.finding(found) == (
        "\"Dropout makes a significant difference to overfitting\" is not borne out here;\n"
        "it raises the validation accuracy of GN (at 0.2), and lowers that of no variant")
    table = dropout.table(found)
    assert "| group norm | 70.00 ± 0.50 | 70.50 ± 0.50 | **72.00 ± 0.50** | 70.50 ± 0.50 |" in table
    assert table.count("**") == 2 and table.count("70.50 ± 0.50") == 8
    assert "| layer norm | 10.00 ± 0.00 | 10.00 ± 0.00 | 10.00 ± 0.00 | 10.00 ± 0.00 |" in table
    assert len(dropout.draw(found).axes) == 2
    narrow = [metrics | {"train_accuracy": metrics["val_accuracy"] + 0.02} for metrics in fabricated(65)]
    finding = dropout.finding(found | {("bn", 0.05): narrow, ("bn", 0.2): narrow})
    assert "holds for BN (at 0.05 and 0.2);" in finding and "lowers that of BN (at 0.05 and 0.2)" in finding


def test_ways_to_connect_layers_are_told_apart_beyond_the_noise():
    reached = {"none": 70, "add": 72, "concatenate": 75}
    groups = {(line, way): [metrics | {"val_loss": 1 + number / 100, "parameters": 48_000, "multiply_adds": 9.5e6}
                            for number, metrics in enumerate(fabricated(72 if line == "gn" else reached[way]))]
              for line in SCRIPTS for way in connections.WAYS}
    seconds = {f"{line} {way}": [10.0, 12.0, 30.0] for line in SCRIPTS for way in connections.WAYS}
    seconds["ln concatenate"], seconds["bn concatenate"] = [15.0, 15.0, 33.0], [11.0, 12.0, 36.0]
    found = {"groups": groups, "cost": {"seconds": seconds, "machine": "an abacus"}}
    assert connections.finding(found) == (
        "Beyond the noise, adding layers raises the accuracy of BN, LN and lowers the loss of no variant;\n"
        "concatenating them instead raises the accuracy of BN, LN and lowers the loss of no variant, "
        "and takes 1.00 to 1.25 times as long")
    table = connections.table(found)
    row = "| layer norm, concatenated | **75.00 ± 0.50** | 1.010 ± 0.010 | 10.00 ± 0.00 | 48,000 | 9.5 | 15.0 | 1.25 |"
    assert row in table and "| group norm, unconnected | 72.00 ± 0.50 |" in table
    assert table.endswith("medians of 6 rounds in which every network had its turn, on: an abacus.\n")
    assert len(connections.draw(found).axes) == 3
    groups["gn", "concatenate"] = [metrics | {"val_loss": 0.9} for metrics in groups["gn", "concatenate"]]
    assert "lowers the loss of no variant;" in connections.finding(found)
    assert "lowers the loss of GN, and" in connections.finding(found)


def test_the_study_of_connections_trains_each_way_and_measures_what_its_steps_take(world, monkeypatch):
    assert [plan(variant, flags)[1].connections for variant, flags in connections.TRAININGS.values()][::3] == [
        *connections.WAYS] * 3
    monkeypatch.setattr(connections, "ROUNDS", 2)
    monkeypatch.setattr(connections, "STEPS", 1)
    cost = connections.measure()
    assert list(cost["seconds"]) == [f"{variant} {way}" for variant in SCRIPTS for way in connections.WAYS]
    assert all(len(rounds) == 1 and rounds[0] > 0 for rounds in cost["seconds"].values())
    assert cost["machine"] == machine.in_words() and machine.cpu_model() in cost["machine"]
    assert connections.read() is None
    path = numbers_file("connections", "json")
    path.parent.mkdir(parents=True)
    storage.write_signed(path, json.dumps(cost).encode())
    assert connections.read() is None
    monkeypatch.setattr(connections, "pooled", lambda name, trainings: {"some": "groups"})
    assert connections.read() == {"groups": {"some": "groups"}, "cost": cost}


def test_the_highest_stable_rate_is_the_last_before_runs_diverge_or_fail():
    last = {"bn": 3.0, "gn": 1.0, "ln": 0.3, "none": 0.03}
    found = {(line, rate): fabricated(60, diverged=rate > last[line])
             for line in study.LINES for rate in learning_rate.RATES}
    found["ln", 0.3] = fabricated(30)  # still there, but far from its best
    finding = learning_rate.finding(found)
    assert finding == "Highest stable rate: batch norm 3, group norm 1, layer norm 0.1, no norm 0.03"
    rows = learning_rate.table(found).splitlines()
    assert rows[5].startswith(f"| no norm |{' 60.00 ± 0.50 |' * 3} **60.00 ± 0.50** | 3 of 3 diverged |")
    assert sum(row.count("**") for row in rows) == 2 * 4 and "0.8 times" in rows[-1]


def test_the_family_of_groups_and_small_batches_are_told_with_their_noise():
    family = {("gn", number): fabricated(70 + 2 * (number in (4, 8))) for number in groups.GROUPS}
    others = {("bn", None): fabricated(75), ("none", None): fabricated(72)}
    assert groups.finding(family | others) == (
        "Best numbers of groups, within the noise: 4, 8 (72.00 ± 0.50 %); batch norm 75.00 ± 0.50 %; "
        "no norm 72.00 ± 0.50 %")
    assert ("| **70.00 ± 0.50** | **70.00 ± 0.50** | 72.00 ± 0.50 | 72.00 ± 0.50 | **70.00 ± 0.50** | "
            "**75.00 ± 0.50** | 72.00 ± 0.50 |") in groups.table(family | others)
    sizes = {(line, size): fabricated(60) for line in SCRIPTS for size in batch_size.SIZES}
    sizes["bn", 2] = fabricated(0, diverged=True)
    crosses = [line for line in batch_size.draw(sizes).axes[0].lines if line.get_marker() == "x"]
    assert [point for line in crosses for point in zip(*line.get_data(), strict=True)] == [(2, 90)] * 3
    sizes["bn", 2] = fabricated(55)
    finding = batch_size.finding(sizes)
    assert finding == "Batches of 2 instead of 128, in points of accuracy: BN -5.0, GN +0.0 (noise), LN +0.0 (noise)"
    assert f"| batch norm | **55.00 ± 0.50** |{' 60.00 ± 0.50 |' * 7}" in batch_size.table(sizes)


def test_altered_images_are_told_by_kind_with_the_spread_over_seeds():
    usual = {line: [0.70, 0.71, 0.72] for line in [*SCRIPTS, "bn adapted"]}
    found = {"as they are": [usual]} | {name: [usual] * len(how[1]) for name, how in corruptions.ALL.items()}
    found["Gaussian blur"] = [usual, usual, usual | {"bn": [0.66, 0.67, 0.68], "ln": [0.69, 0.70, 0.71]}]
    found["contrast"] = [usual, usual, usual | {"gn": [0.1, 0.1, 0.1], "bn adapted": [0.8, 0.8, 0.8]}]
    table = corruptions.table(found)
    assert "| Gaussian blur, 1 | **67.00 ± 1.00** | 71.00 ± 1.00 | 70.00 ± 1.00 | 71.00 ± 1.00 |" in table
    assert "| contrast, 0.15 | 71.00 ± 1.00 | **10.00 ± 0.00** | 71.00 ± 1.00 | 80.00 ± 0.00 |" in table
    assert "| greyscale | 71.00 ± 1.00 | 71.00 ± 1.00 | 71.00 ± 1.00 | 71.00 ± 1.00 |" in table
    assert corruptions.finding(found) == (
        "Best at the severest of each kind, within the noise:\nnoise BN, GN, LN; blur GN, LN; "
        "brightness and contrast BN, LN; compression BN, GN, LN; colour BN, GN, LN.\n"
        "Batch norm with statistics of the altered images is better than all of them at brightness and contrast")
    assert len(corruptions.draw(found).axes) == 8


def test_adapted_batch_norm_has_the_statistics_of_the_images():
    torch.manual_seed(0)
    model, images = common.build_model(bn.RECIPE), torch.randint(256, (1000, 3, 32, 32), dtype=torch.uint8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    again = corruptions.adapted(model, images)
    inputs = torch.cat([common.normalize(batch) for batch in images.split(500)])
    seen = model.C1.conv(inputs)
    torch.testing.assert_close(again.C1.norm.running_mean, seen.mean((0, 2, 3)), atol=2e-3, rtol=0)  # some are bfloat16
    torch.testing.assert_close(again.C1.norm.running_var, seen.var((0, 2, 3)), atol=1e-2, rtol=0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not again.training and not any(layer.training for layer in again.modules())
    assert corruptions.adapted(common.build_model(SCRIPTS["ln"]), images[:10]) is None


def test_confusions_name_the_largest_and_whether_the_claim_holds():
    counts = torch.eye(10, dtype=torch.int64) * 900
    counts[3, 5], counts[5, 3], counts[2, 0] = 90, 80, 70
    assert confusions.largest(counts) == ["cat taken for dog 90", "dog taken for cat 80", "bird taken for airplane 70"]
    metrics = [{"most_accurate_class": "automobile", "least_accurate_class": worst}
               for worst in ("cat", "cat", "bird")]
    finding = "does not always hold: of 3 runs, the best class is automobile in 3; the worst is cat in 2 and bird in 1"
    assert finding in confusions.finding({"runs": metrics})
    assert "worst at cat\" holds: of 2 runs" in confusions.finding({"runs": metrics[:2]})
    table = confusions.table({"counts": {"gn": counts}})
    assert "| group norm | cat taken for dog 90 | dog taken for cat 80 | bird taken for airplane 70 |" in table


# --- Measurements ---


def test_the_coloured_cube_is_what_a_norm_sees():
    layers = {"bn": nn.BatchNorm1d(6), "gn": nn.GroupNorm(3, 6), "ln": nn.GroupNorm(1, 6)}
    for variant, layer in layers.items():
        x = torch.randn(norms.CUBE, generator=torch.Generator().manual_seed(0), requires_grad=True)
        layer.train()(x)[0, 0, 0].backward()
        assert torch.equal(x.grad != 0, norms.index_set(variant)), variant


def test_the_norms_are_drawn_from_measured_numbers(copied):
    study.main(norms.STUDY, [])
    report.main(["pages"])
    numbers = json.loads(numbers_file("norms", "json").read_text())
    for variant in SCRIPTS:
        assert all(sum(counts) == 30 * 16 * 16 for counts in numbers[variant]["after"]["counts"])
    assert numbers["bn"]["after"]["means"] == pytest.approx([0] * 8, abs=0.01)
    assert numbers["bn"]["after"]["deviations"] == pytest.approx([1] * 8, abs=0.01)
    assert max(map(abs, numbers["ln"]["after"]["means"])) > 0.1  # what is equal is the mean over all channels
    assert (copied.results / "norms.png").stat().st_size > 10_000
    assert "(norms.png)" in (copied.results / "README.md").read_text()


def test_the_study_of_corruptions_measures_every_variant_and_needs_no_training(copied):
    with pytest.raises(SystemExit, match="weights of two seeds"):
        study.main(corruptions.STUDY, [])
    for variant in SCRIPTS:
        assert run(common.script_of(variant), "--seed", "1") == 0
    study.main(corruptions.STUDY, [])
    found = json.loads(numbers_file("corruptions", "json").read_text())
    for variant in SCRIPTS:
        seeds = [metrics_of(copied, name)["test_accuracy"] for name in (variant, f"{variant}-seed=1")]
        assert found["as they are"][0][variant] == seeds
    for name, (_, strengths) in corruptions.ALL.items():
        assert len(found[name]) == len(strengths)
        assert all(set(reached) == {*SCRIPTS, "bn adapted"} for reached in found[name])
        assert all(len(seeds) == 2 for reached in found[name] for seeds in reached.values())
    report.main(["pages"])
    assert "(corruptions.png)" in (copied.results / "README.md").read_text()
