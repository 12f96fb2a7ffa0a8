"""Run folders with one damaged file each, and every command over them: `python -m tests.durability.corrupted`.

A finished and a stopped run, both of a job that was submitted, lie beside a sound one. Each case damages one file of
the one or the other; the commands then run in a forked process. These are faults: a traceback, an exit code that is not
documented, more than 5 s of processor time, a command that waits for something, and a sound run that is not listed.
"""

# ruff: noqa: T201 - it is a command

import argparse
import contextlib
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from typer.testing import CliRunner

from cnnjob import files
from cnnjob.cli.main import app
from cnnjob.jobs import json_files
from cnnjob.reporting.report import report
from cnnjob.runs import npz
from cnnjob.runs.run import Run
from cnnjob.training.train import train
from tests.durability.scenarios import StopAt
from tests.durability.toys import toy_run

SECONDS = 5.0
"""Of processor time that a command may take."""
WAITING_SECONDS = 60.0
"""That it may take by the clock: the machine may be busy, but what waits for a pipe never ends."""
CASE_SECONDS = 120.0
"""After which a case is given up."""
CODES = {0, 1, 2, 3, 4, 5, 75}
LOG = "slurm/17_0_log.out"
RECORDS = ("job.json", "environment.json", "attempts/0001.json", "attempts/0002.json", "history.jsonl", "log.txt")
SUBMITTED = ("slurm/job.json", "slurm/request.json", "slurm/restarts.json", "slurm/cancelled.json", LOG)
FILES = {
    "finished": (*RECORDS, "result.json", "weights.npz", "predictions.npz", "examples.npz"),
    "stopped": (*RECORDS, "checkpoints/older", "checkpoints/newest"),
}
"""Of a run in each state, beside those of its submission."""
EPOCHS = {"finished": 2, "stopped": 3, "sound": 4}
"""What tells the jobs."""
HEAVY = {
    "train": ("job.json", "environment.json", "attempts/0002.json", "checkpoints/older", "checkpoints/newest"),
    "submit --dry-run": ("job.json", "slurm/request.json"),
}
"""Commands that take a second, and the files whose damage they always meet; that of others each fourth or 20th time."""
ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 1.5, 7, 10**15, 2**63 - 1, -(2**63), 1e308, 1e-320, "", "x" * 5000, "\x1b[2J\r\n", "../.."),
    *([], [[]], {}, {"a": 1}, [None] * 99, "1e5", "9999-12-31T23:59:59+00:00", "0001-01-01T00:00:00", "\udcff", "\0"),
)
ODD_JSON = (
    *(b"NaN", b'{"a": NaN}', b"[1e999]", b"9" * 5000, b"[" * 100_000, b'{"a":' * 100_000, b'"\\ud800"', b"\xff\xfe"),
    *(b"[]", b"null", b'"x"', b"3", b"\0" * 4096, b'{"a": 1, "a": 2}', b"\xef\xbb\xbf{}", b"{}\n{}", b"[[[]]]", b"{}"),
    b"\r" * 9999,
)


@dataclass(frozen=True)
class Case:
    """Which file of which run is damaged, and how."""

    state: str
    name: str
    number: int
    seed: int

    @property
    def damage(self) -> "Damage":
        """What is done to the file."""
        return DAMAGES[self.number]

    def path_in(self, run: Run) -> Path:
        """Return the file."""
        if self.name.startswith("checkpoints/"):
            return sorted(run.checkpoints_folder.glob("step-*.npz"))[-1 if self.name.endswith("newest") else 0]
        return run.path / self.name

    def __str__(self) -> str:
        """Name it."""
        return f"{self.state}, {self.name}, {self.damage.__name__}, seed {self.seed}"


@dataclass(frozen=True)
class Fault:
    """What a command should not have done."""

    case: Case
    command: str
    text: str


Damage = Callable[[Path, Random], None]


# --- damage


def flip(path: Path, random: Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(random.choice((1, 1, 1, 8))):
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    path.write_bytes(content)


def cut(path: Path, random: Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: random.choice((0, random.randrange(len(content)), len(content) - 1))])


def swap(path: Path, random: Random) -> None:
    """Put another file of the run in its place, or the same of another run."""
    run = next(parent for parent in path.parents if parent.parent.name == "runs")
    others = [other for place in (run, run.parent) for other in place.rglob("*.[jn]*") if other.is_file()]
    path.write_bytes(random.choice(sorted(others)).read_bytes())


def odd_content(path: Path, random: Random) -> None:
    path.write_bytes(random.choice(ODD_JSON))


def odd_values(path: Path, random: Random) -> None:
    """Change, remove or add values, and let all checksums fit again."""
    if path.suffix == ".npz":
        _odd_arrays(path, random)
    elif path.suffix == ".jsonl":
        lines = path.read_text().splitlines()
        at = random.randrange(len(lines))
        lines[at] = json.dumps(_odd(json.loads(lines[at]), random))
        path.write_text("\n".join(lines) + "\n")
    elif path.suffix == ".json":
        value = _odd(json.loads(path.read_text()), random)
        is_sealed = isinstance(value, dict) and json_files.SEAL in value and random.random() < 0.7
        path.write_text(json.dumps(json_files.add_seal(value) if is_sealed else value))
    else:
        path.write_bytes(path.read_bytes() + random.choice((b"\x1b[2J", b"\r" * 10**6, b"x" * 10**7, b"\xff" * 99)))


def _odd(value: Any, random: Random) -> Any:
    for _ in range(random.choice((1, 1, 2, 3))):
        value = _odd_once(value, random)
    return value


def _odd_once(value: Any, random: Random) -> Any:
    """Change one place; deep ones are as likely as the upper ones."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if not keys or random.random() < 0.1:
        return random.choice(ODD)
    changed = dict(value) if isinstance(value, dict) else list(value)
    key = random.choice(keys)
    if isinstance(value[key], dict | list) and value[key] and random.random() < 0.7:
        changed[key] = _odd_once(value[key], random)
    elif random.random() < 0.15:
        del changed[key]
    else:
        changed[key] = random.choice(ODD)
    return changed


def _odd_arrays(path: Path, random: Random) -> None:
    arrays = npz.read_arrays(path)
    name = random.choice(sorted(arrays))
    array = arrays.pop(name)
    if name == "header" and random.random() < 0.8:
        array = np.array(json.dumps(_odd(json.loads(str(array)), random)))
    else:
        likes = [np.full(array.shape, value) for value in (0, 0.0, -1, 2**62, np.nan)]
        others = (np.array("x"), np.array(["\x1b[2J"] * 3), np.zeros((0, 9)))
        array = random.choice((array[:0], array.reshape(-1), array[None], *likes, *others))
    is_left_out = name != "header" and random.random() < 0.1
    npz.write_arrays(path, arrays if is_left_out else {**arrays, name: array})


def nothing(path: Path, _: Random) -> None:
    path.unlink()


def pipe(path: Path, _: Random) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path, _: Random) -> None:
    path.unlink()
    path.mkdir()


def link(path: Path, random: Random) -> None:
    path.unlink()
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to(random.choice(("/dev/zero", "/dev/tty", "nowhere", path.name, "/proc/self/mem", "pipe", "/", "..")))


def huge(path: Path, random: Random) -> None:
    os.truncate(path, random.choice((2**41, 2**33)))


DAMAGES: tuple[Damage, ...] = (
    *(flip, flip, cut, swap, odd_content, odd_content, odd_values, odd_values, odd_values, odd_values),
    *(nothing, pipe, folder, link, huge),
)


# --- the folders


def prepare(root: Path) -> None:
    """Make a finished run, a stopped one and a sound one, each of its own job file, all an hour old."""
    root.mkdir()
    names = {}
    for state, epochs in EPOCHS.items():
        run = toy_run(root, epochs=epochs)
        train(run, StopAt(1))
        train(run, StopAt(2) if state == "stopped" else None)
        _submitted(run)
        names[state] = run.name
    files.write_json(root / "names.json", names)
    (root / "commands").mkdir()
    for path in (*root.rglob("*"), root):
        os.utime(path, (time.time() - 3600,) * 2)


def _submitted(run: Run) -> None:
    run.slurm_folder.mkdir()
    moment = "2026-01-01T00:00:00+00:00"
    said = {"job_id": "17", "comment": f"cnnjob {run.path} 1", "log": str(run.path / LOG), "attempt": 1}
    asked = {"time": "2h", "mem": "3G", "setup": ["true"], "sbatch": {"nice": 1}}
    told = {"job_id": "17", "ended_by": "itself", "code": 137, "step": 1, "restarted": "", "said": "its own error"}
    files.write_json(run.submission_file, {**said, "submitted": moment})
    files.write_json(run.slurm_folder / "request.json", asked)
    files.write_json(run.slurm_folder / "restarts.json", [told])
    files.write_json(run.slurm_folder / "cancelled.json", {"by": "me", "jobs": ["16"], "attempt": 1, "time": moment})
    (run.path / LOG).write_text("--- attempt 1 on here\nepoch 1\n")


def cases(count: int, seed: int) -> Iterator[Case]:
    """Yield all combinations of file and damage in turn, each time with other random choices."""
    every = [
        (state, name, number)
        for state, names in FILES.items()
        for name in (*names, *SUBMITTED)
        for number in range(len(DAMAGES))
    ]
    Random(seed).shuffle(every)
    for number in range(count):
        yield Case(*every[number % len(every)], 1000 * seed + number)


# --- the commands


def commands(root: Path, run: Run, job: Path) -> dict[str, Sequence[str]]:
    """Return what is typed, by name; the last ones change the folder."""
    place, runs = str(run.path), str(root / "runs")
    told = ["--data", str(root), "--runs", runs]
    return {
        "status": ["status", runs],
        "status --json": ["status", "--json", runs],
        "status RUN": ["status", place],
        "logs": ["logs", place],
        "predict": ["predict", place, "test:0"],
        "export": ["export", place, "--output", str(root / "network.onnx")],
        "clean": ["clean", "--json", place, *told],
        "clean all": ["clean", "--json", *told],
        "report": ["report", place, "--out", str(root / "report")],
        "submit --dry-run": ["submit", str(job), "--dry-run", *told],
        "cancel": ["cancel", place],
        "train": ["train", str(job), *told],
        "status after": ["status", runs],
    }


def tried(root: Path, case: Case) -> Iterator[tuple[str, str]]:
    """Run all commands over a damaged folder; name those that do what they should not, and how."""
    names, number = files.read_json(root / "names.json"), Random(case.seed).randrange(20)
    run, job = Run(root / "runs" / names[case.state]), root / f"toy{EPOCHS[case.state]}-6.toml"
    for name, arguments in commands(root, run, job).items():
        if name == "report" and number % 20:
            yield from _reported(root)
            continue
        if number % {"train": 4, "submit --dry-run": 20}.get(name, 1) and case.name not in HEAVY.get(name, ()):
            continue
        started, started_cpu = time.monotonic(), time.process_time()
        done = CliRunner().invoke(app, list(arguments))
        seconds, cpu_seconds = time.monotonic() - started, time.process_time() - started_cpu
        lists = name in {"status", "status --json", "status after"}
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            yield name, "".join(traceback.format_exception(done.exception))
        elif done.exit_code not in CODES or (lists and (done.exit_code or names["sound"] not in done.stdout)):
            yield name, f"exit code {done.exit_code}: {done.output[-500:]}"
        if cpu_seconds > SECONDS or seconds > WAITING_SECONDS:
            yield name, f"{cpu_seconds:.1f} s of processor time, {seconds:.1f} s by the clock"


def _reported(root: Path) -> Iterator[tuple[str, str]]:
    try:
        rows = report(Run.all(root / "runs"), root / "report").rows
    except Exception:  # noqa: BLE001 - each is a fault
        yield "report", traceback.format_exc()
        return
    if not any(row["state"] == "finished" and row["job"] == f"toy{EPOCHS['sound']}-6" for row in rows):
        yield "report", f"the sound run is missing: {rows}"


def _try(root: Path, case: Case, answers: Connection) -> None:
    """Send what was found; in a process of its own."""
    os.environ["PATH"] = str(root / "commands")  # no SLURM
    os.chdir(root.parent)
    warnings.simplefilter("error")
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
        answers.send(list(tried(root, case)))
    os._exit(0)


def try_case(root: Path, base: Path, case: Case) -> list[Fault]:
    """Copy all folders to where they were made, damage one file, and run the commands over it."""
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(base, root, symlinks=True)
    run = Run(root / "runs" / files.read_json(root / "names.json")[case.state])
    case.damage(case.path_in(run), Random(case.seed))
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_try, args=(root, case, theirs))
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        process.start()
    theirs.close()
    try:
        if not ours.poll(CASE_SECONDS):
            return [Fault(case, "one of them", f"more than {CASE_SECONDS:.0f} s")]
        return [Fault(case, command, text) for command, text in ours.recv()]
    except EOFError:
        process.join()
        return [Fault(case, "one of them", f"the process ended with {process.exitcode}")]
    finally:
        process.kill()
        process.join()


def faults(count: int, seed: int, every: int = 1) -> Iterator[Fault]:
    """Try cases; what has a fault is tried twice, for the machine may have been busy.

    Args:
        count: how many cases there are.
        seed: of their choices.
        every: try one of so many.

    Yields:
        What both times was not as it should be.
    """
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as place:
        root = Path(place).resolve() / "here"
        prepare(root)
        root.rename(base := root.with_name("base"))
        for case in list(cases(count, seed))[::every]:
            if try_case(root, base, case):
                yield from try_case(root, base, case)


def main() -> int:
    """Try the cases and print the faults."""
    parser = argparse.ArgumentParser(prog="python -m tests.durability.corrupted", description="Damage run folders.")
    parser.add_argument("--count", type=int, default=600, help="cases (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the cases (%(default)s)")
    parser.add_argument("--every", type=int, default=1, help="try one of so many (%(default)s)")
    arguments = parser.parse_args()
    started, total = time.monotonic(), 0
    for fault in faults(arguments.count, arguments.seed, arguments.every):
        print(f"{fault.case}\n  {fault.command}: {fault.text}", flush=True)
        total += 1
    print(f"{arguments.count // arguments.every} folders, {total} faults, {time.monotonic() - started:.0f} s")
    return int(bool(total))


if __name__ == "__main__":
    sys.exit(main())
