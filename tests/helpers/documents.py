"""The commands of the documents, and what a reader puts in the place of their words in capitals."""

import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cnnjob.api import prepare
from tests.helpers import image_sources as sources

ROOT = Path(__file__).parents[2]
DOCUMENTS = (
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "slurm/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
)
PROGRAMS = (
    r"(?:cnnjob|pytest|\.ci/run)(?: |$)|"
    r"(?:apptainer|apt|chromium|conda|pip|pre-commit|python3?|slurm/(?:cluster|root)|sphinx-build|taskset|uv) "
)


def commands() -> Iterator[str]:
    """Every command of a block or between backticks, in one line."""
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
        found = re.findall(r"^ {4}([^\n]+)$", text, re.MULTILINE) + re.findall(r"`([^`]+)`", text)
        lines = (" ".join(line.partition(" # ")[0].split()) for line in found)
        yield from (line for line in lines if re.match(PROGRAMS, line))


def job_of_the_readme() -> str:
    """The job that the README shows."""
    [block] = re.findall(r"^ {4}dataset = .*\n(?: {4}.*\n)+", (ROOT / "README.md").read_text(), re.MULTILINE)
    return textwrap.dedent(block)


@dataclass(frozen=True)
class Reader:
    """Someone with a folder of small sources in the originals' formats, who types commands there."""

    folder: Path

    @classmethod
    def in_folder(cls, folder: Path) -> "Reader":
        """Write the sources."""
        images = [sources.idx(sources.random_bytes((n, 28, 28), n)) for n in (300, 40)]
        labels = [sources.idx(np.arange(n, dtype=np.uint8) % 10) for n in (300, 40)]
        sources.write_mnist(
            folder / "downloads" / "mnist",
            train_images=images[0],
            train_labels=labels[0],
            t10k_images=images[1],
            t10k_labels=labels[1],
        )
        members = {name: sources.cifar_batch(seed, n=40) for seed, name in enumerate(sources.CIFAR10_BATCHES)}
        sources.write_tar(folder / "cifar10.tar.xz", members, "w:xz")
        for place in ("train/cats", "train/dogs", "test/cats", "test/dogs"):
            sources.write_images(folder / "pets" / place, 4)
        (folder / "jobs").mkdir()
        (folder / "jobs" / "mine.toml").write_text(job_of_the_readme())
        return cls(folder)

    @property
    def mnist(self) -> Path:
        """The folder of MNIST's files."""
        return self.folder / "downloads" / "mnist"

    @property
    def cifar(self) -> Path:
        """CIFAR-10's archive."""
        return self.folder / "cifar10.tar.xz"

    def pack(self) -> None:
        """Prepare all datasets."""
        prepare("mnist", self.folder / "data" / "mnist.h5", source=self.mnist, sha256=sources.pin(self.mnist))
        prepare("cifar10", self.folder / "data" / "cifar10.h5", source=self.cifar, sha256=sources.sha256(self.cifar))
        prepare("digits", self.folder / "data" / "digits.h5")

    def words(self, command: str, more: str, run: str = "digits") -> list[str]:
        """The arguments of a command of cnnjob with more of them after it; RUN is this job's, without taskset."""
        line = f"{command} {more}".partition("cnnjob ")[2]
        return [self._meant(word, "mnist" if "--source" in line else "digits", run) for word in shlex.split(line)]

    def _meant(self, word: str, name: str, run: str) -> str:
        runs = sorted((self.folder / "runs").glob(f"{run}-*"))
        return {
            "RUN": str(runs[0]) if runs else word,
            "RUNS": "runs/",
            "JOB": "digits",
            "DATASET": "digits",
            "NAME": name,
            "IMAGE": str(next((self.folder / "pets" / "test" / "cats").iterdir())),
            "FOLDER": str(self.mnist) if name == "mnist" else "pets",
            "MNIST_SUM": sources.pin(self.mnist),
            "FILE.tar.xz": self.cifar.name,
            "test:1014": "test:14",  # of fewer test images
            "SUM": sources.sha256(self.cifar),
        }.get(word, str(Path(word).expanduser()) if word.startswith("~") else word)


CPU = "--set resources.backend=numpy --cpus-per-task 1 --mem 1G"
ON_SLURM = {
    "cnnjob doctor --write-profile NAME": "",
    "cnnjob doctor --write-profile mysite": "",
    "cnnjob prepare cifar10": "--source FILE.tar.xz --sha256 SUM",
    "cnnjob submit --partition gpu": f"{CPU} --set train.epochs=1 --wait",
    "cnnjob prepare NAME --source FOLDER": "--sha256 MNIST_SUM",
    "cnnjob prepare NAME": "",
    "cnnjob submit mnist -p gpu -t 2h --sweep train.learning_rate=0.01,0.05 --seeds 3 --parallel 4": (
        f"{CPU} --set train.epochs=1 --set train.batch_size=32"
    ),
    "cnnjob submit mnist --profile mysite -p gpu -t 2h --sweep train.learning_rate=0.01,0.05 --seeds 3": (
        f"{CPU} --set train.epochs=1 --set train.batch_size=32"
    ),
    "cnnjob status": "",
    "cnnjob logs RUN -f": "",
    "cnnjob submit JOB": f"{CPU} --set train.epochs=100000",
    "cnnjob cancel RUN": "",
    "cnnjob status RUN": "",
    "cnnjob report runs/": "",
    "cnnjob verify-resume JOB --partition gpu": f"{CPU} --steps 400 --kills 1",
}
"""What is typed, in this order (the first job is of the one prepared dataset), and what is appended for it to need
seconds, no network and no GPU."""
