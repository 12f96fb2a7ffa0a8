"""Estimates of a training's time."""

from pathlib import Path

from cnnjob.slurm.submit.estimate import estimate_training_seconds
from tests.helpers.toy_jobs import dataset, job, trained


def test_initial_weights_change_no_estimate(tmp_path: Path) -> None:
    """Not those inside of a residual block either; more filters do."""

    def blocks(filters: int, init: str) -> list[dict[str, object]]:
        return [{"conv": 4}, {"residual": [{"conv": filters, "init": init}, {"conv": 4, "activation": "none"}]}]

    trained(tmp_path, train__epochs=1, model__blocks=blocks(4, "he"))
    data_digest = dataset(tmp_path).digest
    counts = [
        sum(map(len, estimate_training_seconds(job(model__blocks=one), data_digest, tmp_path / "runs").values()))
        for one in (blocks(4, "he"), blocks(4, "dirac"), blocks(5, "he"))
    ]
    assert counts == [1, 1, 0]
