"""Kill, interrupt and damage short trainings on synthetic data, and see that nothing is lost: `make torture`.

Every training runs in a process of its own, which kills itself at a chosen moment (functions of torch, os, pathlib
and matplotlib are wrapped there, the project's own code is as it is) or is killed from here at a random one.
"""

import contextlib
import io
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import bn
import common
import gn
from support import runs, storage
from tests import world
from tools import report

FLAGS = "--device cpu --epochs 3 --batch-size 32".split()
CHILD = """
import json, os, pathlib, signal, sys
import torch, torch.nn.functional as F, matplotlib.figure, pytest, common, bn, gn, ln
from tests.world import make_world
spec = json.loads(sys.argv[1])
world = make_world(pathlib.Path(spec["folder"]), pytest.MonkeyPatch())
count = 0

def at(phase, run=lambda: None):
    # die at the chosen occurrence of a phase
    global count
    if phase == spec["phase"]:
        count += 1
        if count == spec["occurrence"]:
            run()
            os.kill(os.getpid(), signal.SIGKILL)

def wrap(owner, name, before):
    original = getattr(owner, name)
    def wrapped(*args, **options):
        before(*args, **options)
        return original(*args, **options)
    setattr(owner, name, wrapped)

write = pathlib.Path.write_bytes
wrap(torch.optim.SGD, "step", lambda *args: at("mid-epoch"))
wrap(F, "cross_entropy", lambda *args: torch.is_grad_enabled() or at("mid-evaluation"))
wrap(matplotlib.figure.Figure, "savefig", lambda *args: at("drawing"))

def before_write(path, data):
    if "checkpoint" in path.name:
        at("mid-checkpoint", lambda: write(path, bytes(data)[: len(data) // 2]))

def before_replace(source, target):
    if "checkpoint" in str(source):
        at("mid-checkpoint")
    if os.path.isdir(source):
        at("final renames")

wrap(pathlib.Path, "write_bytes", before_write)
wrap(os, "replace", before_replace)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent in the background would have it ignored
print("ready", flush=True)
common.main({"bn": bn, "gn": gn, "ln": ln}[spec["variant"]].RECIPE, spec["flags"])
"""
OCCURRENCES = {"mid-epoch": 24, "mid-checkpoint": 6, "mid-evaluation": 6, "drawing": 3, "final renames": 2}


def start(folder, variant, flags, phase=None, occurrence=0):
    """A training in a process of its own, with one thread, in the world `folder`."""
    spec = {"folder": str(folder), "variant": variant, "flags": flags, "phase": phase, "occurrence": occurrence}
    command = [sys.executable, "-c", CHILD, json.dumps(spec)]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            cwd=common.ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})


def prepare(folder, variant, seed, files):
    """A folder with the data set, in which an older run waits to be replaced; the flags of the training."""
    world.put(folder / "data", files.cache)
    name = f"{variant}-epochs=3-batch_size=32" + (f"-seed={seed}" if seed else "")
    world.put(folder / "results" / name, {"metrics.json": b"of an older run"})
    return [*FLAGS, "--seed", str(seed)]


def outcome(folder):
    """All that a run leaves, its durations aside; tensors as lists."""
    (run,) = (path.parent for path in (folder / "results").glob("*/SHA256SUMS"))
    storage.verify(run)
    if list((folder / "results" / ".new").glob("*/*")):
        raise RuntimeError(f"{folder} has leftovers of a training")
    metrics, history = runs.read(run)
    for row in [metrics, *history]:
        for key in ("seconds", "seconds_per_epoch", "peak_memory_mb"):
            row.pop(key, None)
    tensors = [torch.load(run / name, weights_only=True) for name in ("model.pt", "predictions.pt")]
    return metrics, history, [{key: value.tolist() for key, value in part.items()} for part in tensors]


def killed_training(folder, variant, seed, phases, draw, files):
    """Train, dying once in each of `phases`; the kills by phase, and what is left in the end."""
    flags, kills = prepare(folder, variant, seed, files), Counter()
    for phase in phases:
        process = start(folder, variant, flags, phase, draw.randint(1, OCCURRENCES.get(phase, 1)))
        if phase == "random moment":
            process.stdout.readline()  # "ready"
            time.sleep(draw.uniform(0, 3))
            process.kill()
        process.communicate(timeout=120)
        kills[phase] += process.returncode == -signal.SIGKILL
        if process.returncode == 0:
            return kills, outcome(folder)
    process = start(folder, variant, flags)
    _, errors = process.communicate(timeout=120)
    if process.returncode:
        raise RuntimeError(f"{folder}: {errors}")
    return kills, outcome(folder)


def interrupted_training(folder, variant, seed, number, draw, files):
    """Interrupt a training by a signal, from its first line on; the complaint if any, and what is left in the end."""
    flags = prepare(folder, variant, seed, files)
    process = start(folder, variant, flags)
    lines = [process.stdout.readline() for _ in range(2)]  # "ready", and the first line of the training
    time.sleep(draw.uniform(0, 0.8))
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    fault = None
    if process.returncode != 128 + number or errors.count("\n") != 1 or "goes on" not in errors:
        fault = f"{variant}, {number!r} after {lines[1]!r}: status {process.returncode}, {errors!r}"
    start(folder, variant, flags).communicate(timeout=120)
    return fault, outcome(folder)


def kill(trainings, draw, folder, files):
    """The first half of the proof. Raises SystemExit if a run differs, or a phase was never hit."""
    variants, phases = list(world.SCRIPTS), [*OCCURRENCES, "random moment"]
    jobs = []
    for index in range(trainings):
        chosen = [phases[(index + shift) % len(phases)] for shift in (0, 1, 3)][: draw.randint(1, 3)]
        chosen.sort(key=lambda phase: phase in ("drawing", "final renames"))  # what comes late in a run comes last
        jobs.append((killed_training, variants[index % 3], index // 3 % 2, chosen))
    for index in range(trainings // 2):
        number = (signal.SIGINT, signal.SIGTERM)[index % 2]
        jobs.append((interrupted_training, variants[index % 3], index // 3 % 2, number))
    keys = sorted({job[1:3] for job in jobs})
    with ThreadPoolExecutor(2) as pool:
        whole = {key: pool.submit(killed_training, folder / f"{key}", *key, [], None, files) for key in keys}
        outcomes = [pool.submit(job, folder / str(index), variant, seed, how, random.Random(draw.random()), files)
                for index, (job, variant, seed, how) in enumerate(jobs)]
        identical, kills, faults = 0, Counter(dict.fromkeys(phases, 0)), []
        for (job, variant, seed, how), end in zip(jobs, outcomes, strict=True):
            first, left = end.result()
            same = left == whole[variant, seed].result()[1]
            identical += same
            if job is killed_training:
                kills += first
                what = f"killed: {', '.join(phase for phase in how if first[phase]) or 'ended before its kill'}"
            else:
                faults += [first] if first else []
                what = f"interrupted by {how.name}"
            print(f"{variant} seed {seed} {what}: {'identical' if same else 'DIFFERENT'}", flush=True)
    for phase in phases:
        print(f"{kills[phase]:3d} kills: {phase}")
    for fault in faults:
        print(fault)
    print(f"killed {kills.total()} times, identical in {identical} of {len(jobs)}")
    if identical < len(jobs) or faults or not all(kills[phase] for phase in phases):
        sys.exit("torture: a run was not the same, a signal was not obeyed, or a phase was not hit")


class Malice:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def spoil(path, kind, other, mark, draw):
    """Damage a file; True if its bytes are still the same."""
    data = path.read_bytes()
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated":
        path.write_bytes(data[: draw.randrange(len(data))])
    elif kind == "bit flipped":
        place = draw.randrange(len(data))
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << draw.randrange(8)]) + data[place + 1:])
    elif kind == "another's":
        path.write_bytes(other)
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    elif kind == "malicious":
        path.write_bytes(pickle.dumps(Malice(str(mark))))
    return path.is_file() and path.read_bytes() == data


def run_command(command, *args):
    """Run a function of ours in this process: exit status, and all that it printed."""
    text, status = io.StringIO(), 0
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        try:
            command(*args)
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 1
            text.write(str(stop.code))
    return status, text.getvalue()


TRAIN, PLOTS, CHECK = (common.main, bn.RECIPE, FLAGS[:2]), (report.main, ["plots"]), (report.main, ["check"])
SPOILED = {  # a file, another of its kind, and the commands that must refuse it
    "results/.new/bn/checkpoint.pt": ("results/.new/gn/checkpoint.pt", [TRAIN]),
    "data/data_batch_2.bin": ("data/data_batch_3.bin", [TRAIN]),
    "data/test_batch.bin": ("data/data_batch_1.bin", [TRAIN]),
    "results/studies/dropout.jsonl": ("results/studies/groups.jsonl", [PLOTS, CHECK]),
    **{f"results/bn/{name}": (f"results/gn/{name}", [PLOTS, CHECK])
       for name in ("metrics.json", "history.csv", "model.pt", "predictions.pt")}}
KINDS = ("empty", "truncated", "bit flipped", "another's", "folder", "malicious")


def make_sound(folder, patch):
    """A folder with complete runs, lines of studies, and interrupted trainings; see that the commands work there."""
    folder.mkdir()
    sound = world.make_world(folder, patch)
    world.put(sound.data, sound.cache)
    for script in (bn, gn):
        run_command(common.main, script.RECIPE, FLAGS[:2])
    (sound.results / "studies").mkdir()
    for name in ("dropout", "groups"):
        line = json.dumps({"run": name, "recipe": {}})
        storage.write_signed(sound.results / "studies" / f"{name}.jsonl", line.encode())
    run_command(report.write_pages)
    for script in (bn, gn):
        with pytest.MonkeyPatch.context() as inner:
            world.interrupt_after(1, inner)
            run_command(common.main, script.RECIPE, FLAGS[:2])
    world.interrupt_after(0, patch)
    for command, expected in (TRAIN, "continuing after epoch 1"), (PLOTS, "| bn |"), (CHECK, "as results/ yields"):
        status, text = run_command(*command)
        if expected not in text:
            sys.exit(f"torture: without damage, {expected!r} is not said, but status {status}, {text!r}")


def damage(cases, draw, folder):
    """The second half of the proof. Raises SystemExit if a damage goes unnoticed or is executed."""
    with pytest.MonkeyPatch.context() as patch:
        make_sound(folder / "sound", patch)
        plan = [(name, kind) for name in SPOILED for kind in KINDS]
        draw.shuffle(plan)
        good = 0
        for case in range(cases):
            name, kind = plan[case % len(plan)]
            other, commands = SPOILED[name]
            shutil.copytree(folder / "sound", folder / "case")
            world.make_world(folder / "case", patch)
            path, mark = folder / "case" / name, folder / "mark"
            same = spoil(path, kind, (folder / "case" / other).read_bytes(), mark, draw)
            verdicts = []
            for command in commands:
                status, text = run_command(*command)
                named = path.name in text and "Traceback" not in text
                refused = named and ("set aside" in text or (status == 1 and "`make" in text))
                verdicts.append((same or refused) and not mark.exists())
            good += all(verdicts)
            if not all(verdicts):
                print(f"{name} {kind}: status {status}, {text!r}")
            shutil.rmtree(folder / "case")
        print(f"{cases} cases, {good} refused or harmless, {cases - good} unnoticed")
        if good < cases:
            sys.exit("torture: damage went unnoticed")


def main(trainings=21, cases=210, seed=None):
    seed = random.randrange(10**6) if seed is None else seed
    print(f"seed {seed}", flush=True)
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        damage(cases, draw, Path(folder))
        kill(trainings, draw, Path(folder), world.make_files())


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
