"""Run a study, or train with several seeds: `python -m studies.run NAME`."""

import argparse
import importlib

import common
from studies import study
from support import cli, files, machine, runs
from support.files import RunError

QUICK = "norms signals predictions".split()  # seconds: measured again with every new run
NAMES = [*QUICK, *"connections dropout groups batch_size learning_rate corruptions ablation".split()]  # as on the pages
STUDIES = [importlib.import_module(f"studies.{name}") for name in NAMES]


def train_seeds(options):
    """Train the scripts with options.seeds, but skip runs made with the present code in this clone."""
    precision = common.precision(machine.find_device("auto"))
    folders = {f"{variant}.py --seed {seed}": files.RESULTS / f"{variant}{f'-seed={seed}' if seed else ''}"
               for seed in options.seeds for variant in runs.variants()}
    missing = [title for title, folder in folders.items() if not runs.is_current(folder, precision)]
    study.run_all({title: title.split() for title in missing}, options, lambda title: runs.read(folders[title])
                  if runs.is_current(folders[title], precision) else None)


def run_study(module, options):
    """Run or measure what a study is missing, write its figure, and print its findings."""
    if hasattr(module, "plan"):
        study.run_missing(module, options)
    elif not options.list:
        if not runs.published():
            raise RunError("nothing to measure yet: type `make all`")
        files.write_file(study.numbers_file(module), runs.to_json(module.measure()))
    if not options.list:
        print(study.plot_study(module) or "nothing to plot yet: type `make all`")


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m studies.run", description=__doc__.partition(":")[0] + ".")
    parser.add_argument("study", choices=["seeds", "quick", *map(study.target_of, STUDIES)],
                        help="quick: norms, signals and predictions; seeds: train each variant with each seed of "
                        "--seeds, unless this clone has such a run of the current code")
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at a time (default: one per core; on a GPU, one)")
    parser.add_argument("--list", action="store_true",
                        help="print the command of each missing run, one per line, and run nothing")
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2),
                        help="random seeds, only for `seeds` (default: 0 1 2)")
    options = parser.parse_args(argv)
    with cli.exit_on_error(options.study):
        if options.study == "seeds":
            return train_seeds(options)
        for module in STUDIES:
            if study.target_of(module) in (QUICK if options.study == "quick" else [options.study]):
                run_study(module, options)


if __name__ == "__main__":
    main()
