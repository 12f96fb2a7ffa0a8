"""Faults that are planted in the kernels: what stands there, what is put in its place, and which of its places."""

import re
from typing import NamedTuple

from cnnjob.nn.cuda.device import FIRST_SOURCE, KERNELS_FOLDER

_COMMENT = re.compile("//.*")


class Fault(NamedTuple):
    """One change of the source."""

    old: str
    new: str
    place: int = 0
    file: str = ""
    """From whose beginning on the places are counted."""
    tests: str = ""
    """Those that are to catch it, as pytest's ``-k``."""

    def planted(self, source: str) -> str:
        """The source with the fault."""
        start = source.index((KERNELS_FOLDER / self.file).read_text()) if self.file else 0
        parts = source[start:].split(self.old)
        assert len(parts) > self.place + 1, self.old
        before, after = parts[: self.place + 1], parts[self.place + 1 :]
        planted = source[:start] + self.old.join(before) + self.new + self.old.join(after)
        assert _COMMENT.sub("", planted) != _COMMENT.sub("", source), f"{self.old}: this place is in a comment"
        return planted


TILED_BARRIERS = "test_tiled_kernels and (reversed or sums_of_shares)"
BARRIERS = [
    Fault(
        "__syncthreads();",
        "",
        place,
        str(file.relative_to(KERNELS_FOLDER)),
        TILED_BARRIERS if tiled else "",
    )
    for file in sorted(KERNELS_FOLDER.rglob("*.cu"), key=lambda file: (file.name != FIRST_SOURCE, file.name))
    for tiled in [file.parent != KERNELS_FOLDER]
    for place in range(file.read_text().count("__syncthreads();"))
]

FAULTS = [
    *BARRIERS,
    # the last block of a grid
    Fault("atomicInc(ticket, blocks - 1) == blocks - 1", "atomicInc(ticket, blocks) == blocks - 1"),
    Fault("atomicInc(ticket, blocks - 1) == blocks - 1", "atomicInc(ticket, blocks - 1) == 0"),
    Fault("position[threadIdx.x] += 1", "position[0] += 1"),
    Fault("if (threadIdx.x < 2 && threadIdx.y == 0)", "if (threadIdx.x < 2)"),
    Fault("half = MOST_THREADS / 2", "half = MOST_THREADS / 4"),
    Fault("position[1] >= first", "position[1] > first"),
    Fault("values[i] = 0;", "values[0] = 0;"),
    # which values a thread takes
    Fault("n += gridDim.y", "n += gridDim.y + 1"),
    Fault("step_within(gridDim.x * blockDim.x", "step_within(gridDim.x * blockDim.x + 1"),
    Fault("i < (size);", "i < (size) - 1;"),
    Fault("step < left ? step : left", "step"),
    Fault("(wide)(i / length) * row", "(wide)(i / length) * length"),
    # the batch
    Fault("order + position[0] * images", "order + position[0]"),
    Fault("shift[i % channels]", "shift[0]"),
    Fault("scale[i % channels]", "scale[0]"),
    # patches
    Fault("if (k >= K) continue;", ""),
    Fault("output = e / pitch", "output = e / (K * K * C)"),
    Fault("(wide)n * height * width * pitch", "(wide)n * height * width * K * K * C"),
    Fault("(wide)(i / S) * width + j / S) * pitch", "(wide)(i / S) * width + j / S) * K * K * C"),
    Fault("(wide)n * row + i]", "(wide)n * size + i]", 0, "halves.cu"),
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
    *(Fault("lane = 1; lane < LANES", "lane = 2; lane < LANES", place) for place in range(3)),
    *(Fault("lane = 1; lane < LANES", "lane = 1; lane < LANES - 1", place) for place in range(3)),
    Fault("r < last; r += LANES", "r < last - 1; r += LANES"),
    Fault("first + part < rows ? first + part : rows", "first + part"),
    *(Fault("if (threadIdx.y == 0 && column < columns)", "if (threadIdx.y == 0)", place) for place in range(2)),
    Fault("relu && y[at] <= 0 ? 0 : dy[at] * scale;\n    }", "relu && y[at] < 0 ? 0 : dy[at] * scale;\n    }"),
    Fault("relu && y[at] <= 0 ? 0 : dy[at] * scale;\n    }", "y[at] <= 0 ? 0 : dy[at] * scale;\n    }"),
    Fault("relu && y[at] <= 0 ? 0 : dy[at];", "dy[at];"),
    Fault("r < rows; r += LANES) {", "r < rows - 1; r += LANES) {"),
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
    Fault("+ bias[u]) * scale", "+ bias[u])"),
    Fault("dy[at] * scale", "dy[at]"),
    Fault("__fmul_rn(pixel, scale)", "pixel"),
    # the loss
    Fault("total - spread - ", "total - "),
    Fault("sure * target", "target"),
    Fault("share * (k == label) + rest * (k == other)", "share * (k == label)"),
    Fault("sure * missing", "missing"),
    Fault("rest * (largest - z[other])", "rest * (largest - z[label])"),
    Fault("shares[position[0]] < 0.5 ? other : label", "shares[position[0]] > 0.5 ? other : label"),
    Fault("(n + images - 1) % images", "(n + 1) % images"),
    Fault("shares[position[0]] : 1", "shares[0] : 1"),
    Fault("spread * depth", "depth"),
    Fault("spread = smoothing / classes", "spread = smoothing"),
    Fault("z[k];\n  return warp_sum(depth)", "z[k];\n  return depth"),
    Fault("other = 16", "other = 8", 0),
    Fault("other = 16", "other = 8", 1),
    Fault("other = 16", "other = 8", 2),
    Fault("if (n >= images) return;", ""),
    Fault("if (n < images) {", "{"),
    Fault("(position[0] * images + n) * classes", "n * classes"),
    Fault("expf(z[k] - largest);", "expf(z[k]);"),
    Fault("sure * target) / images", "sure * target)"),
    Fault("guess == (mixes", "guess >= (mixes"),
    Fault(" && k < guess", ""),
    Fault("theirs < v ? theirs : v", "theirs > v ? theirs : v"),
    Fault("half = blockDim.x / 2", "half = blockDim.x / 4"),
    Fault("loss[0] / images", "loss[0]"),
    Fault("n += blockDim.x", "n += blockDim.x + 1"),
    # the first block: its band of pixels
    Fault("ROWS = WARPS * P + K - 1", "ROWS = WARPS * P + K - 2"),
    Fault("e / pitch - pad, x", "e / pitch, x"),
    Fault("x = e % pitch - pad", "x = e % pitch"),
    Fault("band * WARPS * P + e", "band * WARPS + e"),
    Fault("y >= 0 && y < H && x >= 0 && x < W;", "y >= 0 && y < H && x >= 0;"),
    Fault("y >= 0 && y < H && x >= 0 && x < W;", "y >= 0 && y < H && x < W;"),
    Fault("y >= 0 && y < H && x >= 0 && x < W;", "y >= 0 && x >= 0 && x < W;"),
    Fault("y >= 0 && y < H && x >= 0 && x < W;", "y < H && x >= 0 && x < W;"),
    Fault("scale[c], shift[c]) : 0", "scale[c], shift[c]) : shift[c]"),
    Fault("* C + c], scale[c]", "* C + c], scale[0]"),
    Fault("scale[c], shift[c]", "scale[c], shift[0]"),
    # forward
    Fault("taps[t / C / K][t / C % K][t % C]", "taps[t / C % K][t / C / K][t % C]"),
    Fault("order[position[0] * images + n] * H", "order[n] * H", 0),
    Fault("if (f >= F || i >= height) return;", "if (f >= F) return;"),
    Fault("if (f >= F || i >= height) return;", "if (i >= height) return;"),
    Fault("m < K - 1; m++) seen[c][r][P + m]", "m < K - 2; m++) seen[c][r][P + m]"),
    Fault("m < K - 1; m++) seen[c][r][m] = ", "m < K - 2; m++) seen[c][r][m] = "),
    Fault("j * P + K - 1;", "j * P + K;"),
    Fault("seen[c][r][side - 1] = pair.values[1]", "seen[c][r][side - 1] = pair.values[0]"),
    Fault("seen[c][p / P + k][p % P + m]", "seen[c][p % P + k][p / P + m]"),
    Fault("z[p] > best ||", "z[p] >= best ||"),
    Fault("z[p] > best || z[p] != z[p]", "z[p] > best"),
    Fault("p < P * P; p++)\n      if", "p < P * P - 1; p++)\n      if"),
    Fault("bool dead = relu && best <= 0;", "bool dead = best <= 0;"),
    Fault("bool dead = relu && best <= 0;", "bool dead = relu && best < 0;"),
    Fault("out[j * F] = dead ? 0 : best", "out[j * F] = best"),
    Fault("dead ? P * P : first", "first"),
    Fault("best += added;", ""),
    Fault("added = bias[f]", "added = bias[0]"),
    # backward
    Fault("item += gridDim.x", "item += gridDim.x + 1"),
    Fault("item < images * bands", "item < images"),
    Fault("order[position[0] * images + n] * H", "order[n] * H", 1),
    Fault("if (f >= F || i >= height) continue;", "if (f >= F) continue;"),
    Fault("bool there = j + s < width;", "bool there = j + s <= width;"),
    Fault("if (code[s] == P * P) continue;", "if (code[s] == P * P - 1) continue;"),
    Fault("code[s] / P) * pitch + (j + s) * P + code[s] % P", "code[s] % P) * pitch + (j + s) * P + code[s] / P"),
    Fault("patch[(t % C * rows + t / C / K)", "patch[(t % C * rows + t / C % K)"),
    Fault("t < taps; t++)", "t < taps - 1; t++)"),
    Fault("total[taps] += slope[s];", "total[taps] += 1;"),
    Fault("if (t <= taps) tile", "if (t < taps) tile"),
    Fault("q += WARPS)", "q += WARPS + 1)"),
    Fault("if (f >= F || start + q > taps) continue;", "if (start + q > taps) continue;"),
    Fault("if (f >= F || start + q > taps) continue;", "if (f >= F) continue;"),
    Fault("warp < WARPS; warp++", "warp < WARPS - 1; warp++"),
    Fault("(taps + 1) + start + q)", "(taps + 1) + q)"),
    # the head
    Fault("v < values; v += HEAD_THREADS) {\n    float value", "v < values - 1; v += HEAD_THREADS) {\n    float value"),
    Fault("if (relu && value <= 0) value = 0;", "if (value <= 0) value = 0;"),
    Fault("if (relu && value <= 0) value = 0;", ""),
    Fault("value += x_bias[v]", "value += x_bias[0]"),
    Fault("x[v] = value;", ""),
    Fault("k += HEAD_THREADS / 32", "k += HEAD_THREADS / 16"),
    Fault("v = lane; v < values; v += 32", "v = lane; v < values; v += 33"),
    Fault("z[k] = sum + bias[k]", "z[k] = sum"),
    Fault("mine = there ? z[lane] : z[0]", "mine = there ? z[lane] : 99"),
    Fault("warp_sum(there ? power : 0)", "warp_sum(power)"),
    Fault("there && mine == largest ? lane", "mine == largest ? 0"),
    Fault("sure * (lane == label)) / images", "sure * (lane == label))"),
    Fault("spread - sure * (lane", "sure * (lane"),
    Fault("there ? largest - mine : 0", "largest - mine"),
    Fault("largest - z[label]", "-z[label]", 1),
    Fault("hits[n] = guess == label", "hits[n] = guess >= label"),
    Fault("  if (learns)\n", ""),
    Fault("hidden && relu && seen[v] <= 0", "relu && seen[v] < 0"),
    Fault("hidden && relu && seen[v] <= 0", "seen[v] <= 0"),
    Fault("sum += dz[k] * weights[v * classes + k]", "sum += dz[k] * weights[k * values + v]"),
    Fault("if (is_last(ticket)) add_up", "if (n == images - 1) add_up"),
    # what is left to be summed
    Fault("rows = groups;", ""),
    Fault("column < taps ? filters + column", "column <= taps ? filters + column"),
    Fault("filter_bias + column - taps", "filter_bias + column"),
    Fault("(column -= parts) < units", "(column -= parts) <= units"),
    Fault("(column -= classes) < products", "(column -= classes) < products - 1"),
    Fault("dz + column % classes", "dz + column / classes"),
    Fault("other_apart = products / classes", "other_apart = classes"),
    Fault("if (threadIdx.y == 0 && out)", "if (threadIdx.y == 1 && out)"),
    Fault("r < rows; r += LANES)\n", "r < rows - 1; r += LANES)\n"),
]

HARMLESS = {
    FAULTS[0]: "the blocks run one after the other here; on a GPU the last could move on while another still reads",
}
"""Faults that change nothing that can be seen on the CPU, and why."""
