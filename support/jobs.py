"""Commands run side by side. For studies, which are many trainings of a network that is too small for many cores."""

import os
import subprocess
import tempfile
import time

import torch
from tqdm import tqdm

from support import machine

MEMORY = 2e9  # bytes that a training may need
GRACE = 3  # seconds to end by oneself after Ctrl-C, which all that run in a terminal get at once


def fitting():
    """How many trainings this machine has room for: one for each core and each 2 GB of free memory; on a GPU, one."""
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        return 1
    return max(1, min(torch.get_num_threads(), int(machine.free_memory() // MEMORY)))


def threads_each(threads, count):
    """How many of the machine's threads each of `count` trainings at a time has."""
    return max(1, threads // count)


def run(commands, count, folder, ended):
    """Run the commands, {name: list of arguments}, in `folder`, `count` at a time, the threads shared among them.

    For each that ends, `ended(name, status, text)` makes the line that is printed; `text` is what the command wrote. A
    single one at a time writes to the terminal itself, and `text` is empty. KeyboardInterrupt ends all of them."""
    count = min(count, len(commands))
    threads = {} if count < 2 else {"OMP_NUM_THREADS": str(threads_each(torch.get_num_threads(), count))}
    waiting, running = list(commands), {}
    with tqdm(total=len(commands), unit="training", leave=False, disable=True if count < 2 else None) as bar:
        try:
            while waiting or running:
                while waiting and len(running) < count:
                    with machine.interrupts_held():  # or one that comes now would leave the command at work
                        name = waiting.pop(0)
                        running[name] = Job(commands[name], folder, threads, quiet=count > 1)
                for name in [name for name, job in running.items() if job.process.poll() is not None]:
                    job = running.pop(name)
                    bar.write(ended(name, job.process.returncode, job.text()))
                    bar.update()
                bar.set_postfix_str(f"in epochs {', '.join(job.epoch() for job in running.values())}")
                time.sleep(0.1)
        except KeyboardInterrupt as signals:
            end_of_grace = time.monotonic() + (0 if signals.args else GRACE)
            while any(job.process.poll() is None for job in running.values()) and time.monotonic() < end_of_grace:
                time.sleep(0.05)
            raise
        finally:
            for job in running.values():
                job.process.terminate()
            for job in running.values():
                job.process.wait()


class Job:
    """A command at work. If it is quiet, what it writes is kept."""

    def __init__(self, command, folder, environment, quiet):
        self.log = tempfile.TemporaryFile() if quiet else None  # noqa: SIM115
        self.process = subprocess.Popen(command, cwd=folder, env=os.environ | environment, stdout=self.log,
                                        stderr=self.log and subprocess.STDOUT)

    def text(self):
        """What it has written so far. (Without seek, since it goes on where the file's position is.)"""
        log = self.log and self.log.fileno()
        return os.pread(log, os.fstat(log).st_size, 0).decode(errors="replace") if self.log else ""

    def epoch(self):
        """The last epoch that it has told of, as text; "-" before."""
        told = [line.split()[1].rstrip(":") for line in self.text().splitlines() if line.startswith("epoch ")]
        return told[-1] if told else "-"
