"""Test the benchmark: it measures every script, and its page has its numbers."""

import json

from support import files
from tests.world import SCRIPTS, put
from tools import bench


def test_bench_measures_every_script_and_writes_the_page(world, monkeypatch):
    for name in "ROUNDS", "STEPS", "WARMUP":
        monkeypatch.setattr(bench, name, 1)
    bench.main()
    saved = json.loads((files.RESULTS / "bench.json").read_text())
    assert {name: len(values) for name, values in saved["seconds_per_image"].items()} == dict.fromkeys(SCRIPTS, 1)
    assert all(values[0] > 0 for values in saved["seconds_per_image"].values())
    assert (files.RESULTS / "bench.md").read_text() == bench.saved_page()


def test_the_page_has_medians_and_the_spread_of_the_rounds(world):
    saved = {"machine": "an abacus", "seconds_per_image": {"bn": [4e-4, 5e-4, 1e-3]}}
    put(files.RESULTS, {"bench.json": json.dumps(saved).encode()})
    assert "an abacus" in bench.saved_page() and "| bn | 2,000 | 40% |" in bench.saved_page()
