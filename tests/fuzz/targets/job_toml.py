"""Job files, and assignments of `--set` and `--sweep`: the first letter says which."""

import os
import tomllib
from pathlib import Path

from cnnjob.errors import JobError
from cnnjob.jobs.job import Job
from cnnjob.jobs.sweep import expand, job_differences
from cnnjob.jobs.toml import format_toml
from tests.fuzz.targets import Target

_FILES = (
    'dataset="a"\nmodel.blocks=[{conv=3}]\ntrain={epochs=2,batch_size=8,learning_rate=0.1}\n',
    """dataset = "a"
seed = 3
[data]
augment = { flip = "random", translate = 2 }
validation_fraction = 0.1
[model]
blocks = [
  { conv = 4, kernel = 2, pad = 0, init = "whitening", frozen = true, activation = "gelu" },
  { conv = 6, pool = 2, batch_norm = { momentum = 0.4, eps = 1e-12 }, order = ["pool", "norm", "activation"] },
  { residual = [{ conv = 6, batch_norm = true }, { dropout = 0.1 }, { conv = 6, activation = "none" }] },
  { global_pool = "max" },
  { dense = 8, init = 0.01, bias_init = 0.5, learning_rate_factor = 2 },
]
classifier = { bias = false, output_scale = 0.1 }
[train]
epochs = 9
batch_size = 8
learning_rate = 0.1
schedule = { triangular = { warmup = 0.2, start_factor = 0.1, end_factor = 0.01 } }
optimiser = { adamw = { beta2 = 0.99 } }
lookahead = { every = 3 }
early_stopping = { patience = 2 }
[resources]
backend = "numpy"
""",
    """dataset = "a"
data.augment = { crop = 2, cutout = 3, mixup = 0.2 }
model.blocks = [{ conv = 4, activation = "silu", bias_epochs = 3 }, { residual = [{ conv = 4 }] }]
[train]
epochs = 9
batch_size = 8
learning_rate = 0.1
schedule = { step = { milestones = [2, 5], gamma = 0.2, warmup = 0.1 } }
""",
    'dataset="a"\nmodel={}\n[train]\nepochs=2\nbatch_size=8\nlearning_rate=0.1\nwarmup=0.1\nmomentum=0.5\nbeta2=0.9\n',
)
_SETS = (
    "train.epochs = 3", "train.schedule=cosine", "train.schedule.cosine.warmup=0.1", "'train'.\"epochs\"=3",
    "model.blocks.0={dense=4,init='he'}", "model.blocks.1.conv=7", "train.early_stopping=false", "name='a\\nb'",
    'dataset="""a\nb"""', "train.lookahead.every=[1,\n2]", "seed=0x10 # sixteen", "data.augment={flip='random'}",
)  # fmt: skip
_SWEEPS = (
    "seed=1,2,3", "train.optimiser=sgd,adamw", "model.blocks=[{dense=4},{dropout=0.5}],[{dense=8}]",
    "train.optimiser={sgd={momentum=0.5}},{adamw={beta2=0.9}}", "train.early_stopping={patience=1},false",
    "train.schedule='cosine',\"constant\"", "train.schedule=step,one_cycle,{step={milestones=[0.1,0.2]}}",
)  # fmt: skip


def _seeds() -> list[bytes]:
    texts = [*(f"f{text}" for text in _FILES), *(f"s{text}" for text in _SETS), *(f"w{text}" for text in _SWEEPS)]
    return [text.encode() for text in texts]


def _read(content: bytes, folder: Path) -> None:
    """Read one; a job that is read is the same when it is written down and read again."""
    kind, text = content[:1], os.fsdecode(content[1:])
    if kind == b"f":
        (folder / "any.toml").write_bytes(content[1:])
        found = [Job.load(str(folder / "any.toml"))]
    elif kind == b"s":
        found = [Job.load("digits", [text])]
    else:
        found = expand("digits", [], [text])
        assert len(job_differences(found)) == len(found)
    for job in found:
        assert Job.checked(job.model_dump(mode="json"), "again") == job
        assert Job.checked(tomllib.loads(format_toml(job.model_dump(mode="json", exclude_none=True))), "printed") == job


TARGET = Target(_seeds, _read, (JobError,), text=True)
