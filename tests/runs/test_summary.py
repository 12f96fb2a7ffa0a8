"""The summary of a run folder: status, report and the list of attempts tell the same."""

import shutil
from pathlib import Path

from cnnjob import files
from cnnjob.reporting.attempts import read_attempts
from cnnjob.reporting.record import read_record
from cnnjob.runs import claims
from cnnjob.runs.run import Run
from cnnjob.runs.summary import read_summary
from cnnjob.slurm.run_state import status_from_folder
from tests.helpers.run_folders import change_json, finished_run, lost_run, stopped_run


def test_a_damaged_record_of_an_earlier_attempt_changes_no_state(tmp_path: Path) -> None:
    run = stopped_run(tmp_path)
    claims.claim(run).end("stopped: SIGTERM", 200)
    run.attempt_files()[0].write_text("7")
    record = read_record(run, "run")
    assert record.row["state"] == status_from_folder(run).state == "stopped"
    assert record.reasons[0] == "stopped: SIGTERM"
    assert [reason.partition(":")[0] for reason in record.reasons[1:]] == ["attempts/0001.json"]


def test_a_damaged_record_of_the_last_attempt_leaves_a_finished_run_finished(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    run.attempt_files()[-1].write_text("7")
    status, record = status_from_folder(run), read_record(run, "run")
    assert status.state == record.row["state"] == "finished"
    assert "0002.json: damaged" in status.detail
    assert record.row["test_accuracy"] == 0.8


def test_a_damaged_record_of_the_last_attempt_hides_the_state_of_another(tmp_path: Path) -> None:
    run = stopped_run(tmp_path)
    run.attempt_files()[-1].write_text("7")
    record = read_record(run, "run")
    assert record.row["state"] == status_from_folder(run).state == "damaged"
    assert len(record.reasons) == 1


def test_a_damaged_environment_is_named_where_the_run_would_be_trained_on(tmp_path: Path) -> None:
    run = stopped_run(tmp_path / "stopped")
    run.environment_file.write_text("7")
    status = status_from_folder(run)
    assert status.state == read_record(run, "run").row["state"] == "damaged"
    assert "environment.json: damaged (it is not an object)" in status.detail
    finished = finished_run(tmp_path / "finished")
    finished.environment_file.write_text("7")
    assert status_from_folder(finished).state == "finished"


def test_a_copy_has_no_submission_and_the_report_names_its_original(tmp_path: Path) -> None:
    run = lost_run(tmp_path / "runs")
    change_json(run.attempt_files()[0], started="2026-01-01T10:00:00+00:00")
    run.slurm_folder.mkdir()
    said = {"attempt": 1, "submitted": "2026-01-01T09:50:00+00:00", "job_id": "17"}
    files.write_json(run.submission_file, {**said, **run.identity()})
    copy = Run(tmp_path / "copies" / run.name)
    shutil.copytree(run.path, copy.path)
    waits = [[attempt.waited_from is not None for attempt in read_attempts(read_summary(one))] for one in (run, copy)]
    assert waits == [[True], [False]]
    assert [read_summary(one).original for one in (run, copy)] == ["", str(run.path)]
    assert read_record(copy, "copy").reasons == [
        f"lost: a copy of {run.path}, made while that run was being trained; run the same command to resume the copy"
    ]


def test_the_end_of_a_log_with_a_long_line_has_its_last_lines(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    run.log_file.write_text("".join(f"line {number}\n" for number in range(30)) + "x" * 20_000 + "\nlast\n")
    lines = read_record(run, "run").log_tail.splitlines()
    assert (lines[0], lines[-1], len(lines)) == ("line 12", "last", 20)
    assert len(lines[-2]) < 1100
