"""Sweeps as job arrays, without a SLURM."""

import json
from pathlib import Path

import pytest

from cnnjob import files
from cnnjob.errors import DataError
from cnnjob.runs.run import Run
from cnnjob.slurm import job_index
from cnnjob.slurm.job_array import JobArray
from cnnjob.slurm.scheduler.queue import QueuedJob
from cnnjob.slurm.submit import submission
from cnnjob.slurm.submit.request import Request
from tests.helpers.cli import cnnjob
from tests.helpers.fake_slurm import PENDING_FIELDS, FakeSlurm
from tests.helpers.run_folders import pending_run, running_run
from tests.helpers.slurm_runs import on_another_host, write_result

SWEEP = ("submit", "toy.toml", "--sweep", "train.learning_rate=0.1,0.2", "--seeds", "2")


def waits(job_id: str, comment: str) -> QueuedJob:
    return QueuedJob(job_id, "PENDING", "Resources", "", "N/A", "N/A", comment)


def folder() -> Path:
    [found] = Path("runs/.sweeps").iterdir()
    return found


@pytest.mark.usefixtures("counting_slurm")
def test_a_sweep_is_one_job_array() -> None:
    shown = cnnjob(*SWEEP, "--parallel", "3", "--dry-run", "--no-rehearsal").stdout
    found = cnnjob(*SWEEP, "--parallel", "3")
    assert found.exit_code == 0, found.output
    lines = found.stdout.splitlines()
    assert [line.partition(" (")[2].partition(": 1 node")[0] for line in lines] == [
        f"seed={seed}, train.learning_rate={rate}): submitted as job 17_{element}"
        for element, (rate, seed) in enumerate([(0.1, 0), (0.1, 1), (0.2, 0), (0.2, 1)])
    ]
    script = Path("17.sh").read_text()
    assert "#SBATCH --array=0-3%3\n" in script
    assert "#SBATCH --job-name=toy\n" in script
    assert f"\n{script}\nnothing was submitted\n" in shown
    assert (folder() / "17_submission.sh").read_text() == script
    assert len(list(folder().glob("17_*_submitted.pkl"))) == 4


@pytest.mark.usefixtures("counting_slurm")
def test_each_run_knows_its_element() -> None:
    cnnjob(*SWEEP)
    batch = JobArray.read(folder())
    for element, run in enumerate(batch.runs):
        said = files.read_json(run.submission_file)
        assert said["job_id"] == f"17_{element}"
        assert said["log"] == str(folder().resolve() / f"17_{element}_0_log.out")
        assert Request.model_validate(files.read_json(run.slurm_folder / "request.json")).gpus == 0
    assert batch.comment == said["comment"]


def test_what_is_finished_runs_or_waits_is_left_out(counting_slurm: FakeSlurm) -> None:
    cnnjob(*SWEEP)
    runs = JobArray.read(folder()).runs
    write_result(runs[0])
    counting_slurm.install(squeue=f'echo "17_2{PENDING_FIELDS}cnnjob {folder().resolve()} 4"')
    said = [line.partition("): ")[2].partition(": 1 node")[0] for line in cnnjob(*SWEEP).stdout.splitlines()]
    assert said == [
        "finished, nothing submitted", "submitted as job 18_0", "queued as 17_2, nothing submitted",
        "submitted as job 18_1",
    ]  # fmt: skip
    assert "#SBATCH --array=0-1%2\n" in Path("18.sh").read_text()


@pytest.mark.usefixtures("counting_slurm")
def test_a_finished_sweep_submits_nothing_and_asks_nobody(counting_slurm: FakeSlurm) -> None:
    cnnjob(*SWEEP)
    for run in JobArray.read(folder()).runs:
        write_result(run)
    counting_slurm.install(scontrol="exit 1", squeue="exit 1", sbatch="exit 1")
    again = cnnjob(*SWEEP)
    assert (again.exit_code, again.stdout.count("finished, nothing submitted\n")) == (0, 4), again.output


def test_an_array_is_split_where_the_site_wants_it(counting_slurm: FakeSlurm) -> None:
    config = 'case "$*" in *config*) echo "MaxArraySize = 3";; *) echo PartitionName=gpu;; esac'
    counting_slurm.install(scontrol=config)
    found = cnnjob("submit", "toy.toml", "--seeds", "7", "--dependency", "afterok:5")
    assert found.exit_code == 0, found.output
    assert [f"17_{n}" in found.stdout for n in range(4)] == [True, True, True, False]
    assert ": submitted as job 19: " in found.stdout  # the last one is alone
    arrays = [Path(f"{number}.sh").read_text() for number in (17, 18, 19)]
    assert ["--array=0-2%3" in script for script in arrays] == [True, True, False]
    assert all("--dependency=afterok:5\n" in script for script in arrays)


def test_the_parts_of_a_split_array_do_not_add_up(counting_slurm: FakeSlurm) -> None:
    config = 'case "$*" in *config*) echo "MaxArraySize = 3";; *) echo PartitionName=gpu;; esac'
    counting_slurm.install(scontrol=config)
    cnnjob("submit", "toy.toml", "--seeds", "7", "--parallel", "2")
    waits = [Path(f"{number}.sh").read_text().partition("--dependency=")[2].split("\n")[0] for number in (17, 18, 19)]
    assert waits == ["", "afterany:17", "afterany:17,afterany:18"]
    for run in Run.all(Path("runs")):  # what the user asked for
        assert files.read_json(run.slurm_folder / "request.json")["dependency"] is None


def test_arrays_that_were_accepted_before_a_refusal_are_named(counting_slurm: FakeSlurm) -> None:
    config = 'case "$*" in *config*) echo "MaxArraySize = 3";; *) echo PartitionName=gpu;; esac'
    taken = (counting_slurm.folder / "sbatch").read_text().partition("\n")[2]
    counting_slurm.install(
        scontrol=config, sbatch=f'[ ! -e 17.sh ] || {{ echo "sbatch: error: too many" >&2; exit 1; }}; {taken}'
    )
    found = cnnjob("submit", "toy.toml", "--seeds", "5")
    assert (found.exit_code, "too many" in found.stderr) == (4, True)
    assert [f": submitted as job 17_{n}: " in found.stdout for n in range(3)] == [True] * 3
    assert found.stdout.count("\n") == 3


def test_a_refused_sweep_leaves_nothing_behind(counting_slurm: FakeSlurm) -> None:
    cnnjob("submit", "toy.toml", "--seeds", "2")
    [kept] = Path("runs/.sweeps").iterdir()
    counting_slurm.install(sbatch='echo "sbatch: error: too many" >&2; exit 1')
    found = cnnjob("submit", "toy.toml", "--sweep", "train.epochs=7,8")
    assert (found.exit_code, "too many" in found.stderr) == (4, True)
    assert [*Path("runs/.sweeps").iterdir()] == [kept]
    assert len(Run.all(Path("runs"))) == 2


@pytest.mark.parametrize("shown", ["(null)", "N/A", "the site wrote this"])
def test_a_job_whose_comment_the_site_changes_is_known(counting_slurm: FakeSlurm, shown: str) -> None:
    counting_slurm.install(squeue=f'[ ! -e 17.sh ] || echo "17{PENDING_FIELDS}{shown}"')
    assert ": submitted as job 17: " in cnnjob("submit", "toy.toml").stdout
    assert cnnjob("submit", "toy.toml").stdout.endswith(": queued as 17, nothing submitted\n")
    assert json.loads(cnnjob("status", "--json").stdout)[0]["state"] == "pending"


@pytest.mark.parametrize("answer", ['echo "17|???"', "echo '17|PENDING|Priority||'", "echo 'slurm_load_jobs: odd'"])
def test_nothing_is_submitted_where_the_queue_is_not_understood(counting_slurm: FakeSlurm, answer: str) -> None:
    counting_slurm.install(squeue=answer)
    found = cnnjob("submit", "toy.toml")
    assert (found.exit_code, "its output could not be parsed" in found.stderr) == (4, True), found.output
    assert not list(Path().glob("*.sh"))


def test_few_questions_about_runs_whose_jobs_are_in_the_queue(counting_slurm: FakeSlurm) -> None:
    runs = [on_another_host(running_run(Path("runs"), seed=seed), 20, str(40 + seed)) for seed in range(4)]
    lines = "".join(f'echo "{number}|RUNNING|None|n1|N/A|N/A|x";' for number in range(40, 43))
    counting_slurm.install(squeue=lines, scontrol='echo "$*" >> asked; echo JobState=RUNNING')
    assert {done.status for done in submission.submit(runs, Request())} == {"running"}
    assert Path("asked").read_text().splitlines() == ["show job 43"]
    counting_slurm.install(squeue="exit 1")
    assert {done.status for done in submission.submit(runs, Request())} == {"running"}
    assert len(Path("asked").read_text().splitlines()) == 1


@pytest.mark.usefixtures("counting_slurm")
def test_a_percent_sign_in_the_folder_is_refused() -> None:
    found = cnnjob("submit", "toy.toml", "--runs", "100%")
    assert (found.exit_code, found.stderr) == (
        2, f"cnnjob: --runs {Path.cwd()}/100%: SLURM would expand the % in this path. Choose a folder without a %\n",
    )  # fmt: skip


def test_a_batch_is_read_as_it_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [pending_run(tmp_path / name) for name in "abc"]
    batch = JobArray.of(runs)
    batch.write()
    assert JobArray.read(batch.folder) == batch
    assert JobArray.of([runs[0]]).folder == runs[0].path
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    assert batch.own_run() == runs[2]
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    with pytest.raises(DataError, match=r"no array task '3' .found 3 runs.. Submit the sweep again"):
        batch.own_run()
    (batch.folder / "runs.json").write_text("[]")
    with pytest.raises(DataError, match=r"damaged \(it has \d+ elements, expected at least"):
        JobArray.read(batch.folder)
    assert job_index.newest_job_ids([waits("7_1", f"cnnjob {batch.folder} 3")]) == {}


def test_a_job_in_the_queue_is_known_by_its_comment(tmp_path: Path) -> None:
    runs = [pending_run(tmp_path / name) for name in "abc"]
    batch = JobArray.of(runs)
    batch.write()
    comments = {"7_1": batch.comment, "7_9": batch.comment, "8": f"cnnjob {runs[0].path} 2", "9": "other 3", "10": ""}
    jobs = [waits(job_id, comment) for job_id, comment in comments.items()]
    assert job_index.newest_job_ids(jobs) == {runs[1].path: "7_1", runs[0].path: "8"}
