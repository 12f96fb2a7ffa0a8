"""After each attempt: who ended it, and what is decided.

Commands of SLURM are small shell scripts that answer as one does, or as none should.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cnnjob import files
from cnnjob.runs import process, restart_log
from cnnjob.runs.restart_log import NO_STEP, try_read_restart_log
from cnnjob.runs.run import Run
from cnnjob.slurm.node import node_task, restart
from cnnjob.slurm.node.restart import count_restarts_without_progress, decide, main
from cnnjob.slurm.scheduler import sbatch
from cnnjob.slurm.status import query_statuses
from cnnjob.slurm.submit import submission
from cnnjob.slurm.submit.request import Request
from tests.helpers.fake_slurm import NO_ANSWER, FakeSlurm
from tests.helpers.run_folders import change_json, finished_run, lost_run, pending_run, running_run, stopped_run
from tests.helpers.slurm_runs import file_contents
from tests.helpers.slurm_runs import set_job as life_of_job


@pytest.mark.parametrize(
    ("facts", "restarts", "expected"),
    [
        ({}, 0, "itself"),
        ({"JobState": "RUNNING", "Restarts": "0"}, 0, "itself"),
        ({"JobState": "RUNNING", "Restarts": "2"}, 2, "itself"),
        ({"JobState": "COMPLETING", "Restarts": "3"}, 2, "requeued"),
        ({"JobState": "PENDING", "Restarts": "0"}, 0, "requeued"),
        ({"JobState": "REQUEUED", "Restarts": "0"}, 0, "requeued"),
        ({"JobState": "COMPLETING", "PreemptTime": "2026-01-01T00:00:00"}, 0, "preempted"),
        (
            {"JobState": "COMPLETING", "PreemptTime": "None", "RunTime": "00:01:31", "TimeLimit": "00:01:00"},
            0,
            "time limit",
        ),
        ({"JobState": "COMPLETING", "RunTime": "1-00:00:00", "TimeLimit": "1-00:00:00"}, 0, "time limit"),
        ({"JobState": "TIMEOUT"}, 0, "time limit"),
        ({"JobState": "COMPLETING", "RunTime": "00:00:59", "TimeLimit": "00:01:00"}, 0, "cancelled"),
        ({"JobState": "COMPLETING", "RunTime": "00:00:59", "TimeLimit": "UNLIMITED"}, 0, "cancelled"),
        ({"JobState": "CANCELLED", "PreemptTime": "N/A"}, 0, "cancelled"),
        (
            {
                "JobState": "COMPLETING",
                "PreemptTime": "2026-01-01T00:00:00",
                "StartTime": "2026-01-01T00:00:09",
                "RunTime": "00:00:01",
                "TimeLimit": "00:01:00",
            },
            1,
            "cancelled",  # the preemption was of an earlier life
        ),
        ({"JobState": "??", "Restarts": "many", "RunTime": "?", "TimeLimit": ""}, 0, "itself"),
    ],
)
def test_who_ends_a_job(facts: Mapping[str, str], restarts: int, expected: str) -> None:
    assert restart.cause_of_end(facts, restarts) == expected


# --- what is decided


FAILED = {"why": "failed: the loss is nan"}
AGAIN, LEFT = "", "not restarted after the job's own error"
CANCELLED = "cancelled; submit the job again to resume it"


@pytest.mark.parametrize(
    ("make", "how", "code", "ended_by", "expected"),
    [
        (finished_run, {}, 0, "itself", "finished"),
        (finished_run, {}, 143, "cancelled", "finished"),
        (stopped_run, {}, 75, "itself", AGAIN),
        (stopped_run, {}, 75, "time limit", AGAIN),
        (stopped_run, {}, 143, "preempted", AGAIN),
        (stopped_run, {}, 75, "unknown", AGAIN),
        (stopped_run, {}, 1, "itself", AGAIN),
        (stopped_run, {}, 75, "cancelled", CANCELLED),
        (stopped_run, {}, 143, "requeued", "requeued by SLURM"),
        (lost_run, {}, 137, "itself", AGAIN),
        (lost_run, {}, 1, "itself", AGAIN),
        (lost_run, {}, 0, "itself", AGAIN),
        (lost_run, {}, 137, "cancelled", CANCELLED),
        (running_run, {}, 137, "itself", AGAIN),
        (pending_run, {}, 137, "itself", AGAIN),
        (stopped_run, FAILED, 1, "itself", LEFT),
        (stopped_run, FAILED, 137, "itself", LEFT),
        (pending_run, {}, 0, "itself", AGAIN),
        (pending_run, {}, NO_STEP, "itself", AGAIN),
        (pending_run, {}, 1, "itself", LEFT),
        (pending_run, {}, 3, "itself", LEFT),
        (pending_run, {}, 127, "itself", LEFT),
        (running_run, {}, 1, "itself", AGAIN),
    ],
)
def test_what_is_decided(
    tmp_path: Path, make: Any, how: Mapping[str, str], code: int, ended_by: str, expected: str
) -> None:
    assert decide(make(tmp_path, **how), code, ended_by) == expected


@pytest.mark.parametrize(
    ("make", "how", "code", "expected"),
    [
        (stopped_run, {}, 1, LEFT),
        (lost_run, {}, 127, LEFT),
        (lost_run, {}, 140, AGAIN),
        (stopped_run, FAILED, 137, AGAIN),
    ],
)
def test_a_life_that_never_began_is_not_judged_by_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any, how: Mapping[str, str], code: int, expected: str
) -> None:
    """Job 17 found no Python at its second start, or was killed before it had claimed the run."""
    life_of_job(monkeypatch, "17", 0)
    run = make(tmp_path, **how)
    life_of_job(monkeypatch, "17", 1)
    assert decide(run, code, "itself") == expected


def restarts(*steps: int) -> list[dict[str, Any]]:
    return [{"step": step} for step in steps]


@pytest.mark.parametrize(
    ("steps", "step", "count"),
    [((), 0, 0), ((0, 0), 0, 2), ((0, 0, 5), 5, 1), ((5, 0, 5, 5, 5), 5, 3), ((0, 0, 0), 1, 0), ((5, 6, 7), 7, 1)],
)
def test_restarts_without_progress(steps: tuple[int, ...], step: int, count: int) -> None:
    assert count_restarts_without_progress(restarts(*steps), step) == count


@pytest.mark.parametrize(
    ("how", "count"),
    [
        (("requeued", "successor", "requeued"), 3),
        (("requeued", "by SLURM", "by SLURM", "by SLURM", "requeued"), 2),
        (("requeued", "requeued", "requeued", "", "requeued"), 1),
        (("requeued", ""), 0),
    ],
)
def test_what_slurm_or_a_person_restarts_is_not_counted(how: tuple[str, ...], count: int) -> None:
    assert count_restarts_without_progress([{"step": 5, "restarted": word} for word in how], 5) == count


def test_three_restarts_without_progress_are_the_end(tmp_path: Path) -> None:
    run = lost_run(tmp_path)
    (run.path / "slurm").mkdir()
    (run.checkpoints_folder / "step-000000100.npz").touch()
    (run.checkpoints_folder / "step-000000090.npz").touch()
    for steps, expected in (
        ((100, 100), ""),
        ((100, 100, 90), ""),
        ((90, 100, 100, 100), "3 restarts without progress"),
    ):
        files.write_json(run.path / "slurm" / "restarts.json", restarts(*steps))
        assert decide(run, 137, "itself") == expected


@pytest.fixture
def lost(slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A submitted run whose first life is gone without a word, in job 17."""
    run = lost_run(Path("runs"))
    submission.submit([run], Request(partition="gpu", gpus=1))
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    slurm.install(sbatch='echo "Submitted batch job 18"')
    return run


SHOWN = 'case $1 in show) echo "JobId=17 JobState=RUNNING Restarts=0";; *) '


@pytest.mark.parametrize(
    ("scontrol", "ended_by", "said"),
    [
        (f"{SHOWN};; esac", "itself", "job 17 is requeued"),
        (
            f'{SHOWN} echo "is disabled" >&2; exit 1;; esac',
            "itself",
            "job 18 resumes the run (scontrol requeue 17: refused, is disabled)",
        ),
        ("exit 1", "unknown", "job 18 resumes the run (scontrol requeue 17: refused, exit code 1)"),
        ("printf '\\377 = garbage\\n'", "itself", "job 17 is requeued"),
        (
            None,
            "unknown",
            "job 18 resumes the run (scontrol: not found; this machine has no SLURM. Log in to a machine that has it)",
        ),
        ("echo JobState=COMPLETING Restarts=0", "cancelled", "cancelled; submit the job again to resume it"),
        ("echo JobState=COMPLETING Restarts=1", "requeued", "requeued by SLURM"),
    ],
)
def test_after_a_life(
    slurm: FakeSlurm, lost: Run, capsys: pytest.CaptureFixture[str], scontrol: str | None, ended_by: str, said: str
) -> None:
    slurm.install(scontrol=scontrol)
    main(str(lost.path), "137")
    assert capsys.readouterr().out.endswith(f"cnnjob: {lost.path}: {said}\n")
    [told] = try_read_restart_log(lost)
    how = (
        "requeued"
        if "is requeued" in said
        else "successor"
        if "18" in said
        else "by SLURM"
        if "by SLURM" in said
        else ""
    )
    assert told == {
        "cluster": None, "job_id": "17", "job_restarts": 0, "ended_by": ended_by, "code": 137, "step": 0,
        "restarted": how, "said": said,
    }  # fmt: skip
    assert (lost.path / "slurm" / "18_submission.sh").exists() == ("18" in said)


def test_a_successor_is_submitted_as_the_first_was(slurm: FakeSlurm, lost: Run) -> None:
    slurm.install(scontrol="exit 1")
    main(str(lost.path), "137")
    first, second = ((lost.path / "slurm" / f"{number}_submission.sh").read_text() for number in (17, 18))
    # the code is here the tests' own, not a copy of it; the comment is another, as both may be in the queue at once
    code = re.compile(rf"PYTHONPATH=(/[^' \n]*|'[^']*')|--comment=.*|export {restart_log.PREDECESSOR}=17\n")
    assert (restart_log.PREDECESSOR in first, restart_log.PREDECESSOR in second) == (False, True)
    assert code.sub("", first) == code.sub("", second)


def test_when_nothing_can_be_done_the_last_word_is_what_to_type(slurm: FakeSlurm, lost: Run) -> None:
    slurm.install(scontrol="exit 1", sbatch='echo "sbatch: error: QOSMaxSubmitJobPerUserLimit" >&2; exit 1')
    main(str(lost.path), "137")
    [told] = try_read_restart_log(lost)
    refused = f"not restarted, {lost.name}: refused by SLURM (QOSMaxSubmitJobPerUserLimit): your QOS allows you"
    assert told["said"].startswith(refused)
    assert "; to resume: cnnjob submit runs/tiny" in told["said"]
    assert "--partition gpu" in told["said"]
    assert told["restarted"] == ""


def first(times: int, then: str) -> str:
    """Shell lines that fail as if no scheduler ran, so many times, and then do something else."""
    return f"echo x >> calls; [ $(/usr/bin/wc -l < calls) -gt {times} ] || {{ {NO_ANSWER}; }}; {then}"


def test_a_folder_that_cannot_be_written_is_waited_for(
    slurm: FakeSlurm, lost: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel refuses every new file in /sys, until the folder is back at the second try."""
    monkeypatch.setattr(restart, "PAUSES_SECONDS", (0.1, 0.2, 0.3))
    folder, kept = lost.slurm_folder, lost.path / "kept"
    folder.rename(kept)
    folder.symlink_to("/sys/kernel")
    back = f"[ $(/usr/bin/wc -l < calls) != 2 ] || {{ /bin/rm '{folder}'; /bin/mv '{kept}' '{folder}'; }}"
    slurm.install(scontrol=f'echo x >> calls; {back}; echo "JobId=17 JobState=RUNNING Restarts=0"')
    main(str(lost.path), "137")
    assert capsys.readouterr().out.count("; trying again in 0.1 s\n") == 1
    assert [told["said"] for told in try_read_restart_log(lost)] == ["job 17 is requeued"]


def test_a_scheduler_that_is_away_is_waited_for(
    slurm: FakeSlurm, lost: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restart, "PAUSES_SECONDS", (0.1, 0.2, 0.3))
    slurm.install(scontrol=first(2, 'echo "$@" >> asked; echo "JobId=17 JobState=RUNNING Restarts=0"'))
    main(str(lost.path), "137")
    said = capsys.readouterr().out.splitlines()
    assert [line.rpartition("; ")[2] for line in said[:2]] == ["trying again in 0.1 s", "trying again in 0.2 s"]
    assert said[2:] == [f"cnnjob: {lost.path}: job 17 is requeued"]
    assert Path("asked").read_text().splitlines() == ["show job 17", "requeue 17"]


def test_it_may_go_away_between_two_questions(slurm: FakeSlurm, lost: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it did before it went away is seen when it is asked again."""
    monkeypatch.setattr(restart, "PAUSES_SECONDS", (0.1, 0.1))
    gone = "case $1 in requeue) : > requeued; " + NO_ANSWER + ";; esac; "
    slurm.install(scontrol=gone + 'echo "JobState=RUNNING Restarts=$([ -e requeued ] && echo 1 || echo 0)"')
    main(str(lost.path), "137")
    assert [(told["restarted"], told["said"]) for told in try_read_restart_log(lost)] == [
        ("requeued", "job 17 is requeued")
    ]


def test_a_successor_that_was_taken_in_silence_is_not_submitted_again(
    slurm: FakeSlurm, lost: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restart, "PAUSES_SECONDS", (0.1, 0.1))
    monkeypatch.setattr(sbatch, "SETTLE_SECONDS", 0.01)
    slurm.install(
        scontrol=f'{SHOWN} echo "is disabled" >&2; exit 1;; esac',
        sbatch=f'echo x >> tried; /bin/cp "$1" taken.sh; {NO_ANSWER}',
        squeue=f"""[ -e taken.sh ] || exit 0; [ -e looked ] || {{ : > looked; {NO_ANSWER}; }}
comment=$(/bin/grep -o "cnnjob /[^']*[0-9]'" taken.sh); echo "18|PENDING|Priority||N/A|N/A|${{comment%\\'}}" """,
    )
    main(str(lost.path), "137")
    assert Path("tried").read_text() == "x\n"
    [told] = try_read_restart_log(lost)
    assert (told["restarted"], told["said"][:15]) == ("successor", "job 18 resumes ")
    assert files.read_json(lost.submission_file)["job_id"] == "18"
    assert (lost.slurm_folder / "18_submitted.pkl").exists()


def test_patience_has_an_end(slurm: FakeSlurm, lost: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restart, "PAUSES_SECONDS", (0.1, 0.1))
    slurm.install(scontrol=NO_ANSWER)
    main(str(lost.path), "137")
    [told] = try_read_restart_log(lost)
    assert told["said"].startswith("not restarted, scontrol show job 17: refused, slurm_load_jobs error: ")
    assert "; to resume: cnnjob submit runs/tiny" in told["said"]


@pytest.mark.parametrize(("make", "code", "said"), [(finished_run, 0, "finished"), (pending_run, 127, LEFT)])
def test_nobody_is_waited_for_when_there_is_nothing_to_do(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, make: Any, code: int, said: str
) -> None:
    monkeypatch.setattr(restart, "PAUSES_SECONDS", (60,))
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    slurm.install(scontrol=NO_ANSWER)
    run = make(Path("runs"))
    run.slurm_folder.mkdir()
    main(str(run.path), str(code))
    assert [told["said"] for told in try_read_restart_log(run)] == [said]


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ("JobState=COMPLETING", "cancelled; submit the job again to resume it"),
        ("JobState=RUNNING PreemptTime=2026-01-01T00:00:00", "job 17 is requeued"),
    ],
)
def test_what_comes_while_it_waits_is_asked_about(slurm: FakeSlurm, lost: Run, facts: str, said: str) -> None:
    slurm.install(scontrol=f'[ ! -e known ] || {{ echo "{facts} Restarts=0"; exit; }}; {NO_ANSWER}')
    code = "import sys; from cnnjob.slurm.node import restart; "
    code += "restart.PAUSES_SECONDS = (60, 60); restart.main(*sys.argv[1:])"
    command = [sys.executable, "-c", code, str(lost.path), "137"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as waiting:
        assert waiting.stdout is not None
        assert "trying again in 60 s" in waiting.stdout.readline()
        Path("known").touch()
        waiting.send_signal(signal.SIGTERM)
        assert waiting.communicate(timeout=60)[0].endswith(f": {said}\n")


def test_what_was_cancelled_with_cnnjob_stays_so_without_an_answer(slurm: FakeSlurm, lost: Run) -> None:
    slurm.install(scontrol="exit 1")
    files.write_json(restart_log.cancellation_file(lost), {"by": "me", "jobs": ["17"]})
    main(str(lost.path), "143")
    assert [told["said"] for told in try_read_restart_log(lost)] == [CANCELLED]


DAMAGED = ["", "[3", "{}", '[{"step": "many"}]', '{"jobs": "17"}', None]
"""Content of a record of decisions; None is a folder in its place."""


def damage(path: Path, content: str | None) -> None:
    path.unlink(missing_ok=True)
    if content is None:
        path.mkdir()
    else:
        path.write_text(content)


@pytest.mark.parametrize("content", [text for text in DAMAGED if text != "{}"])
def test_what_may_have_been_cancelled_is_left_to_its_user(slurm: FakeSlurm, lost: Run, content: str | None) -> None:
    slurm.install(scontrol=f'echo "$1" >> asked; {SHOWN};; esac')
    damage(restart_log.cancellation_file(lost), content)
    main(str(lost.path), "143")
    [told] = try_read_restart_log(lost)
    assert told["said"].startswith(
        f"not restarted, it may have been cancelled: {restart_log.cancellation_file(lost)}: "
    )
    assert "; to resume: cnnjob submit runs/tiny" in told["said"]
    assert told["restarted"] == ""
    assert not Path("asked").exists()
    slurm.install(squeue="exit 0", sacct="exit 1")
    [found] = query_statuses([lost]).statuses
    assert (found.state, str(restart_log.cancellation_file(lost)) in "".join(found.summary.notes)) == ("lost", True)
    os.utime(lost.submission_file, (time.time() + 9,) * 2)  # submitted again
    main(str(lost.path), "143")
    assert try_read_restart_log(lost)[-1]["said"] == "job 17 is requeued"


@pytest.mark.parametrize("content", [text for text in DAMAGED if text is not None])
def test_a_damaged_record_of_restarts_allows_none_without_progress(
    slurm: FakeSlurm, lost: Run, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    slurm.install(scontrol=f"{SHOWN};; esac")
    record = restart_log.restart_log_file(lost)
    damage(record, content)
    main(str(lost.path), "137")
    [told] = try_read_restart_log(lost)
    assert told["said"].startswith("not restarted, it made no progress, and the number of restarts is unknown: ")
    change_json(lost.attempt_files()[-1], job_id="17", job_restarts=0, resumed_at_step=50)
    (lost.checkpoints_folder / "step-000000100.npz").touch()
    damage(record, content)
    main(str(lost.path), "137")
    assert [told["said"] for told in try_read_restart_log(lost)] == ["job 17 is requeued"]
    assert f"cnnjob: {lost.path}: {record}: " in capsys.readouterr().out


def test_a_cancellation_while_the_successor_is_submitted_ends_both(slurm: FakeSlurm, lost: Run) -> None:
    record = restart_log.cancellation_file(lost)
    files.write_json(Path("record"), {"by": "me", "jobs": ["17"], "attempt": 1, **lost.identity()})
    cancels = f'while read -r l; do echo "$l"; done < record > "{record}"'
    slurm.install(
        scontrol="exit 1", sbatch=f'{cancels}; echo "Submitted batch job 18"', scancel='echo "$*" >> cancelled'
    )
    main(str(lost.path), "143")
    assert Path("cancelled").read_text() == "18\n"
    [told] = try_read_restart_log(lost)
    assert (told["restarted"], told["said"]) == ("", f"{CANCELLED}; its successor 18 was cancelled too")
    slurm.install(squeue="exit 0", sacct="exit 1")
    [found] = query_statuses([lost]).statuses
    assert (found.state, found.job_id, found.is_resumable) == ("cancelled", "18", False)


@pytest.mark.parametrize("cancelled", [["17"], ["16"]])
def test_a_successor_ends_where_the_job_that_submitted_it_was_cancelled(
    lost: Run, monkeypatch: pytest.MonkeyPatch, cancelled: list[str]
) -> None:
    """As where that was before it could be found in the queue, and ``cnnjob cancel`` was ended."""
    record = restart_log.cancellation_file(lost)
    files.write_json(record, {"by": "me", "jobs": cancelled, "attempt": 1, **lost.identity()})
    monkeypatch.setenv("SLURM_JOB_ID", "18")
    monkeypatch.setenv(restart_log.PREDECESSOR, "17")
    ended = cancelled == ["17"]
    assert node_task._is_cancelled(lost) is ended
    assert restart_log.try_read_cancellation(lost)["jobs"] == [*cancelled, *["18"] * ended]


def test_a_successor_that_cannot_be_cancelled_is_said(slurm: FakeSlurm, lost: Run) -> None:
    record = restart_log.cancellation_file(lost)
    denied = "scancel: error: Kill job error on job id 18: Access/permission denied"
    cancels = f"""echo '{{"by": "me", "jobs": ["17"]}}' > "{record}\""""
    slurm.install(scontrol="exit 1", sbatch=f'{cancels}; echo "Submitted batch job 18"', scancel=f'echo "{denied}" >&2')
    main(str(lost.path), "143")
    assert f"cancelled, but its successor 18 could not be cancelled: {denied}" in try_read_restart_log(lost)[0]["said"]


def test_a_life_that_found_the_run_taken_changes_nothing(
    slurm: FakeSlurm, lost: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm.install(scontrol="exit 1")
    before = file_contents()
    main(str(lost.path), "5")
    assert capsys.readouterr().out == f"cnnjob: {lost.path}: another process owns the run\n"
    assert file_contents() == before


def test_an_element_of_a_sweep_restarts_its_own_run(slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm.install(scontrol='echo "$@" >> asked; echo "JobId=19 JobState=RUNNING Restarts=0"')
    found = [lost_run(Path("runs").resolve(), seed=seed) for seed in (1, 2)]
    sweep = Path("runs/.sweeps/12345678")
    sweep.mkdir(parents=True)
    files.write_json(sweep / "runs.json", [str(run.path) for run in found])
    for run in found:
        run.slurm_folder.mkdir()
    for name, value in {"SLURM_JOB_ID": "19", "SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "1"}.items():
        monkeypatch.setenv(name, value)
    change_json(found[1].attempt_files()[-1], job_id=process.job_id())
    main(str(sweep), "137")
    assert Path("asked").read_text().splitlines() == ["show job 17_1", "requeue 17_1"]
    assert try_read_restart_log(found[0]) == []
    assert [told["said"] for told in try_read_restart_log(found[1])] == ["job 17_1 is requeued"]


def test_a_crash_loop_ends(lost: Run) -> None:
    for _ in range(4):
        main(str(lost.path), "137")
    assert [told["said"] for told in try_read_restart_log(lost)] == ["job 17 is requeued"] * 3 + [
        "3 restarts without progress"
    ]
