"""A cluster of ``slurm/cluster`` for tests, its ordinary user, and a Python that this user can execute."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "slurm" / "cluster"
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "slurmdbd", "mariadbd")
MEMORY = Path("/dev/shm")
ROOM = 1 << 30
ENDED = ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT")


def missing() -> str | None:
    """Why no cluster can be started here, with the line that helps."""
    if os.geteuid():
        return "a real SLURM is started by root, which runs the jobs of others"
    search = os.environ.get("PATH", "") + ":/usr/sbin"
    if not all(shutil.which(program, path=search) for program in PROGRAMS):
        return "SLURM is not installed; install it with: slurm/cluster install"
    return None


def place() -> Path:
    """Where folders are made: in memory, which is several times faster for the database, or in /tmp."""
    if MEMORY.is_dir() and os.access(MEMORY, os.W_OK):
        state = os.statvfs(MEMORY)
        if not state.f_flag & os.ST_NOEXEC and state.f_bavail * state.f_frsize > ROOM:
            return MEMORY
    return Path("/tmp")


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A new folder that every user can enter (pytest's own are closed to all but one)."""
    path = Path(tempfile.mkdtemp(prefix="cnnjob-", dir=place())).resolve()
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def until(done: Callable[[], bool], seconds: float = 20, what: str = "it") -> None:
    """Wait for something."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, f"{what} did not come within {seconds:g} s"
        time.sleep(0.05)


def script(*words: object, timeout: float = 60, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run ``slurm/cluster`` with these words."""
    command = [str(SCRIPT), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, env=env)


@dataclass(frozen=True)
class Cluster:
    """One that is up."""

    folder: Path

    @property
    def home(self) -> Path:
        """The ordinary user's folder."""
        return self.folder / "home"

    @property
    def ports(self) -> range:
        """The ports that it took."""
        options = (self.folder / "etc" / "options").read_text()
        port, nodes = (re.search(rf'\b{key}="(\d+)"', options) for key in ("port", "nodes"))
        assert port is not None
        assert nodes is not None
        return range(int(port[1]), int(port[1]) + 3 + int(nodes[1]))

    def run(
        self, *words: object, cwd: Path | None = None, timeout: float = 60, check: bool = True, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as the ordinary user, by default in its home."""
        inside = ["env", f"--chdir={cwd or self.home}", *(f"{key}={value}" for key, value in variables.items())]
        outside = {key: value for key, value in os.environ.items() if not key.startswith(("COV", "SLURM_", "PYTEST"))}
        found = script("run", self.folder, *inside, *words, timeout=timeout, env=outside)
        if check:
            assert found.returncode == 0, f"{words}: {found.stdout}{found.stderr}"
        return found

    def admin(self, *words: str) -> str:
        """Run one of SLURM's commands as root."""
        environment = {**os.environ, "SLURM_CONF": str(self.folder / "etc" / "slurm.conf")}
        found = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False, env=environment)
        assert found.returncode == 0, f"{words}: {found.stdout}{found.stderr}"
        return found.stdout

    def daemon(self, verb: str, name: str) -> None:
        """Stop, kill or start a daemon."""
        found = script(verb, self.folder, name)
        assert found.returncode == 0, found.stderr

    def submit(self, *options: object) -> str:
        """Give sbatch these options, as the ordinary user; the job's id."""
        return self.run("sbatch", "--parsable", "--output=%j.txt", "--open-mode=append", *options).stdout.strip()

    def job(self, job: str) -> dict[str, str]:
        """What ``scontrol show job`` says."""
        words = self.admin("scontrol", "show", "job", "--oneliner", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def state(self, job: str) -> str:
        """The job's state."""
        return self.job(job)["JobState"]

    def wait(self, job: str, *states: str, seconds: float = 30) -> dict[str, str]:
        """Wait for one of these states; a job that ended in another is an error at once."""
        until(lambda: self.state(job) in {*states, *ENDED}, seconds, f"{' or '.join(states)} of job {job}")
        found = self.job(job)
        assert found["JobState"] in states, found
        return found

    def output(self, job: str) -> str:
        """What the job has written so far."""
        path = self.home / f"{job}.txt"
        return path.read_text() if path.exists() else ""

    def clear(self) -> None:
        """End all jobs."""
        self.admin("scancel", "--user=nobody")
        until(lambda: not self.admin("squeue", "--noheader"), what="an empty queue")


@contextlib.contextmanager
def up(*options: object) -> Iterator[Cluster]:
    """A cluster with these options of ``slurm/cluster up``; it goes down with the block, and with this process."""
    with folder() as path:
        found = script("up", path, "--while", os.getpid(), *options)
        assert found.returncode == 0, found.stderr
        try:
            yield Cluster(path)
        finally:
            down = script("down", path)
        assert down.returncode == 0, down.stderr


def python(cluster: Cluster, path: Path) -> Path:
    """An interpreter with all packages of this one that the ordinary user can execute.

    A pyenv below /root is closed to everyone else. Then Debian's interpreter of the same version takes its place, in an
    environment in ``path`` that shows the packages of this one.
    """
    if cluster.run(sys.executable, "-c", "import cnnjob", check=False).returncode == 0:
        return Path(sys.executable)
    name = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    packages = path / "lib" / name / "site-packages"
    packages.mkdir(parents=True)
    (path / "bin").mkdir()
    (path / "bin" / "python").symlink_to(f"/usr/bin/{name}")
    (path / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
    (packages / "outer.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    command = path / "bin" / "cnnjob"
    command.write_text(f"#!{path}/bin/python\nfrom cnnjob.cli.main import main\nmain()\n")
    command.chmod(0o755)
    found = cluster.run(path / "bin" / "python", "-c", "import cnnjob", check=False)
    assert found.returncode == 0, (
        f"nobody cannot execute {sys.executable} nor /usr/bin/{name} with its packages: install {name} in /usr/bin, "
        f"and open the folders above {ROOT} and {sys.prefix} to others\n{found.stderr}"
    )
    return path / "bin" / "python"


def living(*words: str) -> list[str]:
    """The command lines of running processes that hold one of these words."""
    return [line for _, line in commands() if any(word in line for word in words)]


def commands() -> list[tuple[int, str]]:
    """Every process with its command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        found.append((int(path.parent.name), line))
    return found
