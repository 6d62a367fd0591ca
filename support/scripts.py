"""The scripts of a folder, their names and their colours. A Python file with a line that begins with "RECIPE = " is a
variant by being there: nobody keeps a list. For common.py and for all that goes through the variants."""

import colorsys
import hashlib
import importlib
from collections import Counter

from support.storage import RunError

COLOURS = {"bn": "#1f77b4", "gn": "#d95f02", "ln": "#2a9d55"}
FURTHER = ("#7b4fa3", "#c2185b", "#7a5230", "#8a8d00", "#00a3b4", "#444444")  # of other scripts, one after the other
TAKEN = """all seeds test data summary plots check bench ablation torture clean help environment force augmentation
    common studies support tests tools results""".split()  # by make, or by a folder

TRAINING = ("common.py", "support/averaging.py", "support/images.py", "support/muon.py")  # what weights depend on


def found(folder):
    """The names of the files in a folder that say RECIPE, in alphabetical order."""
    return sorted(path.stem for path in folder.glob("*.py")
                  if any(line.startswith("RECIPE = ") for line in path.read_text(encoding="utf-8").splitlines()))


def names(folder):
    """The names of the scripts in a folder: those of `found` that can be variants."""
    candidates = found(folder)
    return [name for name in candidates if not fault(name, candidates)]


def fault(name, others):
    """Why a script can't have this name among others: a sentence, or None."""
    if not name.isidentifier():
        return f"{name}.py can't be a variant: letters, digits and _ make its name, as in {as_identifier(name)}.py"
    if name in TAKEN:
        return f"{name}.py can't be a variant: `make {name}` or a folder has that name"
    if Counter(map(str.lower, others))[name.lower()] > 1:
        return f"{name}.py can't be a variant: another script's name differs only by case, which some disks don't see"
    return None


def as_identifier(name):
    return "".join(letter if f"x{letter}".isidentifier() else "_" for letter in name)


def check(folder):
    """Raise RunError if a script's name is of no use."""
    candidates = found(folder)
    for name in candidates:
        if sentence := fault(name, candidates):
            raise RunError(sentence)


def colours(folder):
    """The colour of each script in every picture. Those of COLOURS keep theirs; the others have the FURTHER ones, in
    alphabetical order, and then dark ones round the colour wheel, by steps that never meet."""
    others = [name for name in names(folder) if name not in COLOURS]
    wheel = (colorsys.hsv_to_rgb(0.618 * step % 1, 0.9, 0.45) for step in range(len(others)))
    return COLOURS | dict(zip(others, [*FURTHER, *wheel], strict=False))


def code(folder, name):
    """A digest of a script's text and of all other code that the weights of its training depend on."""
    texts = [(folder / path).read_bytes() for path in (f"{name}.py", *TRAINING)]
    return hashlib.sha256(b"".join(hashlib.sha256(text).digest() for text in texts)).hexdigest()


def recipe(folder, name):
    """What a script of the folder calls RECIPE. Raises RunError if there is no such script, or it can't be loaded."""
    known = names(folder)
    if name not in known:
        raise RunError(f"there is no variant {name!r}, only {', '.join(known)}")
    try:
        return importlib.import_module(name).RECIPE
    except Exception as error:  # of whatever kind: the script is somebody's work in progress
        raise RunError(f"{folder / name}.py can't be loaded: {type(error).__name__}: {error}") from None
