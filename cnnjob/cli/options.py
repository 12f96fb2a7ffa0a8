"""Arguments and options that are shared by several commands."""

from pathlib import Path
from typing import Annotated

import typer

from cnnjob.cli import completion

Text = str | None
Number = int | None
Words = list[str] | None

JOB = Annotated[str, typer.Argument(metavar="JOB", autocompletion=completion.jobs, help="Job name or job file.")]
RUN_PATHS = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="RUNS",
        autocompletion=completion.runs,
        help="Run folders, or folders of runs; runs/ by default.",
        readable=False,  # the command's own message about an unreadable folder also explains what to do
    ),
]

OVERRIDES = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        autocompletion=completion.settings,
        help="Override a job file key, such as train.epochs=3; repeatable.",
    ),
]
DATA = Annotated[Path, typer.Option(help="Folder of the prepared datasets.")]
RUNS = Annotated[Path, typer.Option(help="Folder of the runs.")]
JSON = Annotated[bool, typer.Option("--json", help="Print the output as JSON, in more detail.")]

# SLURM options, named as in sbatch
PROFILE = Annotated[
    Text, typer.Option(autocompletion=completion.profile_names, help="Cluster profile: a name in slurm/, or a file.")
]
PARTITION = Annotated[Text, typer.Option("--partition", "-p", help="Partition, as for sbatch.")]
ACCOUNT = Annotated[Text, typer.Option("--account", "-A", help="Account to charge.")]
QOS = Annotated[Text, typer.Option("--qos", "-q", help="Quality of service.")]
TIME = Annotated[Text, typer.Option("--time", "-t", help="Time limit: as for sbatch, or 90m, 2h, 1d12h.")]
CPUS_PER_TASK = Annotated[Number, typer.Option("--cpus-per-task", "-c", min=1, help="Number of cores; all are used.")]
MEM = Annotated[Text, typer.Option(help="Memory per node, such as 16G; use at most one --mem option.")]
MEM_PER_CPU = Annotated[Text, typer.Option(help="Memory per core.")]
MEM_PER_GPU = Annotated[Text, typer.Option(help="Memory per GPU.")]
GPUS = Annotated[Text, typer.Option("--gpus", "-G", help="GPUs, as N or TYPE:N; 1 by default, 0 with numpy.")]
GPUS_PER_NODE = Annotated[Text, typer.Option(help="GPUs per node, instead of --gpus.")]
GRES = Annotated[Text, typer.Option(help="Generic resources, instead of or in addition to --gpus.")]
CONSTRAINT = Annotated[Text, typer.Option("--constraint", "-C", help="Required features of the node.")]
NODELIST = Annotated[Text, typer.Option("--nodelist", "-w", help="Nodes to use.")]
EXCLUDE = Annotated[Text, typer.Option("--exclude", "-x", help="Nodes not to use.")]
DEPENDENCY = Annotated[
    Text, typer.Option("--dependency", "-d", help="SLURM jobs to wait for, in the form that sbatch accepts.")
]
JOB_NAME = Annotated[Text, typer.Option("--job-name", "-J", help="SLURM job name; the run's name by default.")]
# In REQUEUE and STAGE, None leaves the choice to the profile.
REQUEUE = Annotated[bool | None, typer.Option("--requeue/--no-requeue", help="Allow SLURM to requeue the job.")]
STAGE = Annotated[
    bool | None, typer.Option("--stage/--no-stage", help="Copy the dataset to the node's local disk first.")
]
SBATCH = Annotated[Words, typer.Option(metavar="KEY[=VALUE]", help="Any other sbatch option; repeatable.")]
