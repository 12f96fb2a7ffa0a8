"""What a site allows, and what would become of a request there."""

import json
from pathlib import Path

import pytest

from cnnjob.errors import SchedulerError
from cnnjob.runs.run import Run
from cnnjob.slurm.scheduler import site
from cnnjob.slurm.submit.dry_run import describe_preemption, describe_time_limit
from cnnjob.slurm.submit.request import Request
from tests.helpers.cli import cnnjob
from tests.helpers.fake_slurm import FakeSlurm

PARTITIONS = (
    *("PartitionName=gpu Default=YES DefaultTime=00:05:00 MaxTime=1-00:00:00 State=UP PreemptMode=OFF",),
    *("PartitionName=low MaxTime=UNLIMITED GraceTime=30 PreemptMode=REQUEUE AllowAccounts=us,them",),
    *("PartitionName=spare PreemptMode=CANCEL GraceTime=0",),
)


def looked(counting_slurm: FakeSlurm, config: str = "JobRequeue = 1\nMaxArraySize = 5\nKillWait = 20 sec") -> site.Site:
    printed = "; ".join(f'echo "{line}"' for line in PARTITIONS)
    counting_slurm.install(scontrol=f'case "$*" in *config*) echo "{config}";; *) {printed};; esac')
    return site.query_site()


def test_a_site_is_read(counting_slurm: FakeSlurm) -> None:
    found = looked(counting_slurm)
    both = found.partitions["gpu"], found.partitions["low"]
    assert [partition.is_default for partition in both] == [True, False]
    assert [(partition.max_minutes, partition.default_minutes) for partition in both] == [(1440, 5), (None, None)]
    assert [(partition.preempt_mode, partition.grace_seconds) for partition in both] == [("OFF", 0), ("REQUEUE", 30)]
    assert [partition.accounts for partition in both] == [("ALL",), ("us", "them")]
    assert (found.max_array_size, found.kill_wait_seconds) == (5, 20)
    assert found.requeues
    assert not found.signals_preempted
    assert looked(counting_slurm, "SlurmctldParameters = a,preempt_send_user_signal").signals_preempted
    assert looked(counting_slurm, "nothing").max_array_size == 1001


def test_one_partition_of_several_is_enough(counting_slurm: FakeSlurm) -> None:
    found = looked(counting_slurm)
    found.check(Request(partition="gpu,low", time="2-0"))
    found.check(Request(time="1-0", account="anyone"))
    for wrong in (Request(time="25h"), Request(partition="low", account="thm"), Request(partition="lo")):
        with pytest.raises(SchedulerError):
            found.check(wrong)


@pytest.mark.parametrize(
    ("request_", "limit", "preemption"),
    [
        (
            Request(),
            "after 5 min: 90 s before that, on SLURM's signal or by its own clock",
            "jobs in gpu are not preempted by jobs in other partitions",
        ),
        (
            Request(partition="low", time="2h"),
            "after 2 h: 90 s before that, on SLURM's signal or by its own clock, the job saves and stops; "
            "its batch script requeues it",
            "a job preempted in low receives SIGTERM and has 30 s to save and stop; SLURM requeues it",
        ),
        (
            Request(partition="low", requeue=False),
            "at the site's time limit: ",
            "SLURM does not requeue it (REQUEUE), so its batch script submits a successor",
        ),
        (
            Request(partition="spare", requeue=False),
            "its batch script submits a successor, and it resumes",
            "a job preempted in spare receives SIGTERM and has 20 s to save and stop; SLURM does not requeue it "
            "(CANCEL), so its batch script submits a successor",
        ),
    ],
)
def test_what_will_happen_is_said(counting_slurm: FakeSlurm, request_: Request, limit: str, preemption: str) -> None:
    found = looked(counting_slurm)
    assert limit in describe_time_limit(request_, found)
    assert preemption in describe_preemption(request_, found)


def test_a_dry_run_asks_slurm(counting_slurm: FakeSlurm) -> None:
    looked(counting_slurm)
    counting_slurm.install(sbatch='[ "$1" = --test-only ] && echo "sbatch: Job 5 to start at noon" >&2')
    found = cnnjob("submit", "toy.toml", "--dry-run", "--no-rehearsal")
    assert "\nSLURM: Job 5 to start at noon\n" in found.stdout
    counting_slurm.install(sbatch='echo "allocation failure: no such node" >&2; exit 1')
    refused = cnnjob("submit", "toy.toml", "--dry-run", "--no-rehearsal")
    assert refused.exit_code == 4
    assert "this request would be refused: sbatch --test-only: refused, allocation failure: no such" in refused.stderr
    counting_slurm.install(scontrol='echo "Unable to contact slurm controller" >&2; exit 1')
    silent = cnnjob("submit", "toy.toml", "--dry-run", "--no-rehearsal")
    assert (silent.exit_code, "\nSLURM: scontrol --all show partition" in silent.stdout) == (0, True)


@pytest.mark.usefixtures("no_slurm")
def test_the_time_is_known_from_finished_runs_of_the_same_shape() -> None:
    dry = ("submit", "toy.toml", "--dry-run", "--no-rehearsal")
    assert (
        "\ntime: unknown: no run with the same data, blocks and batch size has finished in runs\n"
        in cnnjob(*dry).stdout
    )
    assert cnnjob("train", "toy.toml").exit_code == 0
    [run] = Run.all(Path("runs"))
    result = json.loads(run.result_file.read_text())
    run.result_file.write_text(json.dumps({**result, "train_seconds": 20.0, "epochs": 2, "device": "GPU"}))
    said = "\ntime: 1 min of training on GPU, based on 1 finished run with the same data, blocks and batch size\n"
    assert said in cnnjob(*dry, "--set", "train.epochs=6", "--set", "seed=9").stdout
    assert "\ntime: unknown" in cnnjob(*dry, "--set", "train.batch_size=9").stdout
    run.result_file.write_text("{}")
    assert "\ntime: unknown" in cnnjob(*dry).stdout
