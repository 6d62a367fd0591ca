"""Test the baseline against our scripts, and the page of the benchmark against its numbers."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import bn
import common
import gn
from support import files
from tools import baseline, bench

MACS = {"C1": (3, 16, 9, 32), "C2": (16, 16, 9, 32), "c3": (16, 16, 1, 32), "C4": (16, 16, 9, 16),
        "C5": (16, 32, 9, 16), "C6": (32, 32, 9, 16), "c7": (32, 32, 1, 16), "C8": (32, 32, 9, 8),
        "C9": (32, 32, 9, 8), "C10": (32, 32, 9, 8), "c11": (32, 10, 1, 1)}  # channels in, out; kernel's area; side


@pytest.fixture
def quick(world, monkeypatch):
    """Make turns short, and undo what a turn replaces."""
    for name, value in {"ROUNDS": 1, "STEPS": 1, "WARMUP": 1, "MATRIX": 64}.items():
        monkeypatch.setattr(bench, name, value)
    for owner, name in ((common, "augment"), (common, "normalize"), (torch, "channels_last"), (common, "precision"),
                        (gn, "GroupNorm"), (nn, "Dropout2d")):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    return world


def test_baseline_trains_our_network_on_our_images(world, monkeypatch):
    monkeypatch.setattr(common, "precision", lambda device: "float32")
    monkeypatch.setattr(baseline, "BATCH_SIZE", 16)
    train_loader, val_loader = baseline.build_loaders(workers=0)
    _, (images, targets) = common.load_splits(bn.RECIPE, SimpleNamespace(device="cpu", train_images=None))
    image, target = val_loader.dataset[7]
    assert target == targets[7]
    torch.testing.assert_close(image, common.normalize(images)[7])
    torch.manual_seed(0)
    model = common.build_model(bn.RECIPE)
    optimizer = baseline.build_optimizer(model)
    losses = [baseline.train(model, train_loader, optimizer) for _ in range(3)]
    assert losses[2] < losses[0]
    _, accuracy, logits = common.evaluate(model, images, targets)
    assert baseline.evaluate(model, val_loader) == accuracy
    torch.testing.assert_close(torch.cat([model(batch) for batch, _ in val_loader]), logits)


@pytest.mark.parametrize("removed", ["channels_last", "contiguous"])
def test_removed_speed_ups_are_gone(quick, removed):
    bench.remove(removed)
    if removed == "channels_last":
        assert common.normalize(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).is_contiguous()
    assert (type(gn.group_norm(8, 4)) is nn.GroupNorm) == (removed == "contiguous")


def test_bench_measures_everything_and_writes_the_page(quick, monkeypatch):
    monkeypatch.setattr(bench, "run_turn", bench.measure)  # in this process
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "0")
    bench.main([])
    saved = json.loads((files.RESULTS / "bench.json").read_text())
    assert all(min(values) > 0 for parts in saved["seconds_per_image"].values() for values in parts.values())
    assert (files.RESULTS / "bench.md").read_text() == bench.saved_page()
    macs = [a * b * area * side**2 for a, b, area, side in MACS.values()]
    assert saved["bn_macs_per_image"] == pytest.approx(3 * sum(macs) - macs[0], abs=30)  # 30: the bias of c11


def test_baseline_is_a_command(world, capsys, monkeypatch):
    monkeypatch.setattr(baseline, "EPOCHS", 1)
    baseline.main()
    assert "epoch  1: training loss" in capsys.readouterr().out


def test_page_has_the_ratios_of_its_numbers():
    seconds = {name: {"train": [1e-3] * 3, "evaluate": [4e-4] * 3} for name in bench.IMPLEMENTATIONS}
    seconds["bn"] = {"train": [4e-4, 5e-4, 1e-3], "evaluate": [1e-4] * 3}
    page = bench.page({"machine": "an abacus", "note": "", "precision": "bfloat16", "bn_macs_per_image": 25_000_000,
                       "matrix_macs_per_second": [1e11, 2e11, 3e11], "seconds_per_image": seconds})
    assert "| bn | 2,000 | 10,000 |" in page and "| baseline, 2 workers | 1,000 | 2,500 |" in page
    assert "trains 2.00x and evaluates 4.00x as fast" in page
    assert "| bn | bfloat16 | float32 | 2.00x as long | 4.00x as long |" in page
    assert "400 GFLOP/s" in page and "25% of that rate" in page
