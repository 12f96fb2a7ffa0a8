"""The command as typed: exit codes, what stands on stdout and stderr, and that a mistake is one message."""

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from cnnjob.errors import DataError
from cnnjob.runs.claims import claim
from cnnjob.runs.run import Run
from cnnjob.training.inference.predict import read_image_array
from tests.helpers import run_folders as folders
from tests.helpers.cli import cnnjob
from tests.helpers.toy_jobs import corrupt, dataset


def process(*arguments: str, **options: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **options}
    return subprocess.run(
        [sys.executable, "-m", "cnnjob", *arguments], capture_output=True, text=True, env=environment, check=False
    )


def run_folder() -> Path:
    [found] = Path("runs").iterdir()
    return found


def test_the_three_commands(here: Path) -> None:
    trained = cnnjob("train", "toy.toml")
    assert trained.exit_code == 0, trained.output
    assert re.fullmatch(r"runs/toy-[0-9a-f]{8}: finished, test accuracy \d+\.\d\d %\n", trained.stdout)
    assert re.search(r"^epoch 2/2: train loss [\d.]+, accuracy [\d.]+; validation loss ", trained.stderr, re.MULTILINE)
    again = cnnjob("train", "toy.toml")
    assert (again.exit_code, again.stdout) == (0, trained.stdout.replace("finished", "was finished"))
    reported = cnnjob("report", "runs/", "--out", "pictures")
    assert reported.exit_code == 0, reported.output
    assert (here / "pictures" / "metrics.csv").exists()
    assert "pictures/index.html: 1 run; " in reported.stdout


def test_set_makes_another_run(here: Path) -> None:
    assert cnnjob("train", "toy.toml", "--set", "train.epochs=1", "--runs", "elsewhere").exit_code == 0
    [run] = (here / "elsewhere").iterdir()
    assert len(Run(run).history()) == 1


@pytest.mark.usefixtures("here")
def test_views_at_test_time_are_said() -> None:
    done = cnnjob("train", "toy.toml", "--set", "train.epochs=1", "--set", "train.test_time_augmentation=flip")
    assert re.search(r"finished, test accuracy [\d.]+ % \(test-time augmentation: flip\)\n", done.stdout), done.output


def test_prepare_and_show(here: Path) -> None:
    first = cnnjob("prepare", "digits", "--out", "d.h5")
    assert first.exit_code == 0, first.output
    assert "train: 1,437 images, 8×8×1" in first.stdout
    assert re.search(r"d.h5: prepared in \d+ s, [\d.]+ MB/s", first.stdout)
    assert "mean of the training pixels / 255: 0.3" in first.stdout
    again = cnnjob("prepare", "digits", "--out", "d.h5")
    assert (again.exit_code, "already prepared from this source" in again.stdout) == (0, True)
    shown = cnnjob("show", "d.h5")
    assert (shown.exit_code, "all checksums match" in shown.stdout) == (0, True)
    assert "no checksum" not in shown.stdout
    with h5py.File(here / "d.h5", "r+") as file:
        file.attrs.pop("sha256")
    assert "the attributes have no checksum, because an older version wrote the file" in cnnjob("show", "d.h5").stdout
    corrupt(here / "d.h5", 60_000)
    damaged = cnnjob("show", "d.h5")
    assert damaged.exit_code == 3
    assert damaged.stderr.startswith("cnnjob: d.h5: ")


def test_prepare_folder(here: Path) -> None:
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (here / "pets" / split / name).mkdir(parents=True)
            for number in range(3):
                Image.new("RGB", (9, 7), (40 * number, len(split), ord(name[0]))).save(
                    here / "pets" / split / name / f"{number}.png"
                )
    for arguments in (["pets"], ["folder", "pets"]):
        made = cnnjob("prepare", *arguments, "--size", "8x8")
        assert made.exit_code == 0, made.output
    assert "data/pets.h5" in made.stdout
    for arguments in (["pets", "pets"], ["folder", "pets", "--source", "pets"]):
        assert cnnjob("prepare", *arguments).exit_code == 2, arguments
    assert cnnjob("prepare", "").exit_code == 3
    assert made.stderr == "cnnjob: read as class folders in train/ (train), test/ (test), 2 classes\n"
    (here / "pets" / "extra").write_text("")
    assert "cnnjob: warning: pets: left out: extra (" in cnnjob("prepare", "pets", "--size", "8x8").stderr
    assert "train: 6 images, 8×8×3" in made.stdout


def test_show_lists_and_resolves(here: Path) -> None:
    listed = cnnjob("show")
    assert listed.exit_code == 0, listed.output
    assert re.search(r"^mnist +not prepared +70,000", listed.stdout, re.MULTILINE)
    assert re.search(r"^cifar10-baseline +cifar10 ", listed.stdout, re.MULTILINE)
    shown = cnnjob("show", "toy.toml", "--set", "seed=5")
    assert shown.exit_code == 0, shown.output
    assert "seed = 5" in shown.stdout
    assert re.search(r"^conv1 +6×6×1 +3×3×4 +40$", shown.stdout, re.MULTILINE)
    assert re.search(r"^total +363$", shown.stdout, re.MULTILINE)
    assert re.search(r"^memory of the arrays: [\d.]+ MB: data ", shown.stdout, re.MULTILINE)
    normalised = cnnjob("show", "toy.toml", "--set", "model.blocks=[{ conv = 4, batch_norm = true }]")
    assert "{ conv = 4, kernel = 3, stride = 1, pad = 1, pool = 1, batch_norm = { momentum = 0.1, " in normalised.stdout
    assert re.search(r"^conv1 +6×6×1 +6×6×4 +44$", normalised.stdout, re.MULTILINE)  # no running statistics
    unprepared = cnnjob("show", "toy.toml", "--set", "dataset=mnist")  # the job is shown all the same
    assert (unprepared.exit_code, 'dataset = "mnist"' in unprepared.stdout) == (0, True)
    assert "data/mnist.h5 is not prepared yet; the sizes are from the catalogue" in unprepared.stdout
    (here / "shown.toml").write_text(shown.stdout.partition("\n\n\n")[0].split("block ")[0])
    assert cnnjob("show", "shown.toml").stdout.splitlines()[1:] == shown.stdout.splitlines()[1:]


def test_predict(here: Path) -> None:
    cnnjob("train", "toy.toml", "--set", "train.epochs=12")
    row, corner = np.full((6, 6), 60, np.uint8), np.full((6, 6), 60, np.uint8)
    row[2], corner[4:, 4:] = 190, 210
    np.save(here / "two.npy", np.stack([row, corner])[..., None])
    Image.fromarray(row).resize((60, 60), Image.Resampling.NEAREST).convert("RGB").save(here / "row.png")
    found = cnnjob("predict", str(run_folder()), "two.npy", "row.png")
    assert found.exit_code == 0, found.output
    rows = [line.split() for line in found.stdout.splitlines()[2:]]
    assert [(row[0], row[1]) for row in rows] == [("two.npy[0]", "row"), ("two.npy[1]", "corner"), ("row.png", "row")]
    assert all(0.3 < float(row[2]) <= 1 for row in rows)
    assert all({row[1], row[3], row[5]} == {"row", "column", "corner"} for row in rows)
    assert all(sum(float(row[column]) for column in (2, 4, 6)) == pytest.approx(1, abs=0.002) for row in rows)


def test_predict_of_the_runs_own_dataset(here: Path) -> None:
    cnnjob("train", "toy.toml")
    (run,) = Path("runs").iterdir()
    np.save("one.npy", np.full((6, 6), 60, np.uint8))
    found = cnnjob("predict", str(run), "test:0", "one.npy", "train:215", "test:39")
    assert found.exit_code == 0, found.output
    rows = [line.split() for line in found.stdout.splitlines() if line]
    assert rows[0] == ["image", "prediction", "second", "third", "true", "class"]
    assert [row[0] for row in rows[2:]] == ["test:0", "one.npy[0]", "train:215", "test:39"]
    assert [row[7:] for row in rows[2:]] == [["row"], [], ["corner"], ["row"]]
    said = Run(run).predictions()["probabilities"][[0, 39]].max(axis=1)
    assert [row[2] for row in (rows[2], rows[5])] == [f"{probability:.3f}" for probability in said]
    as_json = json.loads(cnnjob("predict", str(run), "test:1", "one.npy", "--json").stdout)
    assert [one.get("true_class") for one in as_json] == ["column", None]
    ranked = list(as_json[0]["probabilities"].items())
    assert ranked[0] == (as_json[0]["class"], as_json[0]["probability"])
    assert ranked == sorted(ranked, key=lambda pair: -pair[1])
    assert sum(probability for _, probability in ranked) == pytest.approx(1)
    assert "true class" not in cnnjob("predict", str(run), "one.npy").stdout
    for address, code, message in (
        ("test:40", 3, "no image test:40 (found 40 images). Choose one from test:0 to test:39"),
        ("test:-1", 2, "test:-1: not an image in the dataset (found index '-1'). Indices start at 0"),
        ("test:one.png", 2, "for a file, write ./test:one.png"),
        ("val:999", 3, "no image val:999 (found "),
        ("tset:0", 3, "tset:0: no such file. Pass an image file, or the address of an image in the run's"),
    ):
        wrong = cnnjob("predict", str(run), address)
        assert (wrong.exit_code, message in wrong.stderr) == (code, True), wrong.output
    (here / "data").rename(here / "moved")
    gone = cnnjob("predict", str(run), "test:0")
    assert (gone.exit_code, "no such dataset. Prepare it:\n    cnnjob prepare toy" in gone.stderr) == (3, True)
    assert cnnjob("predict", str(run), "test:0", "--data", "moved").exit_code == 0
    (here / "other").mkdir()
    dataset(here / "other", images=30)
    other = cnnjob("predict", str(run), "test:0", "--data", "other")
    assert (other.exit_code, "not the data that runs/toy-" in other.stderr) == (3, True)


def test_predict_of_a_dataset_that_has_changed(here: Path) -> None:
    cnnjob("train", "toy.toml")
    with h5py.File(here / "data" / "toy.h5", "r+") as file:
        file["test/images"][5] ^= 1
    changed = cnnjob("predict", str(run_folder()), "test:0")
    assert (changed.exit_code, "toy.h5: damaged (test/images has sha256" in changed.stderr) == (3, True)
    assert cnnjob("predict", str(run_folder()), "train:0").exit_code == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no image", "not a PNG image, despite its name"),
        (b"", "an empty file instead of an image"),
        (None, "no such file"),
    ],
)
def test_predict_of_what_is_no_image(here: Path, content: bytes | None, message: str) -> None:
    cnnjob("train", "toy.toml")
    if content is not None:
        (here / "x.png").write_bytes(content)
    found = cnnjob("predict", str(run_folder()), "x.png")
    assert (found.exit_code, message in found.stderr) == (3, True)


def test_predict_of_images_held_out_and_of_other_sizes(here: Path) -> None:
    cnnjob("train", "toy.toml")
    run = run_folder()
    wide = np.full((9, 12), 60, np.uint8)
    wide[3:6] = 220
    Image.fromarray(wide).save(here / "wide.png")
    Image.fromarray(wide[:6, :6]).save(here / "fits.png")
    found = cnnjob("predict", str(run), "val:0", "fits.png")
    assert (found.exit_code, found.stderr) == (0, ""), found.output
    assert re.search(r"^val:0 +(row|column|corner)", found.stdout, re.MULTILINE)
    scaled = cnnjob("predict", str(run), "wide.png", "fits.png")
    assert scaled.stderr == "cnnjob: images of 9×12 pixels were scaled to the size of the training images\n"


@pytest.mark.usefixtures("here")
def test_show_tells_the_job_of_a_run() -> None:
    cnnjob("train", "toy.toml", "--set", "seed=7")
    shown = cnnjob("show", str(run_folder()))
    assert (shown.exit_code, "seed = 7" in shown.stdout) == (0, True)
    assert "Omit --set" in cnnjob("show", str(run_folder()), "--set", "seed=8").stderr


def test_predict_of_arrays_that_do_not_fit(here: Path) -> None:
    cnnjob("train", "toy.toml")
    for array in (np.zeros((5, 5), np.uint8), np.zeros((6, 6)), np.zeros((0, 6, 6, 1), np.uint8), np.array(["a"])):
        np.save(here / "x.npy", array)
        found = cnnjob("predict", str(run_folder()), "x.npy")
        assert (found.exit_code, "the network requires uint8 (6, 6, 1) or (N, 6, 6, 1)" in found.stderr) == (3, True)
    np.save(here / "x.npy", np.uint8(3))
    with pytest.raises(DataError, match=r"network requires uint8 \(6, 6, 3\) or \(N, 6, 6, 3\) \(found uint8 \(\)\)"):
        read_image_array(here / "x.npy", (6, 6, 3))
    np.save(here / "x.npy", np.array([object()]), allow_pickle=True)
    (here / "empty.npy").touch()
    for name in ("x.npy", "empty.npy"):
        found = cnnjob("predict", str(run_folder()), name)
        assert (found.exit_code, "not readable as an array" in found.stderr) == (3, True)
    np.savez(here / "z.npz", a=np.eye(2))
    (here / "z.npz").rename(here / "z.npy")
    found = cnnjob("predict", str(run_folder()), "z.npy")
    assert (found.exit_code, "not readable as an array" in found.stderr) == (3, True)


def test_predict_needs_a_finished_run_with_its_own_weights(here: Path) -> None:
    (here / "runs" / "empty").mkdir(parents=True)
    unfinished = cnnjob("predict", "runs/empty", "x.png")
    assert (unfinished.exit_code, "not a run folder, since it has no job.json" in unfinished.stderr) == (3, True)
    (here / "runs" / "empty").rmdir()
    cnnjob("train", "toy.toml")
    cnnjob("train", "toy.toml", "--set", "model.blocks=[{dense=3}]", "--runs", "other")
    [other] = (here / "other").iterdir()
    (run_folder() / "weights.npz").write_bytes((other / "weights.npz").read_bytes())
    swapped = cnnjob("predict", str(run_folder()), "x.npy")
    assert swapped.exit_code == 3


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train", "toyy.toml"], 3, "cnnjob: toyy.toml: no such file"),
        (["train", "toy.toml", "--set", "train.epoch=3"], 2, "train.epoch: no such key. Did you mean 'epochs'?"),
        (["train", "toy.toml", "--set", "dataset=mnist"], 3, "Prepare it:\n    cnnjob prepare mnist"),
        (["train", "toy.toml", "--data", "gone"], 3, "gone/toy.h5: no such dataset"),
        (["prepare", "mnits"], 3, "Did you mean mnist?"),
        (["prepare", "mnist", "there"], 2, "Specify the source with --source"),
        (["prepare", "folder"], 2, "Specify the folder that contains the images"),
        (["prepare", "folder", "data", "--size", "8"], 2, "--size 8: not of the form HxW"),
        (["prepare", "mnist", "--source", "gone"], 3, "gone"),
        (["show", "gone.h5"], 3, "gone.h5: no such dataset"),
        (["report", "gone"], 3, "gone: no such run"),
        (["report", "data"], 3, "no runs"),
        (["predict", "gone", "x.png"], 3, "gone: no such run"),
        (
            ["train", "toy.toml", "--set", "name=../evil"],
            2,
            "name: input should have 1 to 100 characters ",
        ),
        (["nonsense"], 2, "No such command 'nonsense'"),
        (["--nonsense"], 2, "cnnjob: No such option: --nonsense\n"),
    ],
)
def test_mistakes_are_one_message(here: Path, arguments: list[str], code: int, message: str) -> None:
    found = cnnjob(*arguments)
    assert (found.exit_code, found.stdout) == (code, "")
    assert message in found.stderr
    assert "Traceback" not in found.stderr
    assert {path.name for path in here.iterdir()} == {"data", "toy.toml"}


@pytest.mark.usefixtures("here")
def test_a_run_that_is_being_written_is_exit_5() -> None:
    cnnjob("train", "toy.toml", "--set", "train.epochs=1")
    run = Run(run_folder())
    run.result_file.unlink()
    claim(run)
    found = cnnjob("train", "toy.toml", "--set", "train.epochs=1")
    assert (found.exit_code, "another process is writing this run" in found.stderr) == (5, True)


@pytest.mark.usefixtures("here")
def test_a_loss_that_is_no_number_is_exit_1() -> None:
    found = cnnjob(
        "train", "toy.toml", "--set", "train.learning_rate=900.0", "--set", "train.optimiser.sgd.momentum=0.99",
        "--set", "model.blocks=[{dense=8,activation='none'}]",
    )  # fmt: skip
    assert (found.exit_code, "the loss is" in found.stderr) == (1, True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
@pytest.mark.usefixtures("here")
def test_a_signal_stops_with_75_and_the_same_command_goes_on(number: signal.Signals) -> None:
    """A real process, a real signal, at whatever step it is."""
    arguments = [sys.executable, "-m", "cnnjob", "train", "toy.toml", "--set", "train.epochs=3000"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(arguments, **pipes, text=True, env=environment) as child:  # type: ignore[call-overload]
        assert child.stderr is not None
        while not child.stderr.readline().startswith("epoch 1/"):
            pass
        child.send_signal(number)
        stdout, stderr = child.communicate()
    assert child.returncode == 75
    name = "Ctrl-C" if number == signal.SIGINT else number.name
    assert f"stopped: {name}; run the same command to resume" in stdout
    assert f"stopped by {name} at step" in stderr
    run = Run(run_folder())
    assert run.state() == "stopped"
    assert run.attempts()[0]["step"] > 0


@pytest.mark.parametrize("output", ["a full disk", "a closed pipe", "a lost terminal"])
def test_output_that_cannot_be_written_ends_no_training(here: Path, output: str) -> None:
    reader, writer = pty.openpty() if output == "a lost terminal" else os.pipe()
    if output == "a full disk":
        os.close(writer)
        writer = os.open("/dev/full", os.O_WRONLY)
    os.close(reader)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "TERM": "xterm"}
    command = [sys.executable, "-m", "cnnjob", "train", "toy.toml"]
    ended = subprocess.run(command, stdout=writer, stderr=writer, env=environment, cwd=here, check=False)
    os.close(writer)
    run = Run(run_folder())
    assert (ended.returncode, run.state()) == (0, "finished")
    assert "finished: test accuracy" in run.log_file.read_text()


def test_a_terminal_shows_a_bar_and_a_pipe_does_not(here: Path) -> None:
    leader, follower = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(
        [sys.executable, "-m", "cnnjob", "train", "toy.toml", "--set", "train.epochs=8"],
        stdout=subprocess.DEVNULL, stderr=follower, env=environment, cwd=here,
    ) as child:  # fmt: skip
        os.close(follower)
        shown = b""
        while True:
            try:
                part = os.read(leader, 65536)
            except OSError:  # the terminal's other end is closed
                break
            shown += part
        assert child.wait() == 0
    os.close(leader)
    assert "━".encode() in shown
    last = shown.decode()[shown.decode().rindex("epoch 8/8 · ") :]
    left = "0 s left of this epoch · 0 s in all"
    assert re.match(rf"epoch 8/8 · step \d+/\d+ · loss \d\.\d{{3}} · val acc \d+\.\d % · {left}", last)
    assert b"epoch 8/8: train loss" in shown
    piped = process("train", "toy.toml", "--set", "train.epochs=3")
    assert "━" not in piped.stderr
    assert piped.stderr.count("\nepoch ") == 3


@pytest.mark.usefixtures("here")
def test_it_works_without_utf8() -> None:
    found = process("show", "toy.toml", LANG="C", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert found.returncode == 0, found.stderr
    assert "conv1" in found.stdout


def test_interrupting_another_command_is_130(here: Path) -> None:
    """A download from a server that never answers is surely inside the command."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/mnist"
        arguments = [sys.executable, "-m", "cnnjob", "prepare", "cifar10", "--source", f"{address}.tar.gz"]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "CNNJOB_CACHE_DIR": str(here)}
        with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=environment) as child:
            connection, _ = server.accept()
            with connection:
                child.send_signal(signal.SIGINT)
                _, stderr = child.communicate()
    assert (child.returncode, stderr.splitlines()[-1]) == (130, "cnnjob: interrupted")


def test_version_and_help() -> None:
    assert re.fullmatch(r"cnnjob \d+\.\d+\.\d+ \(commit \S+\)\n", cnnjob("--version").stdout)
    listed = cnnjob("--help").stdout
    for command in ("prepare", "show", "train", "predict", "report", "bench", "demo"):
        assert command in listed
        assert "Example: cnnjob " in cnnjob(command, "--help").stdout


def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shown = cnnjob("demo")
    assert shown.exit_code == 0, shown.output
    lines = shown.stdout.splitlines()
    assert [line for line in lines if line.startswith("$ ")] == [
        "$ cnnjob prepare digits", "$ cnnjob train digits", "$ cnnjob report runs/",
    ]  # fmt: skip
    assert re.search(r"; stopped early after epoch \d+ of 30, best epoch \d+$", shown.stdout, re.MULTILINE)
    [accuracy] = [float(match[1]) for line in lines if (match := re.search(r"test accuracy ([\d.]+) %", line))]
    assert accuracy > 96
    assert lines[-2].startswith("Open report/index.html in a browser")
    assert (tmp_path / "report" / "index.html").is_file()


@pytest.mark.usefixtures("here")
def test_figures_are_drawn_in_the_formats_that_are_asked_for() -> None:
    folders.finished_run(Path("runs"))

    def suffixes() -> set[str]:
        return {path.suffix for path in Path("report").rglob("*")} & {".png", ".svg", ".pdf"}

    plain = process("report")
    assert (plain.stderr, suffixes()) == ("", set())  # no bar without a terminal
    assert cnnjob("report", "--format", "svg, PDF").exit_code == 0
    assert suffixes() == {".svg", ".pdf"}
    assert cnnjob("report", "--figures").exit_code == 0
    assert suffixes() == {".png", ".svg", ".pdf"}
    refused = process("report", "--format", "png,jpg")
    assert refused.returncode == 2
    assert "report: not a figure format (found 'jpg'). Use one or more of png, svg, pdf" in refused.stderr


@pytest.mark.usefixtures("here")
def test_on_a_terminal_a_report_shows_its_progress() -> None:
    folders.finished_run(Path("runs"))
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "cnnjob", "report", "--format", "png"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs, timeout=120, check=True)
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # the end of a terminal that nobody has open
        while chunk := os.read(ours, 65536):
            shown += chunk
    os.close(ours)
    assert b"drawing figures" in shown
    assert b"reading runs" in shown
    assert b"open the page in a browser" in done.stdout


@pytest.mark.usefixtures("here")
def test_quiet_prints_the_result_alone_and_verbose_the_job_first() -> None:
    quiet = process("train", "toy.toml", "--quiet")
    assert quiet.stderr == ""
    (line,) = quiet.stdout.splitlines()
    assert "finished, test accuracy" in line
    verbose = process("train", "toy.toml", "-v", "--set", "seed=1")
    shown = process("show", "toy.toml", "--set", "seed=1")
    assert verbose.stdout.startswith(shown.stdout.rpartition("run: ")[0])
    assert "\nepoch 1/" in verbose.stderr
