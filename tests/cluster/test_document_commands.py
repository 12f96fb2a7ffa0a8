"""The commands of the README's part on clusters, on a real SLURM, one after the other as a reader types them."""

import pytest

from tests.cluster.conftest import Start
from tests.cluster.places import SMALL
from tests.helpers.documents import Reader

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


@pytest.mark.slurm
def test_a_reader_types_them_all(cluster: Start, user_python: object) -> None:
    lab = cluster(*SMALL)
    folder = lab.home / "reader"
    lab.run("mkdir", folder)
    reader = Reader.in_folder(folder)
    for command, more in ON_SLURM.items():
        run = "mnist" if "logs" in command else "digits"
        found = lab.run(user_python, "-m", "cnnjob", *reader.words(command, more, run), cwd=folder, timeout=120)
        assert "Traceback" not in found.stderr
