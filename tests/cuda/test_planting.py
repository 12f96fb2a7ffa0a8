"""The known faults can be planted: what each replaces is still in the kernels."""

from cnnjob.nn.cuda.device import kernel_source
from tests.cuda.more_faults import ALL_FAULTS


def test_every_fault_has_its_place() -> None:
    source = kernel_source()
    for fault in ALL_FAULTS:
        assert fault.planted(source) != source
