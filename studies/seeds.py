"""Do the results hold for other seeds? Each script is trained with three, into a folder of results/ each; means and
deviations over them are in every table. What was trained here by the code as it stands is not trained again.
"""

import argparse
import sys

import common
from studies.study import SEEDS
from studies.trainings import add_options, command_of, print_commands, train, variants
from support import runs, scripts, storage
from support.storage import RunError


def folder_of(variant, seed):
    script = common.script_of(variant)
    return common.RESULTS / common.run_name(script, script, seed=seed)


def missing(seeds):
    """The trainings {name: (variant, seed)} that were not done here, or by code that has changed since."""
    storage.finish_interrupted(common.RESULTS)
    return {f"{variant}.py, seed {seed}": (variant, seed) for seed in seeds for variant in variants()
            if not storage.stamped(folder_of(variant, seed), scripts.code(common.ROOT, variant))}


def main(argv=None):
    """Train the scripts with the seeds that are missing."""
    parser = argparse.ArgumentParser(prog="python -m studies.seeds", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, metavar="SEED", help="(default: 0 1 2)")
    add_options(parser)
    options = parser.parse_args(argv)
    try:
        scripts.check(common.ROOT)
        trainings = missing(options.seeds)
        commands = {name: command_of(variant, ["--seed", str(seed)] if seed else [])
                    for name, (variant, seed) in trainings.items()}
        if options.list:
            return print_commands(commands)

        def result(name):
            variant, seed = trainings[name]
            if name in missing([seed]):
                return None
            return runs.read(folder_of(variant, seed)).metrics

        train(commands, options.jobs, result)
    except (RunError, OSError) as error:
        sys.exit(f"seeds: {error}")


if __name__ == "__main__":
    main()
