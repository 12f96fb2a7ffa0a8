"""Faults that are planted in the kernels: what stands there, what is put in its place, and which of its places."""

from pathlib import Path
from typing import NamedTuple


class Fault(NamedTuple):
    """One change of the source."""

    old: str
    new: str
    place: int = 0
    file: str = "kernels.cu"

    def __str__(self) -> str:
        return f"{self.file}: {self.old} {self.place} -> {self.new or 'nothing'}"

    def plant(self, folder: Path) -> None:
        """Put it into a copy of the files."""
        path = folder / self.file
        parts = path.read_text().split(self.old)
        assert len(parts) > self.place + 1, self.old
        path.write_text(self.old.join(parts[: self.place + 1]) + self.new + self.old.join(parts[self.place + 1 :]))


FAULTS = [
    # barriers
    Fault("__syncthreads();", "", 0),
    Fault("__syncthreads();", "", 1),
    # which values a thread takes
    Fault("n += gridDim.y", "n += gridDim.y + 1"),
    Fault("i < (size); i += gridDim.x * blockDim.x", "i < (size); i += gridDim.x * blockDim.x + 1"),
    Fault("i < (size);", "i < (size) - 1;"),
    Fault("(wide)(i / length) * row", "(wide)(i / length) * length"),
    # the batch
    Fault("order + position[0] * images", "order + position[0]"),
    Fault("shift[i % channels]", "shift[0]"),
    Fault("scale[i % channels]", "scale[0]"),
    Fault("position[threadIdx.x] += 1", "position[0] += 1"),
    # patches
    Fault("output / width * S + k", "output / width + k"),
    Fault("output % width * S + m", "output % width * S + k"),
    Fault("x0 * C + c]", "x0 * C]"),
    Fault("int i = y + pad - k;", "int i = y + pad - k - 1;"),
    Fault("if (i < 0 || i % S ||", "if (i < 0 ||"),
    Fault("if (j < 0 || j % S ||", "if (j < 0 ||"),
    Fault("i / S >= height", "i / S > height"),
    Fault("j / S >= width", "j / S > width"),
    Fault("if (j < 0 ||", "if ("),
    Fault("(k * K + m) * C]", "(m * K + k) * C]"),
    # pooling
    Fault("(wide)i * P * W * P + j * P", "(wide)i * W * P + j * P"),
    Fault("(p / P) * W * P + p % P", "(p % P) * W * P + p / P"),
    Fault("value > best ||", "value >= best ||"),
    Fault(" || value != value", ""),
    Fault("p < P * P; p++) {", "p < P * P - 1; p++) {"),
    Fault("best + bias[e % F]", "best + bias[e / F % F]"),
    Fault("y[place(n, e, W * F, image, row)] = relu && out <= 0 ? 0 : out", "y[place(n, e, W * F, image, row)] = out"),
    Fault("= p == first ? share : 0;", "= p == first ? share : values[within(p, P, W, F)];"),
    Fault("pool(z, bias, y, image, row, winner", "pool(z, bias, y, image, row, (unsigned char *)winner", 1),
    # bias, activation, sums
    Fault("y[(wide)n * size + u] = relu && out <= 0 ? 0 : out", "y[(wide)n * size + u] = out"),
    Fault("relu && y[at] <= 0", "relu && y[at] < 0"),
    Fault("relu && y[at] <= 0", "y[at] <= 0"),
    Fault("lane = 1; lane < LANES", "lane = 2; lane < LANES"),
    Fault("lane = 1; lane < LANES", "lane = 1; lane < LANES - 1"),
    Fault("r < last; r += LANES", "r < last - 1; r += LANES"),
    Fault("first + part < rows ? first + part : rows", "first + part"),
    Fault("if (threadIdx.y == 0 && column < columns)", "if (threadIdx.y == 0)"),
    # dropout
    Fault("round < 10", "round < 9"),
    Fault("seed += 0x9E3779B9u", "seed += 0x9E3779B8u"),
    Fault("(unsigned)(step >> 32)", "0"),
    Fault("(bits >> 8)", "(bits >> 9)"),
    Fault("element % 4", "element / 4 % 4"),
    Fault("uniform((wide)n * size + i", "uniform(i"),
    Fault("position[1]", "position[0]"),
    Fault("y[place(n, i, length, y_image, y_row)]", "y[place(n, i, length, x_image, x_row)]"),
    Fault("x[place(n, i, length, x_image, x_row)]", "x[place(n, i, length, y_image, y_row)]"),
    # the loss
    Fault("other = 16", "other = 8", 0),
    Fault("other = 16", "other = 8", 1),
    Fault("other = 16", "other = 8", 2),
    Fault("if (n >= images) return;", "", 0),
    Fault("if (n >= images) return;", "", 1),
    Fault("expf(z[k] - largest);", "expf(z[k]);"),
    Fault("(k == label)) / images", "(k == label))"),
    Fault(" && k < guess", ""),
    Fault("theirs < v ? theirs : v", "theirs > v ? theirs : v"),
    Fault("half = TALLIED / 2", "half = TALLIED / 4"),
    Fault("loss[0] / images", "loss[0]"),
    Fault("n += TALLIED", "n += TALLIED + 1"),
    # the update
]

UPDATES = [
    Fault("__syncthreads();", ""),
    Fault("rates[position[0]]", "rates[0]", 0),
    Fault("rates[position[0]]", "rates[0]", 1),
    Fault("* factors[piece]", "", 0),
    Fault("* factors[piece]", "", 1),
    Fault("decay = decays[piece]", "decay = decays[0]", 0),
    Fault("decay = decays[piece]", "decay = decays[0]", 1),
    Fault("i < counts[piece]; i += blockDim.x", "i < counts[piece]; i += blockDim.x + 1", 0),
    Fault("i < counts[piece]; i += blockDim.x", "i < counts[piece]; i += blockDim.x + 1", 1),
    Fault("i < counts[piece]", "i < counts[piece] - 1", 0),
    Fault("i < counts[piece]", "i < counts[piece] - 1", 1),
    Fault("starts[piece] + i", "starts[0] + i", 0),
    Fault("starts[piece] + i", "starts[0] + i", 1),
    Fault("velocity[at] = change =", "change ="),
    Fault("momentum * change + g", "momentum * change"),
    Fault("if (decoupled)", "if (!decoupled)"),
    Fault("if (nesterov)", "if (!nesterov)"),
    Fault("position[1] + 1", "position[1]"),
    Fault("corrections[0] * m", "m"),
    Fault("sqrtf(v) * corrections[1]", "sqrtf(v)"),
    Fault("take2 * (g * g)", "take2 * g"),
    Fault(" + eps", ""),
    Fault("if (share < 0) return;", ""),
    Fault("shares[position[0]]", "shares[0]"),
    Fault("fast[i] = slow[i] +=", "slow[i] +="),
    Fault("(1 - share)", "share"),
    Fault("i < size; i += gridDim.x * blockDim.x", "i < size; i += gridDim.x * blockDim.x + 1"),
]
FAULTS += [fault._replace(file="updates.cu") for fault in UPDATES]
