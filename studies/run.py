"""Run a study, or train the scripts with several seeds: `python -m studies.run NAME`."""

import argparse

import common
from studies import ablation, batch_size, connections, corruptions, dropout, groups, learning_rate, norms, study
from support import cli, files, machine, runs

STUDIES = (norms, connections, dropout, groups, batch_size, learning_rate, corruptions)  # in the order of the pages


def train_seeds(options):
    """Train the scripts with options.seeds, except for current runs: of today's code, trained in this copy."""
    precision = common.precision(machine.find_device("auto"))
    folders = {f"{variant}.py --seed {seed}": files.RESULTS / f"{variant}{f'-seed={seed}' if seed else ''}"
               for seed in options.seeds for variant in runs.variants()}
    missing = [title for title, folder in folders.items() if not runs.is_current(folder, precision)]
    study.run_all({title: title.split() for title in missing}, options, lambda title: runs.read(folders[title])
                  if runs.is_current(folders[title], precision) else None)


def main(argv=None):
    """Run or measure what a study is missing, write its figure, and print its finding."""
    modules = {study.name_of(module): module for module in (*STUDIES, ablation)}
    parser = argparse.ArgumentParser(prog="python -m studies.run", description=__doc__.partition(":")[0] + ".")
    parser.add_argument("name", choices=[*modules, "seeds"], help="what to run")
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at a time (default: one per core and 2 GB of "
                        "memory; on a GPU, one)")
    parser.add_argument("--list", action="store_true",
                        help="print the command of each missing run, one per line, and run nothing")
    parser.add_argument("--seeds", type=int, nargs="+", default=study.SEEDS, help="for `seeds` (default: 0 1 2)")
    options = parser.parse_args(argv)
    with cli.exit_on_error(options.name):
        if options.name == "seeds":
            return train_seeds(options)
        module = modules[options.name]
        if hasattr(module, "plan"):
            study.run_missing(module, options)
        if hasattr(module, "measure") and not options.list:
            files.write_file(study.results_file(module, "json"), runs.to_json(module.measure()))
        if hasattr(module, "plot") and not options.list:
            print(study.plot_study(module) or "nothing to plot yet: type `make all`")


if __name__ == "__main__":
    main()
