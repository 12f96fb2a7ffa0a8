"""The commands of the README's part on clusters, on a real SLURM, one after the other as a reader types them."""

import pytest

from tests.cluster.conftest import Start
from tests.cluster.places import SMALL
from tests.helpers.documents import ON_SLURM, Reader


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
