"""Test the baseline against our scripts, and the page of the benchmark against its numbers."""

import json
from types import SimpleNamespace

import torch

import bn
import common
from support import files
from tests.world import put
from tools import bench


def test_baseline_trains_our_network_on_our_images(world, monkeypatch):
    monkeypatch.setattr(common, "precision", lambda device: "float32")
    monkeypatch.setattr(bench, "BATCH_SIZE", 16)
    train_loader, val_loader = bench.build_loaders(workers=0)
    _, (images, targets) = common.load_splits(bn.RECIPE, SimpleNamespace(device="cpu", train_images=None))
    image, target = val_loader.dataset[7]
    assert target == targets[7]
    torch.testing.assert_close(image, common.normalize(images)[7])
    torch.manual_seed(0)
    model = common.build_model(bn.RECIPE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = [bench.train_baseline(model, train_loader, optimizer) for _ in range(3)]
    assert losses[2] < losses[0]
    _, accuracy, logits = common.evaluate(model, images, targets)
    assert bench.evaluate_baseline(model, val_loader) == accuracy
    torch.testing.assert_close(torch.cat([model(batch) for batch, _ in val_loader]), logits)


def test_bench_measures_everything_and_writes_the_page(world, monkeypatch):
    for name in "ROUNDS", "STEPS", "WARMUP":
        monkeypatch.setattr(bench, name, 1)
    bench.main()
    saved = json.loads((files.RESULTS / "bench.json").read_text())
    assert all(min(values) > 0 for parts in saved["seconds_per_image"].values() for values in parts.values())
    assert (files.RESULTS / "bench.md").read_text() == bench.saved_page()


def test_page_has_the_ratios_of_its_numbers(world):
    seconds = {name: {"train": [1e-3] * 3, "evaluate": [4e-4] * 3} for name in bench.IMPLEMENTATIONS}
    seconds["bn"] = {"train": [4e-4, 5e-4, 1e-3], "evaluate": [1e-4] * 3}
    put(files.RESULTS, {"bench.json": json.dumps({"machine": "an abacus", "seconds_per_image": seconds}).encode()})
    page = bench.saved_page()
    assert "| bn | 2,000 | 10,000 |" in page and "| baseline, 2 workers | 1,000 | 2,500 |" in page
    assert "an abacus" in page and "trains 2.00 times and evaluates 4.00 times as fast" in page
