"""What is asked of SLURM: time forms, sentences, contradictions, and what goes before what."""

import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnjob.errors import DataError, JobError
from cnnjob.slurm.submit import profiles
from cnnjob.slurm.submit.profiles import load_request
from cnnjob.slurm.submit.request import OWN, Request, parse_minutes

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "slurm" / "gpu-site.toml.example"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90", 90), ("1:30", 2), ("1:00", 1), ("0:01", 1), ("1:30:00", 90), ("0:00:01", 1), ("1-0", 1440),
        ("1-12", 2160), ("1-12:30", 2190), ("0-0:0:61", 2), ("90m", 90), ("2h", 120), ("1d12h", 2160), ("1d1h1m", 1501),
    ],
)  # fmt: skip
def test_times(text: str, expected: int) -> None:
    assert parse_minutes(text) == expected


@pytest.mark.parametrize("text", ["", "soon", "2 h", "h", "1.5h", "-1", "1:2:3:4", "1-", "2H", "1-1:1:1:1", "infinite",
     "9" * 5000, "9" * 4299 + "d", "1-" + "9" * 5000])  # fmt: skip
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ValueError, match=rf"^time: not a time limit \(found {re.escape(repr(text))}\)\. Use 90m, 2h"):
        parse_minutes(text)


@pytest.mark.parametrize("text", ["0", "0m", "00:00", "0-0", "0d0h"])
def test_zero_is_no_time_at_all(text: str) -> None:
    with pytest.raises(ValueError, match=r"^time: the limit is zero "):
        parse_minutes(text)


@given(st.integers(0, 99), st.integers(0, 23), st.integers(0, 59), st.integers(1, 59))
def test_all_forms_of_a_time_agree(days: int, hours: int, mins: int, seconds: int) -> None:
    total = (days * 24 + hours) * 60 + mins
    assert parse_minutes(f"{days}-{hours}:{mins}:{seconds}") == total + 1
    assert parse_minutes(f"{days * 24 + hours}:{mins}:{seconds}") == total + 1
    if total:
        same = (f"{days}-{hours}:{mins}", f"{days}d{hours}h{mins}m", f"{total}m", str(total), f"{total}:00")
        assert {parse_minutes(text) for text in same} == {total}


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (Request(), "1 node, 1 task, 2 cores, default memory, the site's time limit on the default partition"),
        (
            Request(partition="gpu", time="2h", gpus=1, cpus_per_task=4, mem="16G"),
            "1 node, 1 task, 1 GPU, 4 cores, 16 G, 2 h on gpu",
        ),
        (
            Request(partition="a,b", time="1-0", gpus=2, gpu_type="h100", cpus_per_task=1, mem_per_cpu="500M"),
            "1 node, 1 task, 2 h100 GPUs, 1 core, 500 M per core, 1 d on a,b",
        ),
        (Request(gpus=0, mem="9", time="5"), "1 node, 1 task, 2 cores, 9, 5 min on the default partition"),
    ],
)
def test_sentences(request_: Request, sentence: str) -> None:
    assert request_.describe() == sentence


def test_memory_a_gpu_is_said_too() -> None:
    assert "32 G" in Request(mem_per_gpu="32G").describe()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mem": "4G", "mem_per_cpu": "1G"}, "mem and mem_per_cpu are mutually exclusive. Keep only one"),
        ({"mem": "much"}, "mem: not an amount of memory (found 'much'). Use a value such as 4G or 500M"),
        ({"mem_per_gpu": "4 G"}, "mem_per_gpu: not an amount of memory (found '4 G'). Use a value such as 4G or 500M"),
        ({"time": "soon"}, "time: not a time limit (found 'soon')"),
        ({"gpus": -1}, "gpus: not a number of GPUs (found -1). Use a value such as 1 or a100:1"),
        (
            {"gpus_per_node": "two"},
            "gpus_per_node: not a number of GPUs (found 'two'). Use a value such as 1 or a100:1",
        ),
        ({"gpus": 1, "gpus_per_node": "1"}, "gpus and gpus_per_node are mutually exclusive. Keep only one"),
        ({"gpus": 1, "gres": "shard:2,gpu:a100:1"}, "gpus and gres are mutually exclusive. Keep only one"),
        ({"cpus_per_task": 0}, "cpus_per_task: input should be greater than or equal to 1, found 0"),
        ({"signal_seconds": 65536}, "signal_seconds: input should be less than or equal to 65535, found 65536"),
        ({"gpu_request": "please"}, "gpu_request: input should be 'gpus-per-node', 'gres' or 'gpus', found 'please'"),
        ({"partitoin": "gpu"}, "partitoin: no such key. Did you mean 'partition'?"),
    ],
)
def test_contradictions_are_found_before_sbatch(options: dict[str, object], message: str) -> None:
    with pytest.raises(JobError) as error:
        load_request(None, options)
    assert str(error.value).startswith("submit: not a valid request:\n  ")
    assert message in str(error.value)
    assert error.value.exit_code == 2


def test_the_command_line_goes_before_the_profile(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.write_text('partition = "long"\ntime = "1d"\nmem = "4G"\n[sbatch]\nnice = 5\nreservation = "course"\n')
    found = load_request(str(path), {"time": "2h", "qos": None, "partition": None}, ["nice=7", "--mail-type=FAIL"])
    assert (found.partition, found.time, found.mem, found.qos) == ("long", "2h", "4G", None)
    assert found.sbatch == {"nice": "7", "reservation": "course", "mail-type": "FAIL"}
    assert found.cpus_per_task == Request().cpus_per_task


@pytest.mark.parametrize("text", ["=course", "", "--"])
def test_an_option_of_sbatch_is_key_and_value(text: str) -> None:
    with pytest.raises(JobError, match="not of the form KEY=VALUE"):
        load_request(None, {}, [text])


def test_a_profile_is_a_name_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_request("lab", {}).backend == "numpy"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "lab.toml").write_text('partition = "here"\n')
    assert load_request("lab", {}).partition == "here"  # what lies here goes before what comes with the package
    assert next(iter(profiles.profiles())) == "lab"
    for name, message in (
        ("lob", "Did you mean 'lab'?"),
        ("nothing", "Known profiles: lab"),
        ("gone.toml", "no such profile"),
    ):
        with pytest.raises(DataError) as error:
            load_request(name, {})
        assert message in str(error.value)


@pytest.mark.parametrize("content", [b"partition = ", b"\xff\xfe", b"partition = 3"])
def test_a_profile_that_is_not_readable(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "site.toml"
    path.write_bytes(content)
    with pytest.raises(JobError, match=r"site\.toml: not "):
        load_request(str(path), {})


def test_a_folder_is_no_profile(tmp_path: Path) -> None:
    (tmp_path / "site.toml").mkdir()
    with pytest.raises(DataError, match="no such profile"):
        load_request(str(tmp_path / "site.toml"), {})


def test_what_submitit_is_told() -> None:
    found = Request(
        partition="gpu", account="us", time="90m", gpus=2, gpu_type="a100", gpu_request="gres", requeue=False,
        dependency="afterok:7", sbatch={"nice": 5},
    ).parameters()  # fmt: skip
    assert found == {
        "partition": "gpu", "account": "us", "dependency": "afterok:7", "time": 90, "cpus_per_task": 2,
        "signal_delay_s": 90, "additional_parameters": {"nice": 5, "no-requeue": True, "gres": "gpu:a100:2"},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("request_", "extra"),
    [
        (Request(), {}),
        (Request(gpus=0), {}),
        (Request(requeue=True), {"requeue": True}),
        (Request(gpus=1), {"gpus-per-node": "1"}),
        (Request(gpus=1, gpu_request="gpus"), {"gpus": "1"}),
        (Request(gpus=1, gpu_request="gres"), {"gres": "gpu:1"}),
        (Request(gpus=3, gpu_type="v100"), {"gpus-per-node": "v100:3"}),
        (Request(gpus="a100:3", gpu_type="v100", gpu_request="gres"), {"gres": "gpu:a100:3"}),
        (Request(gpus_per_node="a100:1", gpu_request="gpus"), {"gpus-per-node": "a100:1"}),
        (Request(gres="VramPerGpu:24G,gpu:1"), {"gres": "VramPerGpu:24G,gpu:1"}),
        (Request(gres="shard:2", gpus_per_node=1), {"gres": "shard:2", "gpus-per-node": "1"}),
    ],
)
def test_forms_of_asking_for_gpus(request_: Request, extra: dict[str, object]) -> None:
    assert request_.parameters()["additional_parameters"] == extra


@pytest.mark.parametrize(
    ("request_", "count", "asked"),
    [
        (Request(), 0, False),
        (Request(gpus=0), 0, True),
        (Request(gpus="a100:2"), 2, True),
        (Request(gpus_per_node=3), 3, True),
        (Request(gres="gpu"), 1, True),
        (Request(gres="gpu:h100"), 1, True),
        (Request(gres="shard:2,gpu:h100:4"), 4, True),
        (Request(gres="shard:2"), 0, False),
    ],
)
def test_how_many_gpus(request_: Request, count: int, asked: object) -> None:
    assert (request_.gpu_count, request_.asks_for_gpus) == (count, asked)


@pytest.mark.parametrize(
    ("request_", "extra"),
    [
        (Request(gpus=1), {}),
        (Request(gpus="a100:2", gpu_type="a100", gpu_request="gres"), {}),
        (Request(gpus_per_node=1), {}),
        (Request(gres="shard:2,gpu:a100:1(S:0)"), {"gres": "shard:2"}),
        (Request(gres="gpu"), {}),
        (Request(gres="gpu_mem:4G"), {"gres": "gpu_mem:4G"}),
        (
            Request(gpus=1, sbatch={"gpus_per_task": 1, "gpu-bind": "closest", "cpus-per-gpu": 4, "nice": 5}),
            {"nice": 5},
        ),
        (Request(sbatch={"--tres-per-task": "gres:gpu:1", "gpu-freq": "high"}), {}),
        (Request(), {}),
    ],
)
def test_numpy_asks_for_no_gpu_whatever_a_profile_says(request_: Request, extra: dict[str, object]) -> None:
    found = request_.with_gpus("numpy")
    assert (found.parameters()["additional_parameters"], found.gpu_count) == (extra, 0)
    assert request_.with_gpus("numpy", explicit=True).gpu_count == request_.gpu_count
    assert request_.with_gpus("cuda").gpu_count == max(request_.gpu_count, int(not request_.asks_for_gpus))


def test_memory_per_gpu_becomes_the_nodes_where_there_is_no_gpu() -> None:
    found = Request(gpus=1, mem_per_gpu="32G").with_gpus("numpy")
    assert (found.mem, found.mem_per_gpu) == ("32G", None)


@pytest.mark.parametrize(
    ("request_", "backend", "said"),
    [
        (Request(gpus=2), "auto", "a run uses one GPU, so 1 of 2 will be idle. Use --gpus 1"),
        (Request(gres="gpu:a100:4"), "cuda", "a run uses one GPU, so 3 of 4 will be idle. Use --gpus 1"),
        (Request(gpus_per_node=1), "numpy", "a run on NumPy uses no GPU, so 1 of 1 will be idle. Use --gpus 0"),
        (Request(gpus=1), "auto", ""),
        (Request(gpus=0), "numpy", ""),
    ],
)
def test_gpus_that_no_run_uses_are_said(request_: Request, backend: str, said: str) -> None:
    assert request_.idle_gpus(backend) == said


NESTED = "[sbatch]\n" + ".".join("a" * 3000) + " = 1\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sbatch = 'nice'\n", "sbatch: not a table of options (found 'nice')"),
        ("sbatch = [1]\n", "sbatch: not a table of options (found [1])"),
        ("partition = 5\n", "partition: input should be a string, found 5"),
        ("setup = 'module load x'\n", "setup: input should be an array, found 'module load x'"),
        ("setup = [1]\n", "setup.0: input should be a string, found 1"),
        ("gpus = 1.5\n", "gpus"),
        ("gpus = [1]\n", "gpus"),
        ("requeue = 'yes'\n", "requeue: input should be true or false, found 'yes'"),
        ("time = 90\n", "time: input should be a string, found 90"),
        ("time = 2026-01-01\n", "time: input should be a string"),
        ("cpus_per_task = true\n", "cpus_per_task: input should be an integer, found true"),
        ("cpus_per_task = inf\n", "cpus_per_task"),
        ("[sbatch]\nnice = [1]\n", "sbatch.nice"),
        ("[sbatch.nice]\nx = 1\n", "sbatch.nice"),
        ("[[sbatch]]\nx = 1\n", "sbatch: not a table of options"),
        ("[partition]\nx = 1\n", "partition: input should be a string"),
        (NESTED, "not readable as TOML (a dotted key has more than 64 parts"),
        (f"partition = {'[' * 3000}{']' * 3000}\n", "its tables or arrays are nested too deep"),
        (f"partition = {'{a=' * 3000}1{'}' * 3000}\n", "its tables or arrays are nested too deep"),
        (f"cpus_per_task = {'9' * 5000}\n", "not readable as TOML"),
        (f"cpus_per_task = 0x{'f' * 5000}\n", "cpus_per_task: "),
        (f"gpus = 0x{'f' * 5000}\n", "gpus: "),
        (f"[sbatch]\nnice = 0x{'f' * 5000}\n", "sbatch.nice: the number is too large"),
        (f"gpus = '{'9' * 5000}'\n", "not a number of GPUs"),
        (f"time = '{'9' * 5000}'\n", "not a time limit"),
        (f"mem = '{'9' * 5000}'\n", "not an amount of memory"),
        ('partition = "a\\nb"\n', "partition: contains a line break or control character (found 'a\\nb')"),
        ('partition = """a\nb"""\n', "partition: contains a line break or control character"),
        ('job_name = "a\\u0000b"\n', "job_name: contains a line break or control character"),
        ('constraint = "a\\u0085b"\n', "constraint: contains a line break or control character"),
        ('setup = ["a\\nb"]\n', "setup: contains a line break or control character"),
        ('[sbatch]\nreservation = "a\\r\\nb"\n', "sbatch.reservation: contains a line break or control character"),
        ('[sbatch]\n"nice\\n#SBATCH --x" = 1\n', "not an option name"),
        ('[sbatch]\n"nice=5 --x" = 1\n', "not an option name"),
        ('[sbatch]\n"" = 1\n', "not an option name"),
        ('"parti\\ntion" = "x"\n', "no such key"),
    ],
)
@pytest.mark.parametrize("where", ["profile", "config"])
def test_a_profile_of_any_content_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, content: str, message: str
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "cnnjob").mkdir()
    path = profiles.config_file() if where == "config" else tmp_path / "site.toml"
    path.write_text(content)
    with pytest.raises(JobError, match=re.escape(message)) as error:
        load_request(str(path) if where == "profile" else None, {})
    assert len(str(error.value)) < 7000


@pytest.mark.parametrize("value", ["3", "[1]", ".".join("a" * 30) + " = 1"])
def test_a_configuration_whose_profile_is_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "cnnjob").mkdir()
    profiles.config_file().write_text(f"profile.{value}\n" if "a" in value else f"profile = {value}\n")
    with pytest.raises(JobError, match="profile is not a name"):
        load_request(None, {})


@pytest.mark.parametrize("key", [*OWN, "time", "mem-per-cpu", "--mem_per_cpu", "job-name", "gres"])
def test_an_option_that_would_contradict_an_own_one(key: str) -> None:
    with pytest.raises(JobError, match=r"sbatch: [\w-]+ (cannot be set here|has its own option)"):
        load_request(None, {}, [f"{key}=1"])


@pytest.mark.parametrize("key", ["arr", "out", "comm", "ntask", "--wra", "depend", "test_onl", "partitio"])
def test_a_shortened_option_that_sbatch_would_complete(key: str) -> None:
    with pytest.raises(JobError, match=rf"sbatch: {key.lstrip('-').replace('_', '-')} is short for [a-z-]+\. Write"):
        load_request(None, {}, [f"{key}=1"])


def test_the_layers_are_over_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "cnnjob").mkdir()
    users = 'profile = "{}"\npartition = "users"\nqos = "users"\naccount = "users"\nmem = "1G"\n[sbatch]\nnice = 1\n'
    profiles.config_file().write_text(users.format(tmp_path / "site.toml"))
    (tmp_path / "site.toml").write_text('partition = "profiles"\nqos = "profiles"\nmem_per_cpu = "2G"\n')
    monkeypatch.setenv("SBATCH_QOS", "variables")
    monkeypatch.setenv("SBATCH_ACCOUNT", "variables")
    found = load_request(None, {"account": "lines"}, ["hold"])
    assert (found.partition, found.qos, found.account) == ("profiles", "variables", "lines")
    assert (found.mem, found.mem_per_cpu, found.sbatch) == (None, "2G", {"nice": 1, "hold": True})
    assert load_request("lab", {}).backend == "numpy"
    profiles.config_file().write_text("partitoin = 1\n")
    with pytest.raises(JobError, match=r"config\.toml: not a valid request:\n  partitoin: no such key"):
        load_request(None, {})


def test_the_example_is_valid_and_names_every_key(tmp_path: Path) -> None:
    path = tmp_path / "gpu-site.toml"
    path.write_text(EXAMPLE.read_text())
    found = load_request(str(path), {})
    assert found.describe() == "1 node, 1 task, 1 a100 GPU, 4 cores, 16 G, 2 h on gpu"
    named = set(re.findall(r"^(?:# )?\[?(\w+)(?: = |\]$)", EXAMPLE.read_text(), re.MULTILINE))
    assert set(Request.model_fields) <= named
    assert "gpu-site" not in profiles.profiles()


@pytest.mark.parametrize("path", sorted((ROOT / "slurm").glob("*.toml")), ids=lambda path: path.stem)
def test_the_profiles_are_valid(path: Path) -> None:
    assert load_request(str(path), {}).model_fields_set >= tomllib.loads(path.read_text()).keys()


def test_a_request_outlives_its_file() -> None:
    """A successor is submitted from it."""
    request = Request(partition="gpu", setup=("module load cuda",), requeue=True, gpus=1, sbatch={"nice": 5, "x": "y"})
    assert Request.model_validate(request.model_dump(mode="json")) == request
