"""Downloads: the right file from the first address that has it, and a plain word if none has."""

import hashlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cnnjob.data.prepare import sources
from cnnjob.data.prepare.catalogue import Entry, Published
from cnnjob.data.prepare.download import cache_folder
from cnnjob.data.prepare.prepare import prepare
from cnnjob.errors import DataError, JobError
from tests.helpers.image_sources import cifar10_members, pin, served, sha256, write_mnist, write_tar

CONTENT = b"the right file" * 1000
PAGE = b"<html><body>Please log in</body></html>"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CNNJOB_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def entry(*mirrors: str) -> Entry:
    published = Published("f.tar.gz", hashlib.md5(CONTENT).hexdigest(), hashlib.sha256(CONTENT).hexdigest())
    return Entry("tiny", "for this test", ("a", "b"), files=(published,), mirrors=mirrors)


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("progress", [False, True])
def test_mirrors_are_tried_in_turn(cache: Path, *, progress: bool) -> None:
    answers = {"/broken/f.tar.gz": (500, b"oh"), "/page/f.tar.gz": (200, PAGE), "/good/f.tar.gz": (200, CONTENT)}
    with served(answers) as (address, asked):
        tiny = entry(*(f"{address}/{name}/" for name in ("absent", "broken", "page", "good")))
        files = sources.obtain(tiny, None, None, progress=progress)
        again = sources.obtain(tiny, None, None, progress=progress)
    assert files == again == {"f.tar.gz": cache / "tiny" / "f.tar.gz"}
    assert files["f.tar.gz"].read_bytes() == CONTENT
    assert asked == [f"/{name}/f.tar.gz" for name in ("absent", "broken", "page", "good")]
    assert files_in(cache) == [files["f.tar.gz"]]


def test_a_damaged_file_in_the_cache_is_downloaded_again(cache: Path) -> None:
    (cache / "tiny").mkdir(parents=True)
    (cache / "tiny" / "f.tar.gz").write_bytes(CONTENT[:-1])
    with served({"/f.tar.gz": (200, CONTENT)}) as (address, _):
        files = sources.obtain(entry(f"{address}/"), None, None, progress=False)
    assert files["f.tar.gz"].read_bytes() == CONTENT


def test_every_mirrors_trouble_is_told_and_only_the_unreachable_are_tried_again(cache: Path) -> None:
    no_file = pytest.raises(DataError, match="no address served the correct file")
    with served({"/page/f.tar.gz": (200, PAGE)}) as (address, asked), no_file as error:
        sources.obtain(entry(f"{address}/absent/", f"{address}/page/"), None, None, progress=False)
    head, absent, page = str(error.value).splitlines()
    assert head.startswith("f.tar.gz: no address served the correct file. Try again later")
    assert absent == f"  {address.removeprefix('http://')}: HTTP 404"
    assert "a web page" in page
    assert asked == ["/absent/f.tar.gz", "/page/f.tar.gz", "/absent/f.tar.gz"]
    assert files_in(cache) == []


@contextmanager
def closing(answer: bytes) -> Iterator[str]:
    """The address of a server that says so much to every question, and hangs up."""

    def serve() -> None:
        for _ in range(2):
            connection, _ = server.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        thread.join()


def reason(host: str) -> str:
    """The last line of the message about an address of this host."""
    with pytest.raises(DataError, match="no address") as error:
        sources.obtain(entry(f"http://{host}/"), None, None, progress=False)
    _, line = str(error.value).splitlines()
    assert line.startswith(f"  {host}: ")
    return line.removeprefix(f"  {host}: ")


def test_what_is_wrong_with_an_address_is_said_in_a_few_words() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert reason(f"127.0.0.1:{port}") == "connection refused"
    assert reason("no-such-host.invalid") == "host name not resolved"
    with closing(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf") as host:
        assert reason(host) == "connection closed too early"
    with closing(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nContent-Encoding: gzip\r\n\r\nhalf") as host:
        assert 0 < len(reason(host)) <= 100
    with closing(b"") as host:
        assert reason(host) == "connection closed too early"


def test_a_cache_that_cannot_be_written_is_named(cache: Path) -> None:
    cache.touch()
    assert str(cache) in reason("127.0.0.1:9")


def test_an_address_of_ones_own_archive(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "own.tar.xz", cifar10_members(), "w:xz")
    found = sha256(archive)
    with served({"/a/own.tar.xz": (200, archive.read_bytes())}) as (address, asked):
        url = f"{address}/a/own.tar.xz"
        with pytest.raises(DataError, match=f"add --sha256 {found}"):
            prepare("cifar10", tmp_path / "out.h5", source=url)
        packed = prepare("cifar10", tmp_path / "out.h5", source=url, sha256=found, progress=True)
        assert packed.created
        assert not prepare("cifar10", tmp_path / "out.h5", source=url, sha256=found).created
    assert packed.dataset.source_sha256 == {"own.tar.xz": found}
    assert len(asked) == 2


def test_a_download_stays_in_the_cache(tmp_path: Path, cache: Path) -> None:
    """An escaped slash of an address is one in a path too."""
    archive = write_tar(tmp_path / "own.tar.xz", cifar10_members(), "w:xz")
    with served({"/a%2F..%2F..%2F..%2Fown.tar.xz": (200, archive.read_bytes())}) as (address, _):
        url = f"{address}/a%2F..%2F..%2F..%2Fown.tar.xz"
        assert prepare("cifar10", tmp_path / "out.h5", source=url, sha256=sha256(archive)).created
    assert [path.name for path in cache.rglob("*.xz")] == ["own.tar.xz"]
    for nothing in ("http://127.0.0.1:9", "http://127.0.0.1:9/%00"):
        with pytest.raises(JobError, match=r"no file name in the address. Specify the address of the archive"):
            prepare("cifar10", tmp_path / "other.h5", source=nothing)


def test_an_address_of_a_folder(tmp_path: Path, cache: Path) -> None:
    folder = write_mnist(tmp_path / "source")
    answers = {f"/m/{path.name}": (200, path.read_bytes()) for path in folder.iterdir()}
    with served(answers) as (address, _):
        with pytest.raises(DataError, match=f"add --sha256 {pin(folder)}"):
            prepare("mnist", tmp_path / "a.h5", source=f"{address}/m/")
        assert files_in(cache) == []
        packed = prepare("mnist", tmp_path / "a.h5", source=f"{address}/m/", sha256=pin(folder))
        assert packed.dataset.counts("train") == prepare(
            "mnist", tmp_path / "b.h5", source=folder, sha256=pin(folder)
        ).dataset.counts("train")
    with served(dict.fromkeys(answers, (200, PAGE))) as (address, _), pytest.raises(DataError, match="a web page"):
        prepare("mnist", tmp_path / "c.h5", source=f"{address}/m/", sha256=pin(folder))
    assert not (tmp_path / "c.h5").exists()
    assert not any(path.read_bytes() == PAGE for path in files_in(cache))


def test_an_address_of_one_of_four_files(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="mnist has 4 files"):
        prepare("mnist", tmp_path / "out.h5", source="http://127.0.0.1:9/train-images-idx3-ubyte.gz")


def test_an_address_that_is_not_of_the_web(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="not a web address"):
        prepare("cifar10", tmp_path / "out.h5", source="ftp://127.0.0.1/cifar.tar.gz")


def test_the_cache_is_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CNNJOB_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "cnnjob"
