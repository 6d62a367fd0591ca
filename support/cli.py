"""Command lines: dataclass fields as flags, the names of runs, and exit statuses."""

import argparse
import contextlib
import dataclasses
import re
import signal
import sys
from pathlib import Path

from support import files, machine
from support.files import RunError

RESERVED = """all seeds test test-all data summary plots check bench clean help venv common studies support
    tests tools results""".split()  # names of make targets and folders


class RecipeError(RunError, ValueError):
    """A value that the network or the training cannot use."""

    status = 2


class Options:
    """Base of a dataclass of options whose first field, `script`, is the file that it belongs to."""

    def __post_init__(self):
        is_running = getattr(sys.modules["__main__"], "__file__", None) == self.script  # then without a traceback
        with exit_on_error(Path(self.script).name) if is_running else contextlib.nullcontext():
            self.check()

    @property
    def variant(self):
        return Path(self.script).stem


def option(default, help, valid="", parse=None):
    """Return a dataclass field that is also a flag. `valid`: an interval "[0, 1)", a tuple of choices, a list of words.

    `parse` turns text into a value; without it, the type of the default does.
    """
    help += f", quoted if several, out of {' '.join(valid)}" * isinstance(valid, list)
    return dataclasses.field(default=default, metadata={"help": help, "valid": valid, "parse": parse})


def options_of(values):
    """Return the fields of a dataclass that were made by `option`."""
    return [field for field in dataclasses.fields(values) if "valid" in field.metadata]


def check_options(values):
    """Convert int to float and list to tuple; raise RecipeError for the first option of a wrong type or value."""
    for field in options_of(values):
        value, valid = getattr(values, field.name), field.metadata["valid"]
        kind = float if field.metadata["parse"] is float else type(field.default)
        if (kind, type(value)) in ((float, int), (tuple, list)):
            object.__setattr__(values, field.name, kind(value))
        elif kind not in (type(None), type(value)):
            raise RecipeError(f"{field.name} must be of type {kind.__name__}, got {value!r}")
        if isinstance(valid, tuple) and value not in valid:
            raise RecipeError(f"{field.name} must be one of {', '.join(valid)}, got {value!r}")
        if isinstance(valid, list) and not set(value.split()) <= set(valid):
            raise RecipeError(f"{field.name} must be out of {' '.join(valid)}, got {value!r}")
        if isinstance(valid, str) and valid and not is_within(value, valid):
            raise RecipeError(f"{field.name} must be in {valid}, got {value!r}")


def is_within(value, interval):
    """Return whether a number lies in an interval such as "[0, 1)"."""
    low, high = map(float, interval[1:-1].split(", "))
    above = value >= low if interval[0] == "[" else value > low
    return above and (value <= high if interval[-1] == "]" else value < high)


def to_dict(recipe):
    """Return the options of a recipe as JSON has them, and the name of its norm function or None."""
    values = {field.name: getattr(recipe, field.name) for field in options_of(recipe)}
    name = getattr(recipe.norm, "__name__", type(recipe.norm).__name__) if recipe.norm else None
    return {"norm": name} | values | {"widths": list(recipe.widths)}


def integers(text):
    """Return integers separated by commas as a tuple. Raises ValueError."""
    return tuple(int(part) for part in text.split(","))


def int_or_text(text):
    return int(text) if text.isdigit() else text


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises RecipeError instead of exiting."""

    def error(self, message):
        raise RecipeError(message)


def parse_args(script, argv=None):
    """Return the recipe `script` with the flags of `argv` applied, and the options of the run, with its name as `.run`.

    Raises RecipeError for flags that cannot be used; `--help` exits with status 0.
    """
    check_script(script)
    parser = Parser(prog=f"{script.variant}.py", allow_abbrev=False, usage="%(prog)s [flag ...]",
        description=f"Train the network with the recipe of {script.variant}.py; flags override it for this run.")
    parser.add_argument("--seed", type=int, default=0, help="random seed, 0 or more (default: 0)")
    parser.add_argument("--device", type=machine.find_device, default="auto",
                        help="cpu, cuda, mps, or auto: cuda, else mps, else cpu (default: auto)")
    parser.add_argument("--train-images", type=int, metavar="N", help="train on the first N training images only")
    parser.add_argument("--no-resume", dest="resume", action="store_false", help="ignore the checkpoint of a run that "
                        "was interrupted, and train from the beginning")
    parser.add_argument("--no-test", dest="test", action="store_false", help="do not evaluate on the test set")
    parser.add_argument("--metrics-only", action="store_true", help="save only the metrics, in a file such as "
                        "bn-epochs=5.json: no weights, predictions or figures")
    parser.add_argument("--output-dir", type=Path, default=files.RESULTS, metavar="FOLDER",
                        help="folder to save the run in (default: results)")
    if script.norm:
        parser.add_argument("--no-norm", action="store_true", help="train without normalization")
    add_flags(parser, script)
    options = parser.parse_args(argv)
    given = {field.name: getattr(options, field.name) for field in options_of(script) if field.name in options}
    recipe = script.replace(**given, **{"norm": None} if script.norm and options.no_norm else {})
    if not 0 <= options.seed < 2**63:
        raise RecipeError(f"--seed must be 0 or more and below 2**63, got {options.seed}")
    if options.train_images is not None and options.train_images < recipe.batch_size:
        raise RecipeError(f"--train-images must be at least the batch size ({recipe.batch_size}), "
                          f"got {options.train_images}")
    if (options.output_dir / "metrics.json").exists():
        raise RecipeError(f"--output-dir must not be the folder of a run, got {options.output_dir}")
    options.run = run_name(recipe, script, options.train_images, options.seed, options.test)
    options.identity = {"variant": script.variant, "run": options.run, "recipe": to_dict(recipe), "seed": options.seed}
    return recipe, options


def add_flags(parser, values):
    """Add a flag (batch_size: --batch-size) for each option of a dataclass object that is not None."""
    for field in options_of(values):
        default, valid = getattr(values, field.name), field.metadata["valid"]
        if default is None:
            continue  # without meaning for this object, so an error
        kind = {"type": field.metadata["parse"] or type(default)}
        if isinstance(default, bool):
            kind = {"action": argparse.BooleanOptionalAction}
        elif isinstance(valid, tuple):
            kind = {"choices": valid}
        bounds = f"in {valid}, " if valid and isinstance(valid, str) else ""
        text = ",".join(map(str, default)) if isinstance(default, tuple) else default
        parser.add_argument("--" + field.name.replace("_", "-"), default=argparse.SUPPRESS,
                            help=f"{field.metadata['help']} ({bounds}default: {text})", **kind)


def run_name(recipe, script, train_images=None, seed=0, test=True):
    """Return the folder name of a run: the variant, and each value in which `recipe` differs from `script`."""
    new, old = to_dict(recipe), to_dict(script)
    changed = {name: value for name, value in new.items() if value != old[name]}
    parts = ["no-norm"] * ("norm" in changed) + [
        f"{name}={re.sub('[.]0$', '', str(value).strip('[]'))}" for name, value in changed.items() if name != "norm"]
    parts += [f"train_images={train_images}"] * (train_images is not None) + [f"seed={seed}"] * (seed != 0)
    parts += ["no-test"] * (not test)
    return "-".join([script.variant, *(re.sub(r"[^\w.=-]+", "+", part).strip("+") for part in parts)])


def check_script(script):
    """Raise RecipeError unless a recipe belongs to the file that runs, and its name can be a variant's."""
    main = Path(getattr(sys.modules["__main__"], "__file__", script.script))
    if getattr(sys.modules["__main__"], "RECIPE", None) is script and main.name != Path(script.script).name:
        raise RecipeError(f"the first argument of Recipe must be __file__, got {script.script!r} in {main.name}")
    check_name(script.variant)


def check_name(name):
    """Raise RecipeError if a script cannot have this name."""
    if not name.isidentifier():
        raise RecipeError(f"{name}.py cannot be a variant: use letters, digits and _ alone, as in my_norm.py")
    if name in RESERVED:
        raise RecipeError(f"{name}.py cannot be a variant: `make {name}` or a folder has that name")


@contextlib.contextmanager
def exit_on_error(command, hint="run the same command again to resume"):
    """Turn errors into one line and an exit status: 2 for wrong values, 1 for a failed run, 130 or 143 for a signal."""
    with contextlib.suppress(AttributeError):
        sys.stdout.reconfigure(errors="replace")  # "?" for what the terminal cannot show
    try:
        machine.interrupt_on_sigterm()
        yield
    except (RunError, OSError) as error:
        print(f"{command}: {error}", file=sys.stderr)
        sys.exit(getattr(error, "status", 1))
    except KeyboardInterrupt as interrupt:
        print(f"{command}: interrupted; {hint}", file=sys.stderr)
        sys.exit(128 + (interrupt.args or [signal.SIGINT])[0])
