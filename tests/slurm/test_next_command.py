"""The command that resumes a run makes this very run."""

import shlex
from pathlib import Path

import pytest

from cnnjob import files
from cnnjob.jobs.job import Job
from cnnjob.slurm import next_command
from tests.helpers.run_folders import DATA_DIGEST, change_job, frozen_run, pending_run
from tests.helpers.slurm_runs import with_job

pytestmark = pytest.mark.usefixtures("idle_slurm")


FULL = """
dataset = "tiny"
[data]
augment = { translate = 2 }
[model]
blocks = [{ conv = 5, batch_norm = { momentum = 0.4 } }, { dense = 8 }]
[train]
epochs = 9
batch_size = 10
learning_rate = 0.05
schedule = { cosine = { end_factor = 0.1 } }
optimiser = { sgd = { momentum = 0.8, nesterov = true } }
lookahead = { every = 2 }
early_stopping = { patience = 3 }
"""
"""A job with a table wherever there may be one."""


def test_the_next_command_makes_this_very_run() -> None:
    from cnnjob.jobs.job import Job

    assert Job.load("tiny.toml") == pending_run(Path("runs")).job()
    run = with_job(
        pending_run(Path("my runs"), seed=3, optimiser={"sgd": {"momentum": 0.5}}, early_stopping={"patience": 2})
    )
    request = {"partition": "gpu", "time": "2h", "mem": "3G"}
    files.write_json(run.slurm_folder / "request.json", request)
    command = next_command.continue_command(run, change="--mem")
    assert command == (
        "cnnjob submit tiny.toml --set seed=3 --set train.optimiser.sgd.momentum=0.5 "
        "--set train.early_stopping.patience=2 --partition gpu --time 2h --mem 6G --runs 'my runs'"
    )
    more = {"mem": None, "mem_per_cpu": "2G", "gres": "lustre:2", "cpus_per_task": 4, "requeue": False}
    files.write_json(run.slurm_folder / "request.json", {**request, **more, "gpus": 1, "sbatch": {"licenses": "a:1"}})
    assert next_command.continue_command(run, change="--mem").endswith(
        "--partition gpu --time 2h --cpus-per-task 4 --mem-per-cpu 4G --gres lustre:2 --no-requeue "
        "--sbatch licenses=a:1 --runs 'my runs'"
    )
    sets = ("seed=3", "train.optimiser.sgd.momentum=0.5", "train.early_stopping.patience=2")
    assert Job.load("tiny.toml", sets) == run.job()
    other = pending_run(Path("runs"), seed=7)
    changed = files.read_json(other.job_file)
    changed["job"]["model"]["blocks"][1]["activation"] = "none"
    change_job(other, **changed)
    assert next_command.continue_command(other) == f"cnnjob train {other.path}"  # another job of the same name


@pytest.mark.parametrize(
    "sets",
    [
        (),
        ("seed=3",),
        ("train.optimiser=adamw",),
        ("train.optimiser={ adamw = { beta2 = 0.99 } }", "train.weight_decay=0.1"),
        ("train.optimiser={ sgd = { momentum = 0.0 } }",),
        ("train.optimiser=sgd",),
        ("train.optimiser.sgd.momentum=0.5",),
        ("train.schedule=constant",),
        ("train.schedule=cosine", "train.schedule.cosine.warmup=0.1"),
        ("train.schedule={ triangular = { end_factor = 0.5 } }",),
        ("train.lookahead=false",),
        ("train.lookahead=true",),
        ("train.lookahead.every=3",),
        ("train.early_stopping=false",),
        ("train.early_stopping={ patience = 1 }",),
        ("train.early_stopping=false", "train.select_on=last"),
        ("train.epochs=2",),
        ("data.augment=false",),
        ("data.augment={ flip = 'random' }", "data.pixels=unit", "data.validation_fraction=0.5"),
        (
            "model.blocks=[{ residual = [{ conv = 1, batch_norm = true }] }, { dropout = 0.5 }]",
            "model.classifier.bias=false",
        ),
        ("model.blocks.0.batch_norm=false", "model.blocks.0.activation=gelu", "model.blocks.0.init=0.5"),
        ("model.blocks=[]", "model.classifier.init=0.1", "model.classifier.output_scale=0.5"),
        ("resources.backend=numpy", "train.checkpoint_seconds=1"),
        ("train.precision=tf32", "train.label_smoothing=0.1", "train.test_time_augmentation=flip"),
        ("name=of my own",),
        ("dataset=elsewhere/other.h5",),
    ],
    ids=" ".join,
)
def test_the_next_command_of_any_change_makes_this_very_run(sets: tuple[str, ...]) -> None:
    Path("full.toml").write_text(FULL)
    job = Job.load("full.toml", sets)
    run = frozen_run(Path("runs"), job)
    command, verb, name, *options = shlex.split(next_command.continue_command(run))
    assert (command, verb, set(options[::2]) <= {"--set"}) == ("cnnjob", "train", True)
    again = Job.load(name, options[1::2])
    assert (again.digest(DATA_DIGEST), again.resources, again.dataset) == (
        job.digest(DATA_DIGEST), job.resources, job.dataset,
    )  # fmt: skip


def test_the_next_command_says_where_the_data_lies() -> None:
    run = pending_run(Path("runs"))
    data = files.read_json(run.job_file)["data"]
    for place, said in (("data", ""), ("else/where", " --data else/where"), ("/far away", " --data '/far away'")):
        about = {"image_shape": [6, 6, 1], "class_names": ["ant"], "mean": [0.5], "std": [0.5]}
        change_job(run, data={**about, **data, "path": str(Path(place, "tiny.h5").absolute())})
        assert next_command.continue_command(run) == f"cnnjob train tiny.toml{said}"


def test_a_batch_of_one_image_is_not_halved() -> None:
    halved = next_command.continue_command(pending_run(Path("runs"), batch_size=8), change="train.batch_size")
    assert "--set train.batch_size=4" in halved
    smallest = pending_run(Path("runs"), batch_size=1)
    command = next_command.continue_command(smallest, change="train.batch_size")
    assert command == next_command.continue_command(smallest)
