"""Flags of a command line: those of every run, and the fields of a dataclass. For common.py, whose recipes are such."""

import argparse
import dataclasses
from pathlib import Path

from support.machine import find_device


def setting(default, help, valid=lambda value: True, parse=None):
    """A field of a dataclass with a line of help, a test of its values, and how text becomes a value (by default, as
    the type of the default value does it)."""
    return dataclasses.field(default=default, metadata={"help": help, "valid": valid, "parse": parse})


def add_options(parser, results):
    """The flags that every run has, whatever its recipe. `results` is the folder to save in."""
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default: 0)")
    parser.add_argument("--device", type=find_device, default="best", help="cpu, cuda or mps (default: best)")
    parser.add_argument("--limit", type=int, metavar="N", help="train on the first N training images only")
    parser.add_argument("--fresh", action="store_true", help="start over even if an interrupted run could go on")
    parser.add_argument("--no-test", dest="test", action="store_false", help="stop after validation")
    parser.add_argument("--numbers-only", action="store_true", help="keep metrics and history, no weights or pictures")
    parser.add_argument("--results", type=Path, default=results, help="the folder to save in (default: results)")


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
