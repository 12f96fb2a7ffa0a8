"""Faults of the kernels that compute convolutions in halves as products of tiles."""

from tests.cuda.faults import Fault

PRODUCTS = [
    # where chunks are stored in shared memory, and which lanes read which rows
    Fault("(row & 7)", "(row & 15)"),
    Fault("spot(r + lane % 16, k / 8 + lane / 16, DEPTH / 8)", "(r + lane % 16) * 8 + k / 8 + lane / 16"),
    Fault("spot(r + lane % 16, ", "spot(r + lane % 8, "),
    Fault("k / 8 + lane / 16, DEPTH", "k / 8 + lane / 8 % 2, DEPTH"),
    Fault("spot(k + lane % 16, column", "spot(k + lane % 8, column"),
    Fault("column / 8 + j + lane / 16", "column / 8 + j"),
    Fault("b + spot(k + lane % 16, column / 8 + j + lane / 16, ACROSS * 8)", "b + (k + lane % 16) * ACROSS * 8 + j"),
    Fault("load_matrices<false>(left[i]", "load_matrices<true>(left[i]"),
    Fault("load_matrices<true>(right[j]", "load_matrices<false>(right[j]"),
    Fault("r = row + i * 16", "r = row + i * 8"),
    Fault("k < DEPTH; k += 16", "k < DEPTH - 16; k += 16"),
    Fault("left[i], right[j]);", "left[i], right[j ^ 1]);"),
    # stages, and the copies that fill them
    Fault("await_copies<STAGES - 2>();", "await_copies<STAGES - 1>();"),
    *(Fault("end_copy_group();", "", place) for place in (0, 1)),
    Fault("writes = STAGES - 1;", "writes = 0;"),
    Fault("reads == STAGES) reads = 0", "reads == STAGES) reads = 1"),
    Fault("writes == STAGES) writes = 0", "writes == STAGES) writes = 1"),
    Fault("if (step + STAGES - 1 < steps)", "if (step + STAGES < steps)"),
    Fault("next + second, step + STAGES - 1", "next + second, step + STAGES"),
    Fault("second = DOWN * DEPTH * 8", "second = DOWN * DEPTH * 4"),
    Fault("warp / ACROSS * 64, warp % ACROSS * 64", "warp % ACROSS * 64, warp / ACROSS * 64"),
    # eight halves
    Fault("(eight.pairs[e] >> 16)", "eight.pairs[e]"),
    Fault("half_pair(values[2 * e], values[2 * e + 1])", "half_pair(values[2 * e + 1], values[2 * e])"),
]

TRANSPOSED = [
    Fault("a + spot(k + lane % 8 + lane / 16 * 8, ", "a + spot(k + lane % 16, "),
    Fault("r / 8 + lane / 8 % 2, DOWN", "r / 8 + lane / 16, DOWN"),
    Fault("load_matrices<true>(left[i]", "load_matrices<false>(left[i]"),
]

CONVOLUTIONS = [
    # the weights
    Fault("return C % 64 ? tap * C + c : ", "return 1 ? tap * C + c : "),
    Fault("(c / 64 * taps + tap) * 64", "(tap * taps + c / 64) * 64"),
    Fault("depth_of(tap, c, taps, D)", "depth_of(tap, c, taps, C)"),
    Fault("if (!back) continue;", ""),
    Fault("i += gridDim.x * blockDim.x * 2", "i += gridDim.x * blockDim.x * 4"),
    # the sources of outputs, and the chunks that a thread copies
    Fault("r / 32 * 8 + r % 8)", "r / 4)"),
    Fault("* P * P + (P == 1 ? 0 : r / 8 % 4)", "* P * P + (P == 1 ? 0 : r % 4)"),
    Fault("table[r].from += n * s.image;", ""),
    Fault("own_sources[i] = table[t / 8 + apart * i]", "own_sources[i] = table[t / 8 + i]"),
    Fault("next_channel = 8 % group", "next_channel = 0"),
    Fault("inverse = (1023 + s.K) / s.K", "inverse = 1024 / s.K"),
    Fault("offset = (k * s.W + tap - k * s.K) * s.C + base", "offset = (k * s.W + tap) * s.C + base"),
    Fault("offset = (k * s.W + tap - k * s.K) * s.C + base", "offset = (k * s.K + tap - k * s.K) * s.C + base"),
    Fault("own_sources[i].inside >> tap & 1", "own_sources[i].inside >> (tap + 1) & 1"),
    Fault("x + (exists ? own_sources[i].from + offset : 0), exists)", "x + own_sources[i].from + offset, true)"),
    Fault("if (channel >= group) {", "if (channel > group) {"),
    Fault("      channel -= group;", ""),
    Fault("if (tap >= taps && group == 8)", "if (tap > taps && group == 8)"),
    Fault("base += 64;", ""),
    Fault("* s.F + f0 + t % chunks * 8;", "* s.F + t % chunks * 8;"),
    Fault("spot(t / 8 + apart * i, chunk, DEPTH / 8)", "(t / 8 + apart * i) * 8 + chunk"),
    Fault("spot(t / chunks + i * lanes, t % chunks, chunks)", "(t / chunks + i * lanes) * chunks + t % chunks"),
    Fault("(taps * s.C + DEPTH - 1) / DEPTH", "taps * s.C / DEPTH"),
    # the tile of outputs, and its winners
    Fault("half_pair(sums[i][j][2], sums[i][j][3])", "half_pair(sums[i][j][3], sums[i][j][2])"),
    Fault("warp / ACROSS * 16 + i / 2 * 8", "warp / ACROSS * 16 + i * 8"),
    Fault("sums[i + p / 2][j][p % 2 * 2 + e]", "sums[i + p % 2][j][p / 2 * 2 + e]"),
    Fault("value > best[e] ||", "value >= best[e] ||"),
    Fault(" || value != value", ""),
    Fault("p < 4; p++", "p < 3; p++"),
    Fault("first[0] | first[1] << 8", "first[1] | first[0] << 8"),
    Fault("column * 8 + lane % 4 * 2)", "column * 8 + lane % 4)"),
    Fault("r * (filters + 8) + j * 8", "r * filters + j * 8"),
    # from the tile to the device's memory, and the moments
    Fault("apart = values[e] - own.mean[e]", "apart = values[e]"),
    Fault("own.second[e] += apart * apart", "own.second[e] += apart"),
    Fault("if (!BACK && finish.first) unpack(own.mean", "if (BACK) unpack(own.mean"),
    Fault("first + r >= total || f >= s.F", "f >= s.F"),
    Fault("first + r >= total || f >= s.F", "first + r >= total"),
    Fault("blockIdx.x % across * filters, block = blockIdx.x / across", "0, block = blockIdx.x"),
    Fault("(P == 1 ? 0 : outputs * (filters + 8))", "0"),
    Fault("lane < lanes; lane++", "lane < lanes - 1; lane++"),
    Fault("parts[(lanes + lane) * filters + t]", "parts[lane * filters + t]"),
    Fault("if (t >= filters || f0 + t >= s.F) return;", "if (t >= filters) return;"),
    Fault("total - first < outputs ? total - first : outputs", "outputs"),
    Fault("two -= one * one / count;", ""),
    Fault("spot(0, t / 8, chunks)", "spot(0, t % 8, chunks)"),
    Fault("(wide)block * s.F + f0 + t] = two", "f0 + t] = two"),
]

FORWARD = [
    Fault("if (finish.addend) unpack(others, ", "if (0) unpack(others, "),
    Fault("(values[e] - own.mean[e]) * own.inverse[e]", "(values[e] - own.mean[e])"),
    Fault("shifted(normal, own.scale[e], own.shift[e])", "shifted(normal, own.scale[e], 0)"),
    Fault("finish.kind) + others[e]", "LINEAR) + others[e]"),
    Fault("if (finish.is_joined && values[e] <= 0)", "if (finish.is_joined && values[e] < -1)"),
    Fault("if (finish.is_joined && values[e] <= 0)", "if (values[e] <= 0)"),
    Fault("finish.mean[f + e]", "finish.mean[e]"),
    Fault("finish.shift[f + e]", "finish.shift[j * 8 + e]"),
]

BACKWARD = [
    Fault("depth_of(taps - 1 - tap, f, taps, F)", "depth_of(tap, f, taps, F)"),
    Fault("depth_of(taps - 1 - tap, f + 1, taps, F)", "depth_of(tap, f + 1, taps, F)"),
    Fault("bits = (unsigned short)(pair >> 16)", "bits = (unsigned short)pair"),
    Fault("values[e] += others[e];", ";"),
    Fault("if (finish.joined) {", "if (0) {"),
    Fault("others[e] > 0 ? values[e] : 0", "others[e] >= 0 ? values[e] : 0"),
    Fault("if (finish.is_joined) unpack(values, pack(values));", ""),
    Fault("unpack(slopes, pack(slopes));", ""),
    Fault("(others[e] - own.mean[e]) * own.inverse[e] : 0", "(others[e] - own.mean[e]) : 0"),
    Fault("(others[e] - own.mean[e]) * own.inverse[e] : 0", "others[e] * own.inverse[e] : 0"),
    Fault("slopes[e] *= steepness(", "slopes[e] = steepness("),
    Fault("shifted(others[e], own.scale[e], own.shift[e])", "shifted(others[e], 1, own.shift[e])"),
    Fault("if (!finish.is_joined) {", "{"),
    Fault("own.second[e] += slopes[e] * others[e]", "own.second[e] += slopes[e]"),
    Fault("own.first[e] += slopes[e]", "own.first[e] += values[e]"),
]

WEIGHT_SUMS = [
    Fault("begin + share < total ? begin + share : total", "total"),
    Fault("begin + share < total ? begin + share : total", "begin + share - 1 < total ? begin + share - 1 : total"),
    Fault("m0 + t % row_chunks * 8", "m0 + t / row_chunks * 8"),
    Fault("(k * s.W + tap - k * s.K) * s.C + m % s.C", "(k * s.W + tap) * s.C + m % s.C"),
    Fault("* s.C + m % s.C;", "* s.C + m;"),
    Fault("source.from += n * s.image;", ""),
    Fault("table[step % 2 * DEPTH + t] = source", "table[t] = source"),
    Fault("q += DEPTH;", ""),
    Fault("n += next_n;", ""),
    Fault("output += next;", ""),
    Fault("output >= s.outputs)", "output > s.outputs)"),
    Fault("      n++;", ""),
    Fault("locate(step + 1);", "locate(step);"),
    Fault("found[i].inside & bit", "found[i].inside"),
    Fault("table[step % 2 * DEPTH + t / row_chunks", "table[t / row_chunks"),
    Fault("row = begin + step * DEPTH", "row = step * DEPTH"),
    Fault("row + i * lanes < end &&", ""),
    Fault("spot(t / row_chunks + apart * i, t % row_chunks, row_chunks)", "(t / row_chunks + apart * i) * row_chunks"),
    Fault("(end - begin + DEPTH - 1) / DEPTH", "(end - begin) / DEPTH"),
    Fault("i * 16 + e * 4 + lane / 4", "i * 16 + e * 2 + lane / 4"),
    Fault("r < s.K * s.K * s.C && f < s.F", "f < s.F"),
    Fault("r < s.K * s.K * s.C && f < s.F", "r < s.K * s.K * s.C"),
    Fault("(wide)blockIdx.y * s.K * s.K * s.C + r", "(wide)r"),
]

SHARES = [
    Fault("row / C * D + row % C", "row"),
    Fault("part < parts; part += LANES", "part < parts - 1; part += LANES"),
    Fault("lane = 1; lane < LANES", "lane = 2; lane < LANES"),
    Fault("total.values[e] *= factor;", ""),
    Fault("if (none != 0) losses[position[0]] = none;", ""),
    Fault("losses[position[0]] = none", "losses[0] = none"),
    Fault("losses[position[0]] = none", "losses[position[0]] = total.values[e]"),
    Fault("if (threadIdx.y || !exists) return;", "if (threadIdx.y) return;"),
    Fault("part * taps * D * fours", "part * taps * C * fours"),
]

CONVERSIONS = [
    Fault("c + e < C ? source[c + e] : 0", "source[c + e]"),
    *(Fault("(wide)(pixel / length) * row + pixel % length * C", "pixel * C", place) for place in (0, 1)),
    Fault("if (c + e < C) target", "target"),
    Fault("= factor * values[e]", "= values[e]"),
]

NORMALISATION = [
    Fault("if (addend) unpack(others, addend[i]);", ""),
    Fault("(values[e] - mean[c + e])", "(values[e] - mean[e])"),
    Fault("if (is_joined && values[e] <= 0)", "if (values[e] <= 0)"),
]

ENTRY = [
    Fault("begin + part < rows ? begin + part : rows", "begin + part"),
    Fault("r < end; r += 32", "r < end; r += 33"),
    Fault("floats + r / pixels * image", "floats + r / pixels * pixels * C"),
    Fault("(r % pixels / length) * row", "(r / length) * row"),
    Fault("floats ? factor * source[e] : 0", "floats ? source[e] : 0"),
    Fault("lane < 32; lane++", "lane < 31; lane++"),
    Fault("t < 64 ? first : second", "t < 32 ? first : second"),
    Fault("if (t >= 128 || channel >= C) return;", "if (t >= 128) return;"),
]

BEFORE = [
    Fault(" * steepness(shifted(normal, scale[c + e], shift[c + e]), kind)", ""),
    Fault("(g - loss_scale * (dshift[", "(g - (dshift["),
    Fault("dshift[c + e] + normal * dscale[c + e]", "dshift[c + e]"),
    Fault("dshift[c + e] + normal * dscale[c + e]", "normal * dscale[c + e]"),
    Fault("dscale[c + e]) / rows)", "dscale[c + e]))"),
    Fault("slopes[e] = scale[c + e] * inverse[c + e]", "slopes[e] = inverse[c + e]"),
    Fault("(first >> 8 * e & 255) == p", "(first >> 8 & 255) == p"),
    Fault("row * P + p / P) * width", "row * P + p % P) * width"),
    Fault("column * P + p % P", "column * P + p / P"),
    Fault("* width * P + column", "* width + column"),
    Fault("column = i / chunks % width", "column = i % width"),
]

NUMBERS = "test_tiled_kernels and "
"""Single kernels on integers."""
TILED_FAULTS = [
    fault._replace(file=f"tiled/{file}.cu", tests=NUMBERS + tests)
    for file, tests, faults in (
        ("tensor_cores", "convolutions", PRODUCTS),
        ("tensor_cores", "gradient_of_weights", TRANSPOSED),
        ("tiled_conv", "convolutions", CONVOLUTIONS),
        ("tiled_conv", "follows", FORWARD),
        ("tiled_conv", "gradient_of_an_input", BACKWARD),
        ("tiled_conv", "gradient_of_weights", WEIGHT_SUMS),
        ("tiled_conv", "sums_of_shares", SHARES),
        ("tiled_norm", "image_with_a_border", CONVERSIONS),
        ("tiled_norm", "follows and normalise_halves", NORMALISATION),
        ("tiled_norm", "gradient_of_an_input and floats", ENTRY),
        ("tiled_norm", "before_normalisation", BEFORE),
    )
    for fault in faults
]
"""Those of the kernels, without their barriers, which are among all others'."""
