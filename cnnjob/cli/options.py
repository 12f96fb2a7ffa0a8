"""Arguments and options that are shared by several commands."""

from pathlib import Path
from typing import Annotated

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

OVERRIDES = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        autocompletion=completion.settings,
        help="Override a job file key, such as train.epochs=3; can be repeated.",
    ),
]
DATA = Annotated[Path, typer.Option(help="Folder that contains the prepared datasets.")]
RUNS = Annotated[Path, typer.Option(help="Folder that contains the runs.")]
JSON = Annotated[bool, typer.Option("--json", help="Print more detailed output, as JSON.")]

# SLURM options, named as in sbatch
PROFILE = Annotated[
    Text, typer.Option(autocompletion=completion.profile_names, help="Cluster profile: a name in slurm/, or a file.")
]
PARTITION = Annotated[Text, typer.Option("--partition", "-p", help="SLURM partition.")]
ACCOUNT = Annotated[Text, typer.Option("--account", "-A", help="SLURM account to charge.")]
QOS = Annotated[Text, typer.Option("--qos", "-q", help="Quality of service.")]
TIME = Annotated[Text, typer.Option("--time", "-t", help="Time limit, in sbatch's format or as 90m, 2h or 1d12h.")]
CPUS_PER_TASK = Annotated[
    Number, typer.Option("--cpus-per-task", "-c", min=1, help="Number of CPU cores; all of them are used.")
]
MEM = Annotated[Text, typer.Option(help="Memory per node, such as 16G; excludes --mem-per-cpu and --mem-per-gpu.")]
MEM_PER_CPU = Annotated[Text, typer.Option(help="Memory per core.")]
MEM_PER_GPU = Annotated[Text, typer.Option(help="Memory per GPU.")]
GPUS = Annotated[
    Text,
    typer.Option("--gpus", "-G", help="Number of GPUs, as N or TYPE:N; by default 1, or 0 with the numpy backend."),
]
GPUS_PER_NODE = Annotated[Text, typer.Option(help="Number of GPUs per node, instead of --gpus.")]
GRES = Annotated[Text, typer.Option(help="Generic resources, instead of or in addition to --gpus.")]
CONSTRAINT = Annotated[Text, typer.Option("--constraint", "-C", help="Features that the node must have.")]
NODELIST = Annotated[Text, typer.Option("--nodelist", "-w", help="Nodes to use.")]
EXCLUDE = Annotated[Text, typer.Option("--exclude", "-x", help="Nodes to exclude.")]
DEPENDENCY = Annotated[Text, typer.Option("--dependency", "-d", help="SLURM jobs to wait for, in sbatch's format.")]
JOB_NAME = Annotated[Text, typer.Option("--job-name", "-J", help="SLURM job name; the run's name by default.")]
# In REQUEUE and STAGE, None leaves the choice to the profile.
REQUEUE = Annotated[bool | None, typer.Option("--requeue/--no-requeue", help="Allow SLURM to requeue the job.")]
STAGE = Annotated[
    bool | None, typer.Option("--stage/--no-stage", help="Copy the dataset to the node's local disk first.")
]
SBATCH = Annotated[Words, typer.Option(metavar="KEY[=VALUE]", help="Any other sbatch option; can be repeated.")]
