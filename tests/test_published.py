"""Tests of bn.py, gn.py and ln.py and of the results as they are published: edits may make them fail. Slow."""

import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import common
from studies import study
from studies.run import STUDIES
from support import cli, files, runs
from tests.world import PROJECT, SCRIPTS
from tools import report

pytestmark = pytest.mark.slow
CHANGES = {"bn": {"norm": "batch_norm"}, "ln": {"norm": "layer_norm"},
           "gn": {"norm": "group_norm", "groups": 4, "dropout": 0.05, "dropout_after": "C10"}}


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    """Return the recipes of the published scripts, which these tests use instead of tests/scripts."""
    for name in SCRIPTS:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(PROJECT)
    return {name: runs.load_script(name) for name in SCRIPTS}


@pytest.mark.parametrize("variant", SCRIPTS)
def test_the_layers_are_the_assignments_in_its_order(scripts, variant):
    model, ran = common.build_model(scripts[variant]).eval(), []
    for name, layer in model.named_children():
        layer.register_forward_hook(lambda layer, inputs, output, name=name: ran.append((name, inputs[0], output)))
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert [name for name, _, _ in ran] == "C1 C2 c3 P1 C4 C5 C6 c7 P2 C8 C9 C10 GAP c11".split()
    assert [output.shape[-1] for _, _, output in ran] == [32] * 3 + [16] * 5 + [8] * 4 + [1] * 2
    (_, x, pooled), (_, y, averaged) = ran[3], ran[12]
    assert torch.equal(pooled, F.max_pool2d(x, 2)) and torch.allclose(averaged, y.mean((2, 3), keepdim=True))
    kernels = [(layer.kernel_size[0], layer.groups) for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    assert kernels == [(3 if name.startswith("C") else 1, 1) for name, _, _ in ran if name[0] in "Cc"]


@pytest.mark.parametrize("variant, kind, groups", [
    ("bn", nn.BatchNorm2d, None), ("gn", nn.GroupNorm, 4), ("ln", nn.GroupNorm, 1)])
def test_budgets_normalization_layers_and_recipes(scripts, variant, kind, groups):
    model = common.build_model(scripts[variant])
    assert sum(p.numel() for p in model.parameters()) < 50_000 and scripts[variant].epochs <= 20
    norms = [layer for layer in model.modules() if isinstance(layer, (nn.BatchNorm2d, nn.GroupNorm))]
    assert len(norms) == 10 and all(isinstance(layer, kind) for layer in norms)
    assert {getattr(layer, "num_groups", None) for layer in norms} == {groups}
    assert any(isinstance(layer, nn.Dropout2d) for layer in model.modules()) == (variant == "gn")
    plain = cli.to_dict(common.Recipe(f"{variant}.py", None))
    assert cli.to_dict(scripts[variant]) == cli.to_dict(SCRIPTS[variant]) == plain | CHANGES[variant]


@pytest.mark.parametrize("variant, args, layer", [
    ("bn", (), nn.BatchNorm2d(8, affine=False)), ("gn", (4,), nn.GroupNorm(4, 8)), ("ln", (), nn.GroupNorm(1, 8)),
    ("gn", (8,), nn.InstanceNorm2d(8))])
def test_the_formulas_by_hand_are_pytorchs_layers(scripts, variant, args, layer):
    x = 3 * torch.randn(4, 8, 6, 6, generator=torch.Generator().manual_seed(0)) + 2
    torch.testing.assert_close(sys.modules[variant].by_hand(x, *args), layer(x), atol=1e-5, rtol=0)


def test_the_published_pages_figures_and_weights_are_those_of_the_published_results(scripts):
    pages = report.pages()
    assert set(pages) == {PROJECT / "README.md", *files.RESULTS.glob("*.md")} - {files.RESULTS / "tried.md"}
    for path, text in pages.items():
        assert path.read_text(encoding="utf-8") == text, path
    assert [[run["seed"] for run in group] for group in runs.published()] == [[0, 1, 2]] * 3
    assert not runs.left_out(runs.published())
    assert not any(study.origin(module) for module in STUDIES)
    assert all(study.findings(module, study.results_of(module)) for module in STUDIES)
    assert not any(study.unsupported(module) for module in STUDIES)
    for name, script in scripts.items():
        assert runs.recipe_of(runs.read(files.RESULTS / name)) == script
        assert not common.load_model(f"results/{name}").training
