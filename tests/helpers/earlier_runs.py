"""Run folders made by the commit before the modules moved into packages, stored as text in ``earlier_runs.json``.

``python -m tests.helpers.earlier_runs CHECKOUT`` makes that file anew: with the code in CHECKOUT, a worktree of commit
e2cb9f0, it prepares, trains, stops and submits in /srv/lab, which must not exist. The names of the host and of the
interpreter are replaced. The copy of the code that a submission leaves is not stored.
"""

import json
import lzma
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from cnnjob import files
from cnnjob.runs.run import Run
from tests.helpers.run_folders import change_json

STORED = Path(__file__).with_name("earlier_runs.json")
FOLDER = Path("/srv/lab")
"""Where the stored runs were made."""
PYTHON = "/opt/cnnjob/bin/python"
"""Stands for the interpreter that submitted the jobs."""
UNSTORED = ("step-000000000.npz", "step-000000024.npz")
SCRIPT = '''
import os
from pathlib import Path

from typer.testing import CliRunner

from cnnjob import verbs
from cnnjob.cli import app
from cnnjob.jobs import Job
from tests import toys
from tests.test_submit import ANSWERS, Site
from tests.test_training import StopsAt


def submit(*words, number=17):
    slurm.says(sbatch=f'echo "Submitted batch job {number}"')
    done = CliRunner().invoke(app, ["submit", "toy.toml", *words])
    assert done.exit_code == 0, done.output


Path("data").mkdir()
toys.dataset(Path("data"), images=90)
Path("toy.toml").write_text("""
dataset = "toy"
[data]
validation_fraction = 0.25
augment = { flip = "random" }
[model]
blocks = [{ conv = 3, kernel = 3, pool = 2, batch_norm = true }, { dropout = 0.2 }, { dense = 6 }]
[train]
epochs = 3
batch_size = 8
learning_rate = 0.05
lookahead = { every = 4 }
[resources]
backend = "numpy"
""")
verbs.train("toy.toml")
stopped = Job.load("toy.toml", ["seed=1"])
verbs.train(stopped, runs=Path("unbroken"))
assert verbs.train(stopped, listener=StopsAt(11)).state() == "stopped"
slurm = Site(Path("commands"))
slurm.says(**ANSWERS)
os.environ["PATH"] = str(slurm.folder.resolve())
submit("--set", "seed=2")
submit("--sweep", "train.learning_rate=0.1,0.2", number=18)
'''


def unpack(root: Path) -> dict[str, Run]:
    """Write the stored files into a folder, which then looks as if they had been made there.

    Returns:
        The runs: ``finished``, ``stopped`` after 11 of 24 steps, ``unbroken`` (the same job, never stopped, in a folder
        of runs of its own), ``waiting`` in SLURM's job 17, and the two of a sweep, ``18_0`` and ``18_1``.
    """
    stored = json.loads(STORED.read_text(encoding="utf-8"))
    for name, content in stored["files"].items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            # a run's job.json has a checksum; the path of the data in it is a hint, which need not be right
            is_sealed = path.parent.name.startswith("toy-") and path.name == "job.json"
            here = content if is_sealed else content.replace(str(FOLDER), str(root)).replace(PYTHON, sys.executable)
            path.write_text(here, encoding="utf-8")
        else:
            path.write_bytes(lzma.decompress(bytes.fromhex("".join(content))))
    runs = {name: Run(root / path) for name, path in stored["runs"].items()}
    for run in runs.values():
        for record in (run.submission_file, *run.attempt_files()):
            if record.exists():  # inodes are those of the folder that was written just now
                change_json(record, **run.identity())
        for path in run.attempt_files():
            change_json(path, uid=os.getuid())
    return runs


def pack(folder: Path) -> dict[str, Any]:
    """Return the content of ``earlier_runs.json`` for a folder; of checkpoints, only that of the stopped run."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and _is_stored(path.relative_to(folder))]
    runs = {_name(path.parent): str(path.parent.relative_to(folder)) for path in folder.glob("*/toy-*/job.json")}
    return {"runs": runs, "files": {str(path.relative_to(folder)): _as_text(path) for path in paths}}


def _is_stored(path: Path) -> bool:
    if {"commands", ".code"} & set(path.parts) or path.name.startswith(".submitter"):
        return False
    return path.name == "weights.npz" if path.parts[0] == "unbroken" else path.name not in UNSTORED


def _name(run: Path) -> str:
    """Return what a run is called in the tests."""
    if (run / "slurm").exists():
        job_id = str(json.loads((run / "slurm" / "job.json").read_text())["job_id"])
        return "waiting" if job_id == "17" else job_id
    if run.parent.name == "unbroken":
        return "unbroken"
    return "finished" if (run / "result.json").exists() else "stopped"


def _as_text(path: Path) -> str | list[str]:
    """Return text with other names of host and interpreter; other content compressed, in hexadecimal."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        digits = lzma.compress(path.read_bytes(), preset=9).hex()
        return [digits[start : start + 100] for start in range(0, len(digits), 100)]
    text = re.sub(r'"boot": "[^"]*"', '"boot": "00000000-0000-4000-8000-000000000000"', text)
    text = re.sub(rf'("host": "|on ){re.escape(socket.gethostname())}\b', r"\1laptop", text)
    return text.replace(sys.executable, PYTHON)


def main(checkout: str) -> None:
    """Make the stored file anew."""
    FOLDER.mkdir(parents=True)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": checkout, "HOME": str(FOLDER), "LANG": "C.UTF-8"}
    subprocess.run([sys.executable, "-P", "-c", SCRIPT], cwd=FOLDER, env=environment, check=True)
    STORED.write_text(files.readable_json(pack(FOLDER)), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
