"""``cnnjob doctor``: what it finds on a good site and on bad ones, and the profile that it writes."""

import errno
import fcntl
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cnnjob.doctor import filesystem
from cnnjob.doctor.filesystem import Mount, lock_failure, mount_of
from cnnjob.doctor.findings import Finding
from cnnjob.slurm.submit import profiles
from tests.cuda.stand_ins import make_libraries, places
from tests.durability.faults import NO_COMPILER, Mode, compile_no_locks, compile_shim, compiler
from tests.helpers.cli import cnnjob
from tests.helpers.fake_slurm import FakeSlurm

PARTITIONS = """case "$*" in
*"show partition"*)
echo "PartitionName=cpu Default=YES MaxTime=2-00:00:00 PreemptMode=OFF State=UP AllowAccounts=ALL"
echo "PartitionName=gpu Default=NO MaxTime=1-00:00:00 PreemptMode=OFF State=UP AllowAccounts=us,them"
echo "PartitionName=idle Default=NO MaxTime=UNLIMITED PreemptMode=REQUEUE State=UP AllowAccounts=ALL"
echo "PartitionName=new Default=NO MaxTime=1:00:00 PreemptMode=OFF State=DOWN AllowAccounts=ALL"
echo "PartitionName=theirs Default=NO MaxTime=1:00:00 PreemptMode=OFF State=UP AllowAccounts=them";;
*"show config"*) echo "JobRequeue = 0"; echo "MaxArraySize = 500"; echo "KillWait = 45 sec"
echo "SLURM_VERSION = 23.11.4"; echo "SelectType = select/cons_tres"
echo "AccountingStorageType = accounting_storage/slurmdbd";;
esac"""
SINFO = """echo "cpu|20|32|128000|(null)"
echo "gpu|4|64|512000|gpu:a100:4(S:0-1),nvme:1"
echo "gpu|1|64+|512000+|gpu:a100:2,gpu:v100:2"
echo "idle|4|64|512000|gpu:a100:4(S:0,1)"
echo "theirs|4|64|512000|gpu:h100:8"
echo "a line of the site's own" """
GOOD = {
    "sbatch": "exit 0",
    "scontrol": PARTITIONS,
    "sinfo": SINFO,
    "sacctmgr": 'echo "us"; echo "course"',
    "nvidia-smi": "exit 9",
}


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """An empty folder on a machine without a SLURM."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    site = FakeSlurm(tmp_path / "commands")
    monkeypatch.setenv("PATH", str(site.folder))
    return site


@pytest.fixture
def site(nowhere: FakeSlurm) -> FakeSlurm:
    """The same, with one."""
    nowhere.install(**GOOD)
    return nowhere


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages in which CuPy is the stand-in."""
    return make_libraries(tmp_path_factory.mktemp("libraries"))


def found() -> dict[str, dict[str, str]]:
    """What is found, by what it is about."""
    said = cnnjob("doctor", "--json")
    rows = json.loads(said.stdout)
    assert said.exit_code == any(row["level"] == "bad" for row in rows)
    return {row["check"]: row for row in rows}


@pytest.mark.usefixtures("site")
def test_a_good_site() -> None:
    rows = found()
    assert not [row for row in rows.values() if row["level"] == "bad"]
    assert rows["SLURM"]["message"] == "SLURM 23.11.4 answers; 5 partitions"
    assert rows["partition gpu"]["message"] == (
        "4 nodes with 64 cores, 512 GB and 4 a100; 1 node with 64 cores, 512 GB, 2 a100 and 2 v100; "
        "at most 1 d; not preempted"
    )
    assert rows["partition cpu"]["message"] == (
        "20 nodes with 32 cores and 128 GB; at most 2 d; not preempted; the default"
    )
    assert rows["partition idle"]["message"].endswith("; no time limit; preempted (REQUEUE)")
    for name, reason in (("new", "; state DOWN"), ("theirs", "; for accounts them")):
        assert (rows[f"partition {name}"]["level"], reason in rows[f"partition {name}"]["message"]) == ("note", True)
    assert rows["accounts"]["message"] == "yours: course, us"
    assert rows["requeueing"]["message"].startswith("off; a job")
    assert rows["stopping"]["message"].startswith("45 s from SIGTERM to SIGKILL")
    for what in ("Python", "packages", "processor", "rename", "exclusive create", "locks", "clock"):
        assert rows[what]["level"] == "ok", rows[what]
    assert list(Path().iterdir()) == []


def test_the_lines_for_people(site: FakeSlurm) -> None:
    said = cnnjob("doctor")
    assert said.exit_code == 0, said.output
    assert re.search(r"^ok    partition gpu     4 nodes with 64 cores", said.stdout, re.MULTILINE)
    assert re.search(r"^note  GPU               none; .*\n {24}→ ", said.stdout, re.MULTILINE)
    assert "\x1b" not in said.stdout
    site.install(scontrol="echo slurm_load_partitions: error >&2; echo and more >&2; exit 1")
    said = cnnjob("doctor")
    assert said.exit_code == 1
    assert re.search(
        r"^bad   SLURM  +scontrol .*: refused, slurm_load_partitions: error … and more\n", said.stdout, re.MULTILINE
    )


def test_slurm_that_was_never_configured(site: FakeSlurm) -> None:
    site.install(scontrol='echo "scontrol: fatal: Could not establish a configuration source" >&2; exit 1')
    row = found()["SLURM"]
    assert (row["level"], row["message"]) == ("note", "installed on this machine, but not configured")
    assert "cnnjob submit --local" in row["advice"]


@pytest.mark.usefixtures("nowhere")
def test_no_slurm() -> None:
    rows = found()
    assert (rows["SLURM"]["level"], rows["SLURM"]["message"]) == ("note", "not installed on this machine")
    refused = cnnjob("doctor", "--write-profile", "mine")
    assert (refused.exit_code, "scontrol: not found; this machine has no SLURM" in refused.stderr) == (4, True)
    assert list(Path().iterdir()) == []


def test_an_old_and_small_site(site: FakeSlurm) -> None:
    site.install(
        scontrol="""case "$*" in *"show partition"*) echo "PartitionName=all Default=YES";; esac""",
        sinfo='echo "all|1|1|1|(null)"', sacctmgr=None,
    )  # fmt: skip
    rows = found()
    assert rows["partition all"]["message"] == "1 node with 1 core; no time limit; not preempted; the default"
    assert rows["GPUs"]["message"] == "none in the partitions all"
    assert rows["accounts"]["message"].startswith("no SLURM accounting")
    assert cnnjob("doctor", "--write-profile", "old").exit_code == 0
    request = profiles.load_request("old", {})
    assert request.describe() == "1 node, 1 task, 1 core, default memory, 2 h on all"
    assert request.backend == "numpy"


@pytest.mark.usefixtures("site")
def test_a_profile_is_written_once_and_can_be_submitted_with() -> None:
    written = cnnjob("doctor", "--write-profile", "mysite")
    assert written.exit_code == 0, written.output
    assert written.stderr.startswith(
        "slurm/mysite.toml: written. To see what it requests:\n  cnnjob submit JOB --profile mysite --dry-run\n"
    )
    text = Path("slurm/mysite.toml").read_text()
    request = profiles.load_request("mysite", {})
    assert request.describe() == "1 node, 1 task, 1 a100 GPU, 4 cores, 16 G, 2 h on gpu"
    assert (request.account, request.gpu_request) == ("us", "gpus-per-node")
    again = cnnjob("doctor", "--write-profile", "mysite")
    assert (again.exit_code, "slurm/mysite.toml already exists" in again.stderr) == (2, True)
    assert Path("slurm/mysite.toml").read_text() == text
    assert cnnjob("doctor", "--write-profile", "cpus", "--partition", "cpu").exit_code == 0
    assert profiles.load_request("cpus", {}).describe() == "1 node, 1 task, 4 cores, 16 G, 2 h on cpu"
    assert "# Your other accounts: us\n" in Path("slurm/cpus.toml").read_text()


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("../x",), 2, "--write-profile ../x: not a valid profile name"),
        (("x", "--partition", "gpuu"), 4, "Did you mean 'gpu'? Valid names for this site: cpu, gpu, idle, new, theirs"),
    ],
)
def test_a_profile_that_cannot_be(arguments: tuple[str, ...], code: int, message: str) -> None:
    said = cnnjob("doctor", "--write-profile", *arguments)
    assert (said.exit_code, message in said.stderr) == (code, True), said.output
    assert not Path("slurm").exists()


def test_a_site_without_the_form_of_newer_ones_is_asked_for_generic_resources(site: FakeSlurm) -> None:
    site.install(scontrol=PARTITIONS.replace("select/cons_tres", "select/linear"))
    assert cnnjob("doctor", "--write-profile", "linear").exit_code == 0
    assert profiles.load_request("linear", {}).gpu_request == "gres"


def test_a_gpu_that_the_driver_shows_and_cupy_does_not(site: FakeSlurm) -> None:
    site.install(**{"nvidia-smi": 'echo "NVIDIA A100-SXM4-40GB, 40960 MiB"'})
    row = found()["GPU"]
    assert row["level"] == "bad"
    assert row["message"].startswith("NVIDIA A100-SXM4-40GB, 40960 MiB, but CuPy cannot be loaded")
    assert row["advice"].startswith("pip install ")


@pytest.mark.skipif(compiler() is None, reason=NO_COMPILER)
@pytest.mark.parametrize(
    ("here", "verdict", "said"),
    [
        (
            {"CUPY_CACHE_DIR": "/tmp/kernels"},
            "ok",
            r"Stand-in GPU, compute capability 9\.0, 1\d\.\d GB free; CuPy 14\.2\.0, driver for CUDA 13\.2; compiled "
            r"kernels are stored in /tmp/kernels",
        ),
        (
            {"CUPY_CACHE_DIR": "", "CNNJOB_CACHE_DIR": "/dev/null"},
            "note",
            r"Stand-in GPU, .*; compiled kernels are stored in /.*/cnnjob-kernels-\d+",
        ),
        (
            {"STANDIN_CAPABILITIES": "70"},
            "note",
            r"none; .* \(Stand-in GPU has compute capability 7\.0, and CUDA 13\.2 needs 7\.5 or newer\)",
        ),
        (
            {"STANDIN_DRIVER": "12040"},
            "note",
            r"none; .* \(the driver supports CUDA 12\.4, but CuPy is built for CUDA 13\.2\)",
        ),
        ({"STANDIN_BYTES": "10"}, "bad", r"cannot be used \(Out of memory allocating .*\)"),
    ],
)
def test_a_gpu(libraries: Path, tmp_path: Path, here: dict[str, str], verdict: str, said: str) -> None:
    row = examined(tmp_path, **places(libraries), **here)["GPU"]
    assert row["level"] == verdict, row
    assert re.fullmatch(said, row["message"]), row


def examined(runs: Path, **environment: str) -> dict[str, dict[str, str]]:
    """What another process finds."""
    command = [sys.executable, "-m", "cnnjob", "doctor", "--json", "--runs", str(runs)]
    root = str(Path(__file__).parents[2])
    known = {**os.environ, "PYTHONPATH": root, **environment}
    done = subprocess.run(command, env=known, capture_output=True, text=True, check=False)
    assert done.returncode in {0, 1}, done.stderr
    return {row["check"]: row for row in json.loads(done.stdout)}


# --- the file system


def looked(runs: Path, **options: Any) -> dict[str, Finding]:
    return {finding.check: finding for finding in filesystem.check_filesystem(runs, **{"on_cluster": False, **options})}


def test_a_folder_that_is_not_there_yet_is_not_made(tmp_path: Path) -> None:
    rows = looked(tmp_path / "new" / "runs")
    assert {row.level for name, row in rows.items() if name not in {"space", "quota"}} == {"ok"}
    assert rows["runs"].message.startswith(f"{tmp_path}, ")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written() -> None:
    row = looked(Path("/proc/sys"))["writing"]
    assert (row.level, row.message.startswith("cannot write to /proc/sys (")) == ("bad", True)


def test_a_disk_of_its_own_is_said_where_there_is_a_cluster(tmp_path: Path) -> None:
    kind = looked(tmp_path)["runs"].message.rpartition(", ")[2]
    assert looked(tmp_path, on_cluster=True)["runs"].level == ("note" if kind in filesystem.LOCAL_TYPES else "ok")


@pytest.mark.skipif(compiler() is None, reason=NO_COMPILER)
@pytest.mark.parametrize("at", [1, 40, 90])
def test_a_file_system_that_refuses_is_found(tmp_path: Path, at: int) -> None:
    """From some operation on each one fails."""
    (tmp_path / "runs").mkdir()
    shim = compile_shim(tmp_path)
    faults = {"FAULTS_FOLDER": tmp_path / "runs", "FAULTS_AT": at, "FAULTS_MODE": int(Mode.FAIL_ON)}
    spoilt = {name: str(value) for name, value in {**faults, "FAULTS_ERRNO": errno.ENOSPC}.items()}
    rows = examined(tmp_path / "runs", PATH="/nowhere", LD_PRELOAD=str(shim), **spoilt)
    bad = [row for row in rows.values() if row["level"] == "bad"]
    assert bad
    assert all("No space left on device" in row["message"] for row in bad), bad


@pytest.mark.skipif(compiler() is None, reason=NO_COMPILER)
def test_a_file_system_without_locks(tmp_path: Path) -> None:
    row = examined(tmp_path / "runs", PATH="/nowhere", LD_PRELOAD=str(compile_no_locks(tmp_path)))["locks"]
    assert (row["level"], row["message"]) == ("note", "refused (No locks available)")
    assert row["advice"].startswith("concurrent submissions are detected only in SLURM's queue")


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("nfs4", "rw,vers=4.2,local_lock=none", "between nodes too"),
        ("nfs", "rw,vers=3,nolock,local_lock=all", "not between nodes"),
        ("nfs", "rw,local_lock=posix", "not between nodes"),
        ("nfs", "rw,local_lock=flock", "between nodes too"),
        ("lustre", "rw,flock", "between nodes too"),
        ("lustre", "rw,localflock", "not between nodes"),
        ("gpfs", "rw", "between nodes too"),
        ("ceph", "rw", "between nodes too"),
        ("beegfs", "rw", "unknown between nodes"),
        ("ext4", "rw", "this machine"),
    ],
)
def test_how_far_locks_hold(kind: str, options: str, said: str) -> None:
    assert said in filesystem._lock_scope(kind, options.split(","))


MOUNTS = [
    Mount("/dev/sda1", "/", "ext4", ("rw",)),
    Mount("server:/home", "/home", "nfs", ("rw", "local_lock=none")),
    Mount("other:/home", "/home", "nfs4", ("rw", "local_lock=all")),
    Mount("/dev/sdb1", "/home/me", "xfs", ("rw",)),
]


@pytest.mark.parametrize(
    ("folder", "device"),
    [("/home/you/runs", "other:/home"), ("/home/me/runs", "/dev/sdb1"), ("/homes", "/dev/sda1"), ("/", "/dev/sda1")],
)
def test_a_folder_lies_in_the_innermost_mount_and_the_last_on_its_point(folder: str, device: str) -> None:
    mount = mount_of(Path(folder), MOUNTS)
    assert mount is not None
    assert mount.device == device
    assert mount_of(Path("/tmp"), MOUNTS[1:]) is None


@pytest.mark.parametrize(
    ("script", "failure"),
    [
        (f"exit {filesystem.REFUSED}", ""),
        ("exit 0", "two processes locked the same file"),
        ("echo first >&2; echo no module >&2; exit 1", "not tested (exit code 1: no module)"),
        ("kill -9 $$", "not tested (exit code -9: no message)"),
        ("sleep 60", "not tested (.* timed out after 0.2 seconds)"),
    ],
)
def test_only_a_refused_lock_counts_as_a_lock(script: str, failure: str) -> None:
    seconds = 0.2 if script.startswith("sleep") else 20
    found = lock_failure(["/bin/sh", "-c", script], seconds)
    assert re.fullmatch(failure.replace("(", r"\(").replace(")", r"\)"), found), found


def test_a_lock_of_another_process_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    command = [sys.executable, "-c", filesystem.LOCK_CODE, str(file)]
    assert lock_failure(command) == "two processes locked the same file"
    with file.open("w") as held:
        fcntl.lockf(held, fcntl.LOCK_EX)
        assert lock_failure(command) == ""
    assert "IsADirectoryError" in lock_failure([*command[:-1], str(tmp_path)])


QUOTAS = """Disk quotas for user me (uid 1000):
     Filesystem  blocks   quota   limit   grace   files   quota   limit   grace
   {name}  {used}* 9000000 10000000  6days    1234       0       0
   {name}2  1 2 3 0 1 0 0
   other:/home  1 2 3 0 1 0 0"""


def test_quotas(nowhere: FakeSlurm, tmp_path: Path) -> None:
    mount = mount_of(tmp_path, filesystem.read_mounts())  # unknown in some containers: then no line can be about it
    device = mount.device if mount else ""
    for used, verdict in ((1_000_000, "ok"), (9_000_000, "note"), (9_900_000, "bad")):
        nowhere.install(quota=f"echo '{QUOTAS.format(name=device or 'elsewhere', used=used)}'")
        rows = looked(tmp_path)
        if device:
            row = rows["quota"]
            assert (row.level, row.message) == (verdict, f"{used * 1024 / 1e9:.1f} of 10.2 GB used")
        else:
            assert "quota" not in rows
    nowhere.install(quota="echo nonsense; exit 1")
    assert "quota" not in looked(tmp_path)


@pytest.mark.parametrize("name", ["/dev/sda1", "server:/home", "/lustre", "tank/home"])
def test_a_quota_is_that_of_its_own_file_system(name: str) -> None:
    answer = QUOTAS.format(name=name, used=5)
    assert list(filesystem._parse_quotas(answer, name)) == [(5 * 1024, 10_000_000 * 1024)]
    assert len(list(filesystem._parse_quotas(answer, f"{name}/me"))) == 1
    assert list(filesystem._parse_quotas(answer, f"{name}7")) == []
    assert list(filesystem._parse_quotas(answer, "")) == []


CHROOT = """set -e
mkdir "$1/runs"
for path in /*; do
  [ "$path" != "$3" ] || continue
  if [ -L "$path" ]; then cp -P "$path" "$1"
  elif [ -d "$path" ]; then mkdir -p "$1$path" && mount --rbind "$path" "$1$path"
  fi
done
cd "$1"
exec chroot . "$2" -m cnnjob doctor --json --runs /runs
"""


def chrooted(tmp_path: Path, hidden: str = "") -> dict[str, dict[str, str]]:
    """What is found in a root that is no mount point itself: everything is beneath it but a folder."""
    inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", CHROOT, "sh"]
    if subprocess.run([*inside[:4], "true"], capture_output=True, check=False).returncode:
        pytest.skip("new user namespaces are forbidden, by this machine or because it is a chroot")
    (root := tmp_path / "root").mkdir()
    known = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [*inside, str(root), sys.executable, hidden]
    done = subprocess.run(command, env=known, capture_output=True, text=True, check=False)
    assert done.returncode in {0, 1}, done.stderr
    return {row["check"]: row for row in json.loads(done.stdout)}


def test_a_root_that_no_mount_is_listed_for(tmp_path: Path) -> None:
    rows = chrooted(tmp_path)
    number = tmp_path.stat().st_dev
    is_disk = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").exists()
    assert rows["runs"]["message"] == f"/runs, {filesystem.BLOCK_DEVICE if is_disk else 'unknown file system'}"
    assert {rows[what]["level"] for what in ("runs", "rename", "fsync", "exclusive create", "clock")} == {"ok"}


def test_no_proc(tmp_path: Path) -> None:
    rows = chrooted(tmp_path, hidden="/proc")
    assert rows["processes"]["advice"] == "In a chroot or container: mount -t proc proc /proc"
    assert {what for what, row in rows.items() if row["level"] == "bad"} - {"SLURM"} == {"processes"}
