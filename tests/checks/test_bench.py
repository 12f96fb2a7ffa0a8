"""``cnnjob bench``: the table, the file, the ratios."""

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from cnnjob.checks.benchmarks.gpu import gpu_products
from cnnjob.checks.benchmarks.rivals import build_torch_training_step
from cnnjob.checks.benchmarks.workloads import find_workload
from cnnjob.cli.main import app
from tests.cuda.emulation import Array, EmulatedDevice, needs_compiler


def cnnjob(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def test_figures_agree_with_one_another() -> None:
    found = cnnjob("bench", "mnist-baseline", "--rounds", "1", "--json")
    assert found.exit_code == 0, found.output
    engines = ["cnnjob numpy", "course float64", "floor: products", "floor: bytes"]
    rows = {row["engine"]: row for row in json.loads(found.stdout)}
    assert {*engines} <= {*rows} <= {*engines, "torch NCHW", "torch NHWC"}
    ours, course = rows["cnnjob numpy"], rows["course float64"]
    assert ours["speed_against_course"] == pytest.approx(course["median_ms"] / ours["median_ms"])
    assert ours["epoch_seconds"] == pytest.approx(0.937 * ours["median_ms"])
    assert ours["images_per_second"] == pytest.approx(64_000 / ours["median_ms"])


def test_one_block_without_torch() -> None:
    alone = cnnjob("bench", "conv-64-128", "--rounds", "1", "--against", "none")
    assert alone.exit_code == 0, alone.output
    assert "torch NCHW" not in alone.stdout
    for engine in ("cnnjob numpy", "course float64", "floor: products", "floor: bytes"):
        assert re.search(rf"^conv-64-128 +{engine} +[\d.]+ +", alone.stdout, re.MULTILINE)


def test_reading_is_measured_and_its_files_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = cnnjob("bench", "data", "--gigabytes", "0.001", "--rounds", "1", "--json")
    assert found.exit_code == 0, found.output
    rows = json.loads(found.stdout)
    assert [row["image_shape"] for row in rows] == [[32, 32, 3]] * 5 + [[224, 224, 3]] * 5
    for row in rows:
        size = math.prod(row["image_shape"])
        assert row["megabytes_per_second"] == pytest.approx(row["images_per_second"] * size / 1e6)
    assert list(tmp_path.iterdir()) == []
    table = cnnjob("bench", "data", "--gigabytes", "0.001", "--rounds", "1")
    assert re.search(r"^32×32×3 +random batches of 128, page cache +[\d,]+ +[\d,]+$", table.stdout, re.MULTILINE)


def test_a_gpu_has_the_batches_of_its_jobs() -> None:
    for name, batch_size, steps in (("cifar10-fast", 1024, 48), ("cifar10-resnet", 512, 95)):
        work = find_workload(name, on_gpu=True)
        assert (work.batch_size, work.steps) == (batch_size, steps)
        assert find_workload(name).batch_size == 64
    assert find_workload("cifar10", on_gpu=True).batch_size == find_workload("cifar10").batch_size == 128


class Multiplied(EmulatedDevice):
    """A device that notes the factors of each product."""

    def __init__(self, precision: str) -> None:
        super().__init__(precision=precision)
        self.factors: list[tuple[Array, Array]] = []

    def gemm(self, a: Array, b: Array, out: Array, **settings: Any) -> None:
        self.factors.append((a.copy(), b.copy()))
        super().gemm(a, b, out, **settings)
        assert np.isfinite(out).all()


@needs_compiler
@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize(("name", "layers", "frozen"), [("cifar10-fast", 8, 1), ("cifar10-resnet", 9, 0)])
def test_products_on_a_gpu_are_those_of_the_network_with_random_factors(
    name: str, layers: int, frozen: int, precision: str
) -> None:
    device, work = Multiplied(precision), dataclasses.replace(find_workload(name), batch_size=2)
    products = list(gpu_products(device, work))
    assert len(products) == 3 * layers - 1 - frozen  # no gradient of the images
    for _ in range(2):
        for product in products:
            product()
    first, again = device.factors[: len(products)], device.factors[len(products) :]
    for factors, others in zip(first, again, strict=True):
        of_classifier = any(10 in factor.shape for factor in factors)
        for factor, other in zip(factors, others, strict=True):
            np.testing.assert_array_equal(factor, other)
            assert factor.dtype == ("float32" if of_classifier else precision)
            assert (factor != 0).mean() > 0.99
            assert factor.astype(np.float64).std() == pytest.approx(1, abs=0.4)


def test_torch_takes_float16_for_the_same_operations() -> None:
    torch = pytest.importorskip("torch")
    work = dataclasses.replace(find_workload("cifar10-baseline"), batch_size=4)
    outputs: list[tuple[str, Any]] = []

    def note(module: Any, _: Any, output: Any) -> None:
        outputs.append((type(module).__name__, output.dtype))

    handle = torch.nn.modules.module.register_module_forward_hook(note)
    try:
        for float16 in (False, True):
            build_torch_training_step(torch, work, torch.contiguous_format, float16=float16)()
    finally:
        handle.remove()
    assert {kind for name, kind in outputs[: len(outputs) // 2]} == {torch.float32}
    assert ("Conv2d", torch.float16) in outputs


def test_a_mistake_is_one_message() -> None:
    found = cnnjob("bench", "nothing")
    assert (found.exit_code, found.stdout) == (2, "")
    assert "nothing: unknown workload. Choose from mnist-baseline, " in found.stderr
