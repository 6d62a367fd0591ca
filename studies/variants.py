"""The scripts by the names of their variants, and what they have published. For the studies, and for tools/."""

import dataclasses

import bn
import common
import gn
import ln
from support import runs, storage
from support.storage import RunError

SCRIPTS = {"bn": bn, "gn": gn, "ln": ln}


def script_of(variant):
    """The recipe of a script. Raises RunError if there is no such variant."""
    if variant not in SCRIPTS:
        raise RunError(f"there is no variant {variant!r}, only {', '.join(SCRIPTS)}")
    return SCRIPTS[variant].RECIPE


def recipe_of(metrics):
    """The recipe that a saved run was trained by, overrides included. Raises RunError."""
    script, values = script_of(metrics["variant"]), dict(metrics["recipe"])
    if set(values) != set(script.values()):
        raise RunError(f"results/{metrics['run']} has other recipe fields than common.py: train it again")
    values["norm"] = None if values["norm"] == "none" else script.norm
    return dataclasses.replace(script, **values | {"widths": tuple(values["widths"])})


def load_model(folder):
    """The network of a run with its saved weights. Raises RunError, also for damaged files."""
    storage.verify(folder, pictures=False)
    model = common.build_model(recipe_of(runs.read(folder).metrics))
    model.load_state_dict(runs.load_tensors(folder, "model"))
    return model


def published():
    """For each variant the runs of its script, seed by seed. Raises RunError for damaged files."""
    groups = [runs.over_seeds(common.RESULTS, variant) for variant in SCRIPTS]
    return [group for group in groups if group]


def published_models():
    """The networks of the published runs that kept their weights: variant -> a list over the seeds."""
    folders = {group[0].metrics["variant"]: [common.RESULTS / run.metrics["run"] for run in group]
               for group in published()}
    return {variant: [load_model(folder) for folder in seeds if (folder / "model.pt").exists()]
            for variant, seeds in folders.items()}
