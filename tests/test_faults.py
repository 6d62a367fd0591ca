"""Fault-injection tests: kill, interrupt and damage short runs, and see that nothing is lost. Slow: `make test-all`."""

import hashlib
import random
import signal
import time

import pytest

import bn
import gn
from tests.world import BOMB, SCRIPTS, child, flip_bit, interrupt_after, metrics_of, run, truncate, what_is_left

pytestmark = pytest.mark.slow
FLAGS, NAME = "--epochs 4 --batch-size 32".split(), "{}-epochs=4-batch_size=32"
DIE = "os.kill(os.getpid(), signal.SIGKILL)"


def start(world, variant, patch=""):
    """Start a run in a process of its own, after some code that patches it, and wait for its first line."""
    process = child(world, f"import os, signal\n{patch}\ncommon.main({variant}.RECIPE, {['--device', 'cpu', *FLAGS]})")
    process.stdout.readline()
    return process


@pytest.mark.parametrize("variant", SCRIPTS)
def test_a_run_stopped_at_random_moments_ends_with_the_same_bits(world, variant):
    begin, name, draw = time.monotonic(), NAME.format(variant), random.Random()
    assert run(SCRIPTS[variant], *FLAGS) == 0
    uninterrupted, seconds = what_is_left(world, name), time.monotonic() - begin
    for number, statuses in ((signal.SIGTERM, (0, 143, -15)), (signal.SIGKILL, (0, -9)), (signal.SIGKILL, (0, -9))):
        process, moment = start(world, variant), draw.uniform(0, seconds)
        time.sleep(moment)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode in statuses, (moment, errors)
    assert run(SCRIPTS[variant], *FLAGS) == 0
    assert what_is_left(world, name) == uninterrupted, moment
    assert {path.suffix for path in world.results.glob(".unfinished/*")} == {".lock"}


@pytest.mark.parametrize("patch", [
    f"files.flush = lambda path: {DIE}",  # in the first checkpoint
    f"common.evaluate_test_set = lambda *args: {DIE}",
    f"runs.plots.plot_run = lambda *args: {DIE}",
    f"rename = os.replace; os.replace = lambda a, b: {DIE} if os.path.isdir(a) and 'unf' in str(a) else rename(a, b)",
    f"publish = files.publish; files.publish = lambda *args: (publish(*args), {DIE})"], ids=range(5))
def test_a_run_killed_while_it_saves_ends_with_the_same_bits(world, patch):
    name = NAME.format("bn")
    assert run(bn.RECIPE, *FLAGS) == 0
    uninterrupted = what_is_left(world, name)
    assert start(world, "bn", patch).wait(60) == -signal.SIGKILL
    assert run(bn.RECIPE, *FLAGS) == 0
    assert what_is_left(world, name) == what_is_left(world, f".previous/{name}") == uninterrupted
    assert not list(world.results.glob(".unfinished/*.pt"))


@pytest.mark.parametrize("damage", [
    lambda good, other: b"", lambda good, other: truncate(good), lambda good, other: flip_bit(good),
    lambda good, other: other, lambda good, other: None, lambda good, other: BOMB,
    lambda good, other: hashlib.sha256(BOMB).digest() + BOMB,
], ids=["empty", "truncated", "bit flipped", "another's", "folder", "malicious", "malicious, right digest"])
def test_a_damaged_checkpoint_is_set_aside_and_nothing_in_it_is_executed(world, capsys, monkeypatch, damage):
    monkeypatch.chdir(world.folder)
    for script in (bn.RECIPE, gn.RECIPE):
        with monkeypatch.context() as patch:
            interrupt_after(1, patch)
            assert run(script, *FLAGS) == 130
    path, other = (world.results / ".unfinished" / f"{NAME.format(variant)}.pt" for variant in ("bn", "gn"))
    data = damage(path.read_bytes(), other.read_bytes())
    path.unlink()
    path.mkdir() if data is None else path.write_bytes(data)
    assert run(bn.RECIPE, *FLAGS) == 0
    out = capsys.readouterr().out
    assert "it is now" in out and "resuming" not in out and metrics_of(world, NAME.format("bn"))["epochs"] == 4
    assert not (world.folder / "exploded").exists()
