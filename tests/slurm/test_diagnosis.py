"""Why a run is in its state: cause, evidence and the next command."""

import re
from pathlib import Path

import pytest

from cnnjob.runs.logs import last_attempt_log, last_error
from cnnjob.runs.run import Run
from tests.helpers.cli import cnnjob
from tests.helpers.fake_slurm import FakeSlurm, queue_row, set_answers
from tests.helpers.run_folders import change_json, finished_run, lost_run, pending_run, running_run, stopped_run
from tests.helpers.slurm_runs import (
    BANNER,
    ME,
    TRACE,
    UID,
    MakeRun,
    cancelled_by_script,
    cause_of,
    crash_loop,
    failed_run,
    lost_in_job,
    stopped_in_job,
    waiting_run,
    with_decision,
    with_job,
    with_log,
)

pytestmark = pytest.mark.usefixtures("idle_slurm")


def saved_at_637(root: Path, make: MakeRun = lost_run, **attempt: int) -> Run:
    run = make(root)
    change_json(run.attempt_files()[-1], **attempt)
    run.checkpoints_folder.mkdir(exist_ok=True)
    for step in (600, 637):
        (run.checkpoints_folder / f"step-{step:09}.npz").touch()
    return run


def killed_before_a_save(root: Path) -> Run:
    run = lost_in_job(root)
    change_json(run.attempt_files()[-1], step=None)
    return run


def cut_result(run: Run) -> Run:
    run.result_file.write_text(run.result_file.read_text()[:9])
    return run


NO_CUPY = (
    "resources.backend: 'auto', and this SLURM job was allocated GPU 0, but CuPy cannot be loaded (no). To train "
    "without a GPU, submit the job with --gpus 0, or set resources.backend to 'numpy'"
)
REQUEUED = "job 17 is requeued"
REQUEUED_LINE = f"cnnjob: /runs/x: {REQUEUED}\n"
NO_PYTHON = "cnnjob: /runs/x: /gone/bin/python cannot decide about a restart, exit code"


BATCH_SCRIPT_LOST = "it saved and stopped at step 150, but its batch script was killed or lost before restarting it"


def moved_while_it_ran(root: Path) -> Run:
    run = lost_in_job(root)
    change_json(run.submission_file, **run.identity())
    with_log(
        run, f"{BANNER}cnnjob: /tiny/attempts/0001.json: the record of this attempt was removed (found no record)\n"
    )
    return Run(run.path.rename(run.path.with_name("renamed")))


def requeued_then_ended(root: Path) -> Run:
    """Restarted once; then its batch script was killed, and its process asked to stop."""
    run = with_decision(stopped_in_job(root), job_restarts=0, said=REQUEUED)
    change_json(run.attempt_files()[-1], job_restarts=1)
    return with_log(run, REQUEUED_LINE + BANNER)


OOM = "slurmstepd: error: Detected 1 oom_kill event in StepId=17.0. Some of the step tasks have been OOM Killed.\n"
NAN = "failed: {run}: the loss is nan at step 12 (epoch 1, previous loss 2.3, learning rate 9). Lower it"
OLDER_NAN = "failed: {run}: the loss is nan at step 12 (epoch 1), the step before it was 2.3, learning rate 9; lower it"


@pytest.mark.parametrize(
    ("make", "squeue", "sacct", "sentence", "evidence", "command"),
    [
        (waiting_run, queue_row("PENDING", "PartitionTimeLimit"), "",
         "it requests more time than its partition allows, so it will never start with this request",
         "squeue: job 17 PENDING, PartitionTimeLimit",
         r"cnnjob cancel runs/\S+ && cnnjob submit tiny.toml --time TIME"),
        (waiting_run, queue_row("PENDING", "JobHeldUser"), "", "its job is waiting: it is held by its user",
         "squeue: job 17",
         "scontrol release 17"),
        (stopped_in_job, queue_row("PENDING", "Priority"), "",
         "its job is waiting: jobs of higher priority start first; it will resume at step 150", "Priority", ""),
        (stopped_in_job, "", f"17|CANCELLED by {UID}|0:0||\n", rf"its job 17 was cancelled by {ME} \(user {UID}\)",
         f"sacct: CANCELLED by {UID}", "cnnjob submit tiny.toml"),
        (waiting_run, "", "17|CANCELLED by 987654|0:0||\n", "its job 17 was cancelled by user 987654", "sacct: ",
         "cnnjob submit .*"),
        (cancelled_by_script, "", "", "its job 17 was cancelled", "slurm/restarts.json: ended_by cancelled",
         "cnnjob submit .*"),
        (lambda root: with_log(lost_in_job(root), BANNER + OOM), "", "", "it ran out of memory",
         "17_0_log.out: slurmstepd: ",
         "cnnjob submit tiny.toml --mem 8G"),
        (lost_in_job, "", "17|FAILED|137:0|n1|\n17.0|OUT_OF_MEMORY|0:125|n1|\n", "it ran out of memory",
         "sacct: job 17 FAILED, a step OUT_OF_MEMORY", "cnnjob submit .* --mem 8G"),
        (lambda root: failed_run(root, "failed: MemoryError: Unable to allocate 9 GiB"), "", "", "it ran out of memory",
         "attempts/0001.json: ", "cnnjob submit .* --mem 8G"),
        (lambda root: with_log(failed_run(root, "failed: OutOfMemoryError: Out of memory allocating 9 bytes"),
         BANNER + "cupy.cuda.memory.OutOfMemoryError: Out of memory allocating 9 bytes\n"), "", "",
         "the GPU ran out of memory", "cupy", ".*train.batch_size=5"),
        (lambda root: with_decision(lost_in_job(root), code=137, said="job 17 is requeued"), "", "",
         r"it was killed by signal 9 \(SIGKILL\)", "slurm/restarts.json: code 137", "cnnjob submit .*"),
        (lambda root: with_decision(stopped_in_job(root), ended_by="time limit", said="not restarted, no"), "", "",
         "its job reached the time limit and was not restarted: no", "slurm/restarts.json", "cnnjob submit .*"),
        (lambda root: with_decision(stopped_in_job(root), ended_by="unknown",
         said="not restarted, refused by SLURM (X): at most 2 jobs. Wait; to go on: cnnjob submit tiny"), "", "",
         r"its job ended and was not restarted: refused by SLURM \(X\): at most 2 jobs. Wait", "slurm/restarts.json",
         "cnnjob submit tiny.toml"),
        (lambda root: with_decision(stopped_in_job(root), ended_by="unknown",
         said="not restarted, refused by SLURM (X): at most 1 job. Wait; to resume: cnnjob submit tiny"), "", "",
         r"its job ended and was not restarted: refused by SLURM \(X\): at most 1 job. Wait", "slurm/restarts.json",
         "cnnjob submit tiny.toml"),
        (lost_in_job, "", "17|TIMEOUT|0:0|n1|\n", "its job reached the time limit", "sacct: job 17 TIMEOUT",
         "cnnjob submit .*"),
        (lost_in_job, "", "17|PREEMPTED|0:0|n1|\n", "its job was preempted by a job of higher priority", "sacct: ",
         "cnnjob submit .*"),
        (lost_in_job, "", "17|NODE_FAIL|0:0|n7|\n", r"its job's node failed \(n7\)", "sacct: ",
         "cnnjob submit .*"),
        (lost_in_job, queue_row("NODE_FAIL", node="n7"), "", r"its job's node failed \(n7\)", "squeue: ",
         "cnnjob submit .*"),
        (lambda root: failed_run(root, "failed: OSError: [Errno 28] No space left on device"), "", "",
         "the disk is full",
         "No space left", "df -h runs/.*"),
        (lambda root: failed_run(root, NAN.format(run=root)), "", "", r".*, previous loss 2.3, learning rate 9\)",
         "attempts/0001.json", "cnnjob submit tiny.toml --set train.learning_rate=0.005"),
        (lambda root: failed_run(root, OLDER_NAN.format(run=root)), "", "", r".*the loss is nan .*, learning rate 9",
         "attempts/0001.json", "cnnjob submit tiny.toml --set train.learning_rate=0.005"),
        (lambda root: with_log(failed_run(root), BANNER + TRACE), "", "", "KeyError: 'x' at /a/loops.py:12 in _step",
         "attempts/0001.json and runs/", "cnnjob logs .*"),
        (failed_run, "", "", "KeyError: 'x'", "attempts/0001.json", "cnnjob logs .*"),
        (lambda root: with_log(crash_loop(root), "srun: error\n"), "", "",
         r"3 restarts without progress, each time killed by signal 9 \(SIGKILL\)", "slurm/restarts.json",
         "cnnjob logs .*"),
        (lambda root: with_log(with_decision(waiting_run(root), code=3, said="not restarted after the job's own error"),
         "cnnjob: data/tiny.h5: no such file\ncnnjob: x: not restarted after the job's own error\n"), "", "",
         "data/tiny.h5: no such file", "17_0_log.out", "cnnjob logs .*"),
        (lambda root: with_log(with_decision(waiting_run(root), code=2, said="not restarted after the job's own error"),
         f"cnnjob: {NO_CUPY}\ncnnjob: x: not restarted after the job's own error\n"), "", "",
         re.escape(NO_CUPY), "17_0_log.out", "cnnjob submit tiny.toml --gpus 0"),
        (lambda root: with_log(with_decision(waiting_run(root), code=127, said="the job's own error is not restarted"),
         "/x/slurm_script: line 9: module: not found\ncnnjob: x: the job's own error is not restarted\n"), "", "",
         "its job ended with exit code 127", "17_0_log.out: /x/slurm_script: line 9: module: not found", ".*"),
        (lambda root: with_log(lost_in_job(root), TRACE), "", "", "KeyError: 'x' at /a/loops.py:12 in _step",
         "17_0_log.out", "cnnjob logs .*"),
        (lambda root: with_log(lost_in_job(root), OOM + BANNER.replace("1 on", "2 on")), "", "17|FAILED|1:0|n1|\n",
         "it ran out of memory", "slurmstepd", ".*"),
        (lambda root: with_log(lost_in_job(root), OOM + BANNER + "epoch 1\n"), "", "17|FAILED|1:0|n1|\n",
         "its job failed; the run's folder does not show why", "sacct: job 17 FAILED, exit code 1:0", "cnnjob logs .*"),
        (stopped_in_job, "", "", BATCH_SCRIPT_LOST,
         "attempts/0001.json: stopped: SIGTERM; its batch script recorded no decision about a restart",
         "cnnjob submit .*"),
        (moved_while_it_ran, "", "", r"its folder was moved from /\S+/tiny-\w+ during training, so training stopped",
         "17_0_log.out: /tiny/attempts/0001.json: the record of this attempt was removed",
         r"mv runs/renamed runs/tiny-\w+ && cnnjob submit tiny.*"),
        (requeued_then_ended, "", "17|FAILED|0:9|n1|\n",
         BATCH_SCRIPT_LOST,
         "attempts/0001.json: stopped: SIGTERM; its batch script recorded no decision about a restart",
         "cnnjob submit .*"),
        (lambda root: with_log(stopped_in_job(root), f"{REQUEUED_LINE}srun: error\n{NO_PYTHON} 127\n"), "", "",
         "its job could not start: /gone/bin/python is missing or cannot be executed, so it was not restarted",
         "17_0_log.out: srun: error", "cnnjob submit .*"),
        (lambda root: with_log(waiting_run(root), f"{TRACE}{NO_PYTHON} 1\n"), "", "",
         "its job could not start: /gone/bin/python cannot run cnnjob, so it was not restarted",
         "17_0_log.out: KeyError: 'x' at ", "cnnjob submit .*"),
        (lambda root: with_decision(lost_in_job(root), code=254, said="3 restarts without progress"), "", "",
         "3 restarts without progress, each time not started by srun", "slurm/restarts.json", "cnnjob logs .*"),
        (lambda root: with_decision(lost_in_job(root), code=142, said=REQUEUED), "", "",
         "it was terminated because it did not stop before its job ended", "code 142", "cnnjob submit .*"),
        (stopped_run, "", "", "it was asked to stop .*", "attempts/0001.json", "cnnjob train tiny.toml"),
        (lost_run, "", "", "the process died without recording why",
         "attempts/0001.json: no heartbeat for ", "cnnjob train tiny.toml"),
        (saved_at_637, "", "", "the process died without recording why; step 637 is saved", "attempts/0001.json", ".*"),
        (waiting_run, "", "", r"job 17 left the queue before it started \(cancelled or purged\)",
         "squeue does not list it, sacct has no record of it", "cnnjob submit .*"),
        (pending_run, "", "", "it was never submitted", "not submitted", "cnnjob train tiny.toml"),
        (finished_run, "", "", "finished", "result.json", r"cnnjob report runs/\S+"),
        (lambda root: cut_result(finished_run(root)), "", "", "its result cannot be read; .*",
         "result.json: not readable as JSON", r"rm runs/\S+/result.json && cnnjob train tiny.toml"),
        (running_run, "", "", "in epoch 3 of 4 on .*", "its heartbeat is recent, started",
         r"cnnjob logs runs/\S+ -f"),
        (lambda root: saved_at_637(root, running_run, steps=1200), "", "",
         "in epoch 3 of 4 on .*; step 637 of 1,200 is saved", "its heartbeat is recent, started",
         r"cnnjob logs runs/\S+ -f"),
        (killed_before_a_save, queue_row("PENDING", "BeginTime"), "",
         "its job is waiting: its earliest start time has not been reached; it will start from the beginning",
         "BeginTime", ""),
    ],
)  # fmt: skip
def test_causes(
    idle_slurm: FakeSlurm, make: MakeRun, squeue: str, sacct: str, sentence: str, evidence: str, command: str
) -> None:
    run = make(Path("runs"))
    set_answers(idle_slurm, squeue, sacct)
    found = cause_of(run)
    assert re.fullmatch(sentence, found.sentence), found
    assert evidence in found.evidence, found
    assert re.fullmatch(command, found.command), found
    shown = cnnjob("status", str(run.path))
    assert shown.exit_code == 0, shown.output
    assert f"cause:     {found.sentence}\n" in shown.stdout
    assert (f"next:      {found.command}\n" in shown.stdout) == bool(found.command)


@pytest.mark.parametrize("sacct", ["exit 1", None])
def test_sacct_is_no_evidence_where_it_gave_no_answer(idle_slurm: FakeSlurm, sacct: str | None) -> None:
    run = waiting_run(Path("runs"))
    idle_slurm.install(sacct=sacct)
    found = cause_of(run)
    assert found.sentence == "job 17 left the queue before it started (cancelled or purged)"
    assert "squeue does not list it, sacct did not answer, and it left no attempt" in found.evidence


def test_a_job_that_ends_before_its_run_began_does_not_wait(idle_slurm: FakeSlurm) -> None:
    run = waiting_run(Path("runs"))
    set_answers(idle_slurm, queue_row("COMPLETING", "NonZeroExitCode"))
    told = cause_of(run)
    assert told.sentence == "its job is ending, and the run has not begun"
    assert told.evidence == "squeue: job 17 COMPLETING, NonZeroExitCode"


def test_only_the_last_life_counts() -> None:
    run = with_log(with_job(stopped_run(Path("runs"))), f"{BANNER}{TRACE}{BANNER.replace('1 on', '2 on')}epoch 1\n")
    assert last_error(last_attempt_log(run)) == ""
