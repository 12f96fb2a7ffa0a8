"""Arguments and options that are shared by several commands."""

from pathlib import Path
from typing import Annotated, Any

import typer

from cnnjob.cli import completion

Text = str | None
Number = int | None
Words = list[str] | None

DATA_FOLDER, RUNS_FOLDER = Path("data"), Path("runs")

JOB = Annotated[str, typer.Argument(metavar="JOB", autocompletion=completion.jobs, help="Job name or job file.")]


def named_run(given: Path | None) -> Path | None:
    """Return the folder of the run that an argument names."""
    from cnnjob.runs.summary import resolve_run

    return given and resolve_run(given, RUNS_FOLDER)


def named_runs(given: list[Path] | None) -> list[Path] | None:
    """Return the folders of the runs that an argument names."""
    from cnnjob.runs.summary import resolve_run

    return given and [resolve_run(path, RUNS_FOLDER) for path in given]


# readable=False: the commands' own message about an unreadable folder also explains what to do
RUN = Annotated[
    Path,
    typer.Argument(
        metavar="RUN",
        autocompletion=completion.runs,
        callback=named_run,
        help="Folder, name or beginning of the name of a run, or latest.",
        readable=False,
    ),
]
RUN_PATHS = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="RUNS",
        autocompletion=completion.runs,
        callback=named_runs,
        help="Folders or names of runs, latest, or folders of runs; runs/ by default.",
        readable=False,
    ),
]

# Headings of the options in the help of a command
JOB_GROUP = "Job options"
SLURM_GROUP = "SLURM options"
RESOURCES_GROUP = "Resources, as in sbatch"
START_GROUP = "How to run"
FOLDERS_GROUP = "Folders"
OUTPUT_GROUP = "Output options"

OVERRIDES = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        autocompletion=completion.settings,
        rich_help_panel=JOB_GROUP,
        help="Override a job file key, such as train.epochs=3; can be repeated.",
    ),
]
DATA = Annotated[
    Path,
    typer.Option(metavar="FOLDER", rich_help_panel=FOLDERS_GROUP, help="Folder that contains the prepared datasets."),
]
RUNS = Annotated[
    Path, typer.Option(metavar="FOLDER", rich_help_panel=FOLDERS_GROUP, help="Folder that contains the runs.")
]


def json_option(text: str) -> Any:
    """Return the option ``--json`` with its help text."""
    return typer.Option("--json", rich_help_panel=OUTPUT_GROUP, help=text)


def _slurm(*names: str, **settings: Any) -> Any:
    """Return an option for SLURM, with the same name as the option of sbatch."""
    return typer.Option(*names, **{"rich_help_panel": SLURM_GROUP, "metavar": "NAME", **settings})


def _resource(*names: str, **settings: Any) -> Any:
    """Return an option that requests a resource from SLURM."""
    return _slurm(*names, **{"rich_help_panel": RESOURCES_GROUP, "metavar": "SIZE", **settings})


PROFILE = Annotated[
    Text, _slurm(autocompletion=completion.profile_names, help="Cluster profile: a name in slurm/, or a file.")
]
PARTITION = Annotated[Text, _slurm("--partition", "-p", help="SLURM partition.")]
ACCOUNT = Annotated[Text, _slurm("--account", "-A", help="SLURM account to charge.")]
QOS = Annotated[Text, _slurm("--qos", "-q", help="Quality of service.")]
CONSTRAINT = Annotated[Text, _slurm("--constraint", "-C", metavar="LIST", help="Features that the node must have.")]
NODELIST = Annotated[Text, _slurm("--nodelist", "-w", metavar="LIST", help="Nodes to use.")]
EXCLUDE = Annotated[Text, _slurm("--exclude", "-x", metavar="LIST", help="Nodes to exclude.")]
DEPENDENCY = Annotated[
    Text, _slurm("--dependency", "-d", metavar="LIST", help="SLURM jobs to wait for, in sbatch's format.")
]
JOB_NAME = Annotated[Text, _slurm("--job-name", "-J", help="SLURM job name; the run's name by default.")]
# In REQUEUE and STAGE, None leaves the choice to the profile.
REQUEUE = Annotated[bool | None, _slurm("--requeue/--no-requeue", help="Allow SLURM to requeue the job.")]
SBATCH = Annotated[Words, _slurm(metavar="KEY[=VALUE]", help="Any other sbatch option; can be repeated.")]
TIME = Annotated[
    Text, _resource("--time", "-t", metavar="TIME", help="Time limit, in sbatch's format or as 90m, 2h or 1d12h.")
]
CPUS_PER_TASK = Annotated[
    Number, _resource("--cpus-per-task", "-c", metavar="N", min=1, help="Number of CPU cores; all of them are used.")
]
MEM = Annotated[Text, _resource(help="Memory per node, such as 16G; excludes --mem-per-cpu and --mem-per-gpu.")]
MEM_PER_CPU = Annotated[Text, _resource(help="Memory per core.")]
MEM_PER_GPU = Annotated[Text, _resource(help="Memory per GPU.")]
GPUS = Annotated[
    Text,
    _resource("--gpus", "-G", metavar="[TYPE:]N", help="Number of GPUs; by default 1, or 0 with the numpy backend."),
]
GPUS_PER_NODE = Annotated[Text, _resource(metavar="[TYPE:]N", help="Number of GPUs per node, instead of --gpus.")]
GRES = Annotated[Text, _resource(metavar="LIST", help="Generic resources, instead of or in addition to --gpus.")]
STAGE = Annotated[
    bool | None,
    typer.Option(
        "--stage/--no-stage",
        rich_help_panel=START_GROUP,
        help="First copy the dataset to the local disk of the machine that runs the training.",
    ),
]
