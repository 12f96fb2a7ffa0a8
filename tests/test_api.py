"""The verbs of a notebook: the same files as the commands of these names."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import cnnjob
from cnnjob.errors import DataError, JobError
from cnnjob.runs.checkpoints import newest_step
from cnnjob.training.progress import NoProgress
from tests.helpers.fake_slurm import ANSWERS, FakeSlurm
from tests.helpers.run_folders import pending_run, stopped_run

ROOT = Path(cnnjob.__file__).parents[1]


@pytest.mark.usefixtures("no_slurm")
def test_the_verbs_do_what_the_commands_do() -> None:
    digits = cnnjob.prepare("digits")
    assert (digits.path, cnnjob.prepare("digits").digest) == (Path("data/digits.h5"), digits.digest)
    job = cnnjob.Job.load("toy.toml", ["train.epochs=1"])
    run = cnnjob.train(job)
    assert (run.state(), run.path.parent, len(run.history())) == ("finished", Path("runs"), 1)
    assert cnnjob.train(job) == run
    stopped = stopped_run(Path("elsewhere"))
    reported = cnnjob.report([stopped], Path("some"))  # a whole folder is reported by the README's notebook
    assert ([row["run"] for row in reported.rows], Path("some/index.html").exists()) == ([stopped.name], True)
    drawn = cnnjob.report([stopped], Path("some"), figures=["pdf"])
    assert {path.suffix for path in drawn.files} & {".png", ".svg", ".pdf"} == {".pdf"}


@pytest.mark.usefixtures("no_slurm")
def test_paths_may_be_strings() -> None:
    toy = cnnjob.Dataset.open("data/toy.h5")
    assert toy == cnnjob.Dataset.open(Path("data/toy.h5")) == cnnjob.Dataset.find("toy", "data")
    run = cnnjob.train(cnnjob.Job.load("toy.toml", ["train.epochs=1"]), data="data", runs="others", progress=False)
    assert cnnjob.Run(f"others/{run.name}") == run == cnnjob.Run.all("others")[0]
    accuracy = run.result()["test_accuracy"]
    for named in (str(run.path), run.path, run.name):
        assert cnnjob.evaluate(named, "data/toy.h5", runs="others").overall[0] == accuracy
    for what in ("others", run, [run]):
        assert [row["run"] for row in cnnjob.report(what, "here").rows] == [run.name]
    assert cnnjob.prepare("digits", "elsewhere/own.h5").path == Path("elsewhere/own.h5")


@pytest.mark.usefixtures("no_slurm")
def test_a_script_sees_one_line_per_epoch_on_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    cnnjob.train(cnnjob.Job.load("toy.toml", ["train.epochs=2"]))
    shown = capfd.readouterr()
    assert not shown.out
    assert [line.partition(":")[0] for line in shown.err.splitlines() if line.startswith("epoch")] == [
        "epoch 1/2", "epoch 2/2",
    ]  # fmt: skip
    cnnjob.train(cnnjob.Job.load("toy.toml", ["train.epochs=1"]), progress=False)
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("no_slurm")
def test_predict_takes_addresses_files_and_arrays(tmp_path: Path) -> None:
    run = cnnjob.train(cnnjob.Job.load("toy.toml", ["train.epochs=1"]), progress=False)
    images, labels = cnnjob.Dataset.open(Path("data/toy.h5")).load("test")
    first, second = cnnjob.predict(run, ["test:0", "test:1"])
    toy = cnnjob.Dataset.open(Path("data/toy.h5"))
    assert [first.true_class, second.true_class] == [toy.class_names[label] for label in labels[:2]]
    assert (
        repr(first)
        == f"Prediction of test:0: {first.class_name} {first.probability:.3f}, true class {first.true_class}"
    )
    np.save(tmp_path / "two.npy", images[:2])
    for given in (images[:2], images[:2, :, :, 0], [images[0], images[1, :, :, 0]], tmp_path / "two.npy"):
        found = cnnjob.predict("latest", given)
        assert [each.probabilities for each in found] == [first.probabilities, second.probabilities]
    assert [each.image for each in cnnjob.predict(run.name[:6], [images[0], images[1]])] == ["array[0]", "array[1]"]
    assert cnnjob.predict(run, 255 - images[0], invert=True)[0].probabilities == first.probabilities
    for wrong in (images[:2].astype(np.float32), images[:, :3], images[0, 0]):
        with pytest.raises(DataError, match=r"^images: the network requires uint8 .6, 6, 1. or .N, 6, 6, 1. .found "):
            cnnjob.predict(run, wrong)
    assert cnnjob.evaluate("latest", "toy").overall[0] == run.result()["test_accuracy"]
    with pytest.raises(DataError, match="gone: no such run"):
        cnnjob.predict("gone", "test:0")


@pytest.mark.usefixtures("no_slurm")
def test_predict_with_the_best_weights_so_far_warns() -> None:
    class StopsInTheSecondEpoch(NoProgress):
        def step(self, epoch: int, step: int) -> None:
            if epoch == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    run = cnnjob.train(cnnjob.Job.load("toy.toml"), progress=StopsInTheSecondEpoch())
    with pytest.warns(UserWarning, match="not finished; using its best weights so far, those of epoch 1"):
        [found] = cnnjob.predict(run, "test:0")
    assert abs(sum(found.probabilities.values()) - 1) < 1e-5


@pytest.mark.usefixtures("no_slurm")
def test_an_interrupt_is_raised_after_the_work_is_saved() -> None:
    class Interrupted(NoProgress):
        def step(self, epoch: int, step: int) -> None:
            if step == 5:
                os.kill(os.getpid(), signal.SIGINT)

    job = cnnjob.Job.load("toy.toml", ["train.epochs=1"])
    with pytest.raises(KeyboardInterrupt, match=r"runs/toy-.*stopped, and all work is saved"):
        cnnjob.train(job, progress=Interrupted())
    (run,) = cnnjob.Run.all(Path("runs"))
    assert (run.state(), newest_step(run.checkpoints_folder)) == ("stopped", 5)
    with pytest.raises(DataError, match=r"no result, since the run is not finished .found state stopped."):
        run.result()
    assert cnnjob.train(job).result()["epochs"] == 1


def test_submit(no_slurm: FakeSlurm) -> None:
    no_slurm.install(**ANSWERS)
    jobs = [cnnjob.Job.load("toy.toml", [f"seed={seed}"]) for seed in range(2)]
    runs = cnnjob.submit(jobs, partition="gpu", time="2h")
    assert [run.job().seed for run in runs] == [0, 1]
    [script] = Path("runs/.sweeps").glob("*/17_submission.sh")
    assert "#SBATCH --partition=gpu\n" in script.read_text()
    assert "#SBATCH --time=120\n" in script.read_text()
    with pytest.raises(JobError, match=r"partitoin: no such key\. Did you mean 'partition'"):
        cnnjob.submit(["toy.toml"], partitoin="gpu")


def require_three_lines(thing: object, *parts: str) -> None:
    text = repr(thing)
    assert all(part in text for part in parts), text
    assert len(text.splitlines()) <= 3, text
    assert max(map(len, text.splitlines())) <= 88, text


@pytest.mark.usefixtures("no_slurm")
def test_objects_describe_themselves_on_three_lines() -> None:
    toy = cnnjob.Dataset.open(Path("data/toy.h5"))
    require_three_lines(toy, "Dataset toy: data/toy.h5, digest ", "images 6×6×1: 216 train, 40 test", "classes: ")
    many = replace(toy, class_names=tuple(f"{'long' * 9} {number}" for number in range(100)), path=Path("x" * 200))
    require_three_lines(many, "…", "100 classes")
    job = cnnjob.Job.load("toy.toml", ["train.epochs=1"])
    require_three_lines(job, "Job toy: dataset toy, seed 0", "conv 4, dense 8", "1 epoch, batch size 8", "sgd")
    assert str(job) == repr(job)
    require_three_lines(cnnjob.Job.load(str(ROOT / "jobs" / "cifar10-resnet.toml")), "residual")
    run = cnnjob.train(job)
    require_three_lines(run, f"Run {run.path}: finished", "1 of 1 epochs", "test accuracy ", " parameters")
    require_three_lines(
        cnnjob.evaluate(run, toy), f"of {run.path} on the test images of toy", "accuracy", "lowest F1: "
    )
    require_three_lines(cnnjob.report([run]), "report/index.html: 1 run (1 finished)", f"best: {run.name}", "files")
    for other, state in ((stopped_run(Path("a")), "stopped"), (pending_run(Path("b")), "pending")):
        require_three_lines(other, f"Run {other.path}: {state}")
        require_three_lines(cnnjob.report([other], Path("other")), f"(1 {state})", "no results yet")
    run.result_file.write_text("{")
    require_three_lines(run, f"Run {run.path}", "result.json")
    require_three_lines(cnnjob.Run(Path("gone\nline")), "Run gone")
