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
    monkeypatch.setattr(bench, "BATCH_SIZE", 16)
    loader = bench.build_loader(workers=0)
    (images, targets), _ = common.load_splits(bn.RECIPE, SimpleNamespace(device="cpu", train_images=None))
    monkeypatch.setattr(bench, "AUGMENT", bench.transforms.Compose(bench.AUGMENT.transforms[2:]))
    image, target = loader.dataset[7]
    assert target == targets[7] and len(loader.dataset) == len(images)
    torch.testing.assert_close(image, common.normalize(images)[7])
    torch.manual_seed(0)
    model = common.build_model(bn.RECIPE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = [bench.train_baseline(model, loader, optimizer) for _ in range(3)]
    assert losses[2] < losses[0]


def test_bench_measures_everything_and_writes_the_page(world, monkeypatch):
    for name in "ROUNDS", "STEPS", "WARMUP":
        monkeypatch.setattr(bench, name, 1)
    bench.main()
    saved = json.loads((files.RESULTS / "bench.json").read_text())
    assert all(min(values) > 0 for values in saved["seconds_per_image"].values())
    assert (files.RESULTS / "bench.md").read_text() == bench.saved_page()


def test_page_has_the_ratios_of_its_numbers(world):
    seconds = {name: [1e-3] * 3 for name in bench.IMPLEMENTATIONS} | {"bn": [4e-4, 5e-4, 1e-3]}
    put(files.RESULTS, {"bench.json": json.dumps({"machine": "an abacus", "seconds_per_image": seconds}).encode()})
    page = bench.saved_page()
    assert "| bn | 2,000 |" in page and "| baseline, 2 workers | 1,000 |" in page
    assert "an abacus" in page and "trains 2.0 times as fast" in page
