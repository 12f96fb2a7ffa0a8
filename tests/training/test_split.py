"""Which training images are held out: a share of each class, the same for every seed."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnjob.data.dataset import Dataset
from cnnjob.data.prepare.writer import Chunk, DatasetContents, write
from cnnjob.errors import JobError
from cnnjob.training.split import count_validation_images, split_training_images
from tests.helpers.toy_jobs import dataset, job, run_of


def test_a_share_of_each_class_is_held_out_the_same_for_every_seed(tmp_path: Path) -> None:
    packed = dataset(tmp_path)
    labels = packed.labels("train")
    for fraction in (0.0, 1e-6, 0.01, 0.1, 0.25, 1 / 3, 0.5, 0.9999):
        training, held_out = split_training_images(job(data__validation_fraction=fraction), packed)
        assert sorted([*training, *held_out]) == list(range(216))
        counts = np.bincount(labels[held_out], minlength=3)
        assert counts.max() - counts.min() <= 1
        assert counts.sum() == min(max(round(216 * fraction), 3 * bool(fraction)), 213)
        again = split_training_images(job(data__validation_fraction=fraction, seed=7), packed)
        assert [list(one) for one in again] == [list(training), list(held_out)]
    smaller, larger = (set(split_training_images(job(data__validation_fraction=f), packed)[1]) for f in (0.1, 0.25))
    assert smaller < larger


@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=12),
    st.one_of(st.floats(0, 1, exclude_max=True), st.sampled_from([0.0, 0.1, 0.02, 0.3, 0.25])),
)
def test_shares_of_classes(counts: list[int], fraction: float) -> None:
    shares = count_validation_images(np.array(counts), fraction)
    wanted = [Fraction(str(fraction)) * count for count in counts]
    for share, want, count in zip(shares, wanted, counts, strict=True):
        assert share <= max(0, count - 1)
        assert share >= (1 if fraction and count > 1 else 0)
        if count > 1 and 1 <= want <= count - 1:
            assert abs(share - want) < 1
    if (
        fraction
        and min(counts) > 1
        and min(wanted) >= 1
        and all(w <= c - 1 for w, c in zip(wanted, counts, strict=True))
    ):
        assert shares.sum() == round(sum(wanted))
        rest = [want - int(want) for want in wanted]
        more = [left for left, share, want in zip(rest, shares, wanted, strict=True) if share > want]
        fewer = [left for left, share, want in zip(rest, shares, wanted, strict=True) if share <= int(want)]
        assert not more or not fewer or min(more) >= max(fewer)


def test_a_dataset_of_one_class_is_refused(tmp_path: Path) -> None:
    images = np.zeros((20, 6, 6, 1), np.uint8)
    labels = np.zeros(20, np.int64)
    blots = (Chunk("one", split, 0, images, labels, len(labels)) for split in ("train", "test"))
    write(tmp_path / "one.h5", "one", DatasetContents(("alone",), {"one": "0" * 64}, blots), {})
    with pytest.raises(JobError, match=r"one\.h5: training needs two or more classes \(found one, 'alone'\)\. Prep"):
        run_of(job(), Dataset.open(tmp_path / "one.h5"), tmp_path / "runs")
