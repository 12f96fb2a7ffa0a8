"""The command in this process, and the job file of the toy dataset."""

from typer.testing import CliRunner, Result

from cnnjob.cli.main import app

JOB = """
dataset = "toy"
[data]
validation_fraction = 0.25
[model]
blocks = [{ conv = 4, kernel = 3, pool = 2 }, { dense = 8 }]
[train]
epochs = 2
batch_size = 8
learning_rate = 0.05
"""


def cnnjob(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


HEAVY = ("cupy", "matplotlib", "submitit", "sklearn", "scipy", "pandas", "pydantic", "h5py", "pooch", "numpy")
