"""From run folders to one page: whole, escaped, the same bytes, small, and true."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from cnnjob import files
from cnnjob.reporting.attempts import read_attempts
from cnnjob.reporting.groups import group_runs
from cnnjob.reporting.page import page as pages
from cnnjob.reporting.page.sections import build_timeline
from cnnjob.reporting.record import read_record
from cnnjob.reporting.report import report
from cnnjob.runs.run import Run
from cnnjob.runs.summary import read_summary
from tests.helpers import run_folders as folders

VOID = {"meta", "link", "br", "img", "input"}
HOSTILE = "</script><img src=x onerror=alert(1)>\"'&{{ 7*7 }}"


class Reader(HTMLParser):
    """Reads a page strictly: every element is closed in order, every ``id`` is one element's."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.sources: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.captions = 0
        self.spanned_rows = 0
        self.open_tables: list[list[list[str]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        facts = dict(attrs)
        assert not [name for name in facts if name.startswith("on")]
        self.ids += [facts["id"] or ""] if "id" in facts else []
        self.links += [facts["href"] or ""] if tag == "a" else []
        if tag == "img":
            assert facts["alt"]
            self.sources.append(facts["src"] or "")
        if tag == "svg":
            assert facts.get("aria-label") or facts.get("aria-hidden")
        if tag == "noscript":
            assert tag not in self.open  # a browser that runs scripts would take the inner end for the outer one
        self._open_table(tag, facts)
        if tag not in VOID:
            self.open.append(tag)

    def _open_table(self, tag: str, facts: dict[str, str | None]) -> None:
        if tag == "table":
            self.tables.append([])
            self.open_tables.append(self.tables[-1])
        if tag == "tr":
            self.open_tables[-1].append([""] * (self.spanned_rows > 0))  # a first cell of several rows
            self.spanned_rows -= 1
        if tag in {"td", "th"}:
            self.spanned_rows = max(int(facts.get("rowspan") or 1) - 1, self.spanned_rows)
            assert tag == "td" or facts["scope"] in {"row", "col", "rowgroup", "colgroup"}
            self.open_tables[-1][-1] += [""] * int(facts.get("colspan") or 1)
        self.captions += tag == "caption"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in {"path", "rect", "use"}
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "table":
            self.open_tables.pop()

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open_tables and {"td", "th"} & set(self.open):
            self.open_tables[-1][-1][-1] += data


def page_of(*runs: Run) -> str:
    records = [read_record(run, run.name) for run in runs]
    return pages.render(records, group_runs(records))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two groups of three seeds, one of which is stopped, one pending, one foreign."""
    root = tmp_path_factory.mktemp("mixed")
    for rate in (0.05, 0.1):
        for seed in range(3):
            folders.finished_run(root, seed=seed, learning_rate=rate)
    folders.stopped_run(root, seed=3)
    folders.pending_run(root, seed=4, learning_rate=0.2)
    (root / "foreign").mkdir()
    return root


def test_the_page_is_whole_and_every_link_leads_somewhere(mixed: Path) -> None:
    page = page_of(*Run.all(mixed))
    reader = Reader(page)
    assert page.startswith("<!DOCTYPE html>\n<html lang=")
    assert len(set(reader.ids)) == len(reader.ids)
    assert {link.removeprefix("#") for link in reader.links} <= set(reader.ids)
    assert reader.captions == len(reader.tables)
    assert all(len({len(row) for row in table}) == 1 for table in reader.tables)


def test_nothing_is_fetched(mixed: Path) -> None:
    page = page_of(*Run.all(mixed))
    assert not re.search(r"https?:|//[a-z]|url\(|@import|<link (?!rel=\"icon\" href=\"data:,\")", page)
    assert all(source.startswith("data:image/png;base64,") for source in Reader(page).sources)
    assert "default-src 'none'" in page


def cells(row: list[str]) -> list[str]:
    return [" ".join(cell.split()) for cell in row]


def test_the_first_table_has_groups_and_runs(mixed: Path) -> None:
    head, *rows = map(cells, Reader(page_of(*Run.all(mixed))).tables[0])
    assert head[:3] == ["Group and runs", "Test accuracy, %", "Accuracies on a common scale"]
    assert head[3:] == ["Seeds", "F1, %", "Test loss", "Epochs", "Time", "State"]
    first, second = rows[0], rows[5]
    assert [first[0], second[0]] == ["learning_rate 0.05", "learning_rate 0.1"]
    assert [first[1], first[3]] == ["80.00 ± 0.00", "3 of 4"]
    assert first[-1] == "3 finished 1 stopped"
    assert [(row[1], row[3], row[-1]) for row in rows[1:5]] == [
        *(("80.00", f"seed {seed}", "finished") for seed in range(3)),
        ("", "seed 3", "stopped SIGTERM"),
    ]
    pending = rows[-1]
    assert [pending[1], pending[3]] == ["", "seed 4"]
    assert pending[-1] == "pending not started yet"


def test_the_first_lines_have_states_dates_and_the_best_result(mixed: Path) -> None:
    text = " ".join(Reader(page_of(*Run.all(mixed))).text.split())
    assert "6 finished 1 pending 1 stopped 1 not a run" in text
    assert re.search(r"Job tiny · \d{1,2} [A-Z][a-z]{2} 20\d\d, \d\d:\d\d", text)
    assert "learning_rate 0.05 with a test accuracy of 80.00 ± 0.00 % (mean of 3 seeds)" in text


def test_each_dataset_has_its_own_tables_and_curves(tmp_path: Path) -> None:
    for dataset in ("ants", "bees"):
        for seed in range(2):
            run = folders.finished_run(tmp_path / dataset, seed=seed, learning_rate=0.1 if dataset == "ants" else 0.2)
            folders.change_job(run, data={"path": "x", "digest": dataset[0] * 64, "name": dataset})
    page = Reader(page_of(*Run.all(tmp_path / "ants", tmp_path / "bees")))
    assert [cells(table[0])[3:5] for table in page.tables[:2]] == [["Seeds", "F1, %"]] * 2
    assert [len(table) for table in page.tables[:2]] == [4, 4]
    assert page.text.count("accuracy of all groups over epochs") >= 2
    assert "4 runs on ants, bees" in page.text
    for run in Run.all(tmp_path / "bees"):
        folders.change_job(run, data={"path": "x", "digest": "b" * 64, "name": "ants"})
    assert "4 runs on ants aaaaaaaa, ants bbbbbbbb" in page_of(*Run.all(tmp_path / "ants", tmp_path / "bees"))


def test_groups_without_a_significant_difference_are_named(mixed: Path) -> None:
    sentence = (
        "learning_rate 0.05 and learning_rate 0.1 are not significantly different: 0.00 ± 0.00 points, 3 shared seeds."
    )
    assert sentence in Reader(page_of(*Run.all(mixed))).text


def test_unfinished_and_foreign_runs_are_there_with_their_reason(mixed: Path) -> None:
    text = Reader(page_of(*Run.all(mixed))).text
    for reason in ("SIGTERM", "not started yet", "not a cnnjob run: it has no job.json"):
        assert text.count(reason) >= 2  # in the table and in the run's section


def test_all_text_from_files_is_escaped(tmp_path: Path) -> None:
    run = folders.finished_run(tmp_path)
    plain = page_of(run)
    names = np.array([HOSTILE, "bee", "cat", "dog"])
    folders.change_arrays(run.predictions_file, lambda arrays: arrays.update(class_names=names))
    folders.change_json(run.environment_file, device=HOSTILE, packages={HOSTILE: HOSTILE}, commit=HOSTILE)
    folders.change_json(run.attempt_files()[0], why=HOSTILE, host=HOSTILE)
    run.log_file.write_text(HOSTILE)
    page = page_of(run)
    assert page.count("<script>") == plain.count("<script>") == page.count("</script>") == 1
    assert len(Reader(page).sources) == len(Reader(plain).sources)
    assert Reader(page).text.count(HOSTILE) >= 5


def test_a_run_has_its_provenance_and_its_mistakes(tmp_path: Path) -> None:
    run = folders.finished_run(tmp_path)
    folders.change_json(run.environment_file, dirty=True, packages={"numpy": "2.4"})
    folders.change_json(run.result_file, bits_may_differ_from_step=150)
    text = Reader(page_of(run)).text
    for fact in (
        "commit c0ffeec0, with uncommitted changes · data dddddddd · cpu: test · numpy 2.4",
        "resumed 1 time · model chosen on validation images, epoch 3 of 4 · bits may differ from step 150 onwards",
        "Most often confused: ant predicted as bee (1, 33.3 %); dog predicted as ant (1, 50.0 %).",
        "ant 10.0\N{NO-BREAK SPACE}%, predicted bee 70.0\N{NO-BREAK SPACE}%",
    ):
        assert fact in text


def test_the_timeline_shows_waiting_and_lost_steps(tmp_path: Path) -> None:
    run = folders.finished_run(tmp_path)
    first, second = run.attempt_files()
    folders.change_json(first, started="2026-01-01T10:00:00+00:00", ended="2026-01-01T11:00:00+00:00", step=150)
    folders.change_json(second, started="2026-01-01T13:00:00+00:00", resumed_at_step=120)
    run.slurm_folder.mkdir()
    files.write_json(run.submission_file, {"attempt": 1, "submitted": "2026-01-01T09:50:00+00:00"})
    attempts = read_attempts(read_summary(run))
    waits = [attempt.started - attempt.waited_from for attempt in attempts if attempt.waited_from]
    assert [wait.total_seconds() for wait in waits] == [600, 7200]
    assert [attempt.lost_steps for attempt in attempts] == [30, None]
    text = " ".join(Reader(page_of(run)).text.split())
    assert "attempt 2: waited 2 h" in text
    assert re.search(r"2026-01-01 09:50:00 \d{4}-\d\d-\d\d \d\d:\d\d:\d\d waiting running", text)


def test_a_timeline_of_one_bar_is_left_out(tmp_path: Path) -> None:
    assert build_timeline(read_attempts(read_summary(folders.stopped_run(tmp_path)))) is None
    assert build_timeline([]) is None


def test_a_decision_is_of_its_attempt(tmp_path: Path) -> None:
    """The batch script of the first was killed before it decided."""
    run = folders.finished_run(tmp_path)
    for restarts, path in enumerate(run.attempt_files()):
        folders.change_json(path, job_id="17", job_restarts=restarts)
    run.slurm_folder.mkdir()
    decision = {"job_id": "17", "job_restarts": 1, "step": 10, "said": "finished"}
    files.write_json(run.slurm_folder / "restarts.json", [decision])
    assert [attempt.decision for attempt in read_attempts(read_summary(run))] == ["", "finished"]


def test_equal_runs_give_equal_bytes(mixed: Path) -> None:
    assert page_of(*Run.all(mixed)) == page_of(*Run.all(mixed))


@pytest.mark.parametrize(("n_runs", "side"), [(100, 32), (100, 224), (20, 224), (5, 224)])
def test_a_hundred_runs_fit_a_mail(n_runs: int, side: int, tmp_path: Path) -> None:
    run = folders.finished_run(tmp_path, channels=3)
    noise = np.random.default_rng(0).integers(0, 256, (2, side, side, 3)).astype(np.uint8)
    K, N = 10, 200
    probabilities = np.random.default_rng(1).dirichlet(np.ones(K), N).astype(np.float32)
    wrong = np.arange(24)
    content = {
        "probabilities": probabilities,
        "labels": (probabilities.argmax(1) + 1) % K,
        "class_names": np.array([f"class {k}" for k in range(K)]),
        "wrong_images": noise[wrong % 2],
        "wrong_indices": wrong,
    }
    folders.change_arrays(run.predictions_file, lambda arrays: arrays.update(content))
    folders.write_history(run, 200, "validation")
    run.log_file.write_text("epoch 1: a line of the log, as long as they are\n" * 100)
    record = read_record(run, run.name)
    records = [record] * n_runs
    page = pages.render(records, group_runs(records))
    assert len(page.encode()) < 5_000_000


def test_more_runs_than_can_be_sent_have_no_pictures(tmp_path: Path) -> None:
    record = read_record(folders.finished_run(tmp_path), "run")
    records = [record] * (pages.MAX_PICTURED_RUNS + 1)
    page = pages.render(records, group_runs(records))
    assert not Reader(page).sources
    assert "more than 100 runs" in page
    assert page.count("accuracy of run over epochs") >= len(records)  # curves are small enough


def test_settings_that_are_the_same_for_all_runs_are_listed_once(mixed: Path) -> None:
    page = Reader(page_of(*Run.all(mixed)))
    (common,) = [dict(table[1:]) for table in page.tables if table[1:] and table[1][0] == "name"]
    assert common["train.batch_size"] == "10"
    own = [dict(table[1:]) for table in page.tables if ["Setting", "Value"] in table and "seed" in dict(table[1:])]
    assert len(own) == 8
    assert all(set(settings) == {"seed", "train.learning_rate"} for settings in own)


def test_the_report_has_the_page(tmp_path: Path) -> None:
    run = folders.finished_run(tmp_path / "runs")
    made = report([run], tmp_path / "report")
    assert (tmp_path / "report" / "index.html").read_text() == page_of(run)
    assert made.files[0].name == "index.html"


def test_a_confusion_matrix_has_axis_titles_and_no_zeros(tmp_path: Path) -> None:
    text = page_of(folders.finished_run(tmp_path))
    matrix = text[text.index('<table class="matrix">') :]
    matrix = matrix[: matrix.index("</table>")]
    assert matrix.count("axis-title") == 2
    assert "predicted class</th>" in matrix
    assert "<span>true class</span>" in matrix
    assert matrix.count("<td></td>") == 16 - 6
    assert "ant predicted as bee (1, 33.3 %)" in text
