"""The fields of a dataclass as flags of a command line. For common.py, whose recipes are such dataclasses."""

import argparse
import dataclasses


def setting(default, help, valid=lambda value: True, parse=None):
    """A field of a dataclass with a line of help, a test of its values, and how text becomes a value (by default, as
    the type of the default value does it)."""
    return dataclasses.field(default=default, metadata={"help": help, "valid": valid, "parse": parse})


def settings(values):
    """The fields of a dataclass that are settings."""
    return [field for field in dataclasses.fields(values) if "valid" in field.metadata]


def add_flags(parser, values):
    """A flag (batch_size: --batch-size) for each setting of a dataclass object, but those that are None."""
    for field in settings(values):
        default = getattr(values, field.name)
        if default is None:
            continue  # of no use to this object, so an error
        kind = {"type": field.metadata["parse"] or type(default)}
        if isinstance(default, bool):
            kind = {"action": argparse.BooleanOptionalAction}
        text = f"{field.metadata['help']} (default: {str(default).strip('()')})"
        parser.add_argument("--" + field.name.replace("_", "-"), default=default, help=text, **kind)


def first_invalid(values):
    """What is wrong with the first setting outside its range, as a sentence; None if all are right."""
    for field in settings(values):
        value = getattr(values, field.name)
        if not field.metadata["valid"](value):
            return f"{field.name} can't be {value!r}: {field.metadata['help']}"
    return None
