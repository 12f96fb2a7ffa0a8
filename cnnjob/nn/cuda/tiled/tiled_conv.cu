// ---- convolutions of halves as products of tiles, without a matrix of patches ---------------------------------------
//
// Images are N x H x W x C halves without a border; C and F, the numbers of channels before and after, are multiples
// of 8. A convolution's matrix product has outputs as rows, filters as columns, and taps x channels as its depth.

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800

struct Sizes {
  int image, W, C, K;      // values of an input image, pixels per row, channels, taps per side
  int outputs, F, images;  // outputs per image, filters, images
};

// The input of an output in its image: position of the first tap, and a bit for each tap that is inside the image.
struct alignas(8) Source {
  int from;
  unsigned inside;
};

// What happens to the outputs; a pointer is null if its part is absent. `before` is the array that a block normalised,
// with the statistics and parameters of its channels, and `kind` its activation. All arrays are (N, height, width, F).
struct Finish {
  float *first, *second;  // sums over the outputs of each block of threads, (blocks, F)
  const Half *addend, *joined, *before;
  const float *mean, *inverse, *scale, *shift;
  int kind, is_joined;
};

// Position of a weight in the depth: taps within groups of 64 channels, or, if 64 does not divide C, channels within
// taps.
__device__ int depth_of(int tap, int c, int taps, int C) {
  return C % 64 ? tap * C + c : (c / 64 * taps + tap) * 64 + c % 64;
}

// Packs weights (taps, C, F) as halves: `ahead` (depth, F) with D >= C channels, and for the gradient of the input
// `back` (depth, C), with taps in reverse order. The rest of the depth, up to a multiple of 64, is zero and stays zero.
KERNEL pack_weights(const float *weights, Half *ahead, Half *back, int taps, int C, int D, int F) {
  for (int i = (blockIdx.x * blockDim.x + threadIdx.x) * 2; i < taps * C * F; i += gridDim.x * blockDim.x * 2) {
    int f = i % F, c = i / F % C, tap = i / F / C;
    unsigned pair = half_pair(weights[i], weights[i + 1]);
    *(unsigned *)(ahead + (wide)depth_of(tap, c, taps, D) * F + f) = pair;
    if (!back) continue;
    back[(wide)depth_of(taps - 1 - tap, f, taps, F) * C + c].bits = (unsigned short)pair;
    back[(wide)depth_of(taps - 1 - tap, f + 1, taps, F) * C + c].bits = (unsigned short)(pair >> 16);
  }
}

// Multiplies 256 outputs by 64 ACROSS filters. If P is 2, row 32 i + 8 p + w is output p of pooling window 8 i + w, so
// that the sums of a window are all in one thread; `sources` (outputs, P * P) has the outputs of each window.
template <int ACROSS, int P>
__device__ void convolve(float (*sums)[8][4], Eight *memory, const Half *x, const Half *weights, const Source *sources,
                         int first, int f0, Sizes s) {
  const int threads = ACROSS * 128, chunks = ACROSS * 8, lanes = threads / chunks, apart = threads / 8;
  const int own = 256 / apart;
  int t = threadIdx.x;
  Source *table = (Source *)memory, own_sources[own];  // those of rows t / 8 + apart * i
  for (int r = t; r < 256; r += threads) {
    int output = first + (P == 1 ? r : r / 32 * 8 + r % 8), n = output / s.outputs;
    table[r] = {0, 0};
    if (n >= s.images) continue;
    table[r] = sources[(output - n * s.outputs) * P * P + (P == 1 ? 0 : r / 8 % 4)];
    table[r].from += n * s.image;
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < own; i++) own_sources[i] = table[t / 8 + apart * i];
  __syncthreads();  // the first stage overwrites the table

  // A thread copies one chunk of each of its rows: 8 channels of a tap. Within 64 channels, all taps follow each other.
  int taps = s.K * s.K, group = s.C % 64 ? s.C / 8 : 8, chunk = t % 8;
  int tap = chunk / group, channel = chunk % group, base = 0;
  int next_tap = 8 / group, next_channel = 8 % group, inverse = (1023 + s.K) / s.K;  // tap * inverse / 1024 is tap / K
  auto load = [&](Eight *a, Eight *b, int step) {
    int k = tap * inverse >> 10, offset = (k * s.W + tap - k * s.K) * s.C + base + channel * 8;
#pragma unroll
    for (int i = 0; i < own; i++) {
      bool exists = own_sources[i].inside >> tap & 1;
      copy_chunk<true>(a + spot(t / 8 + apart * i, chunk, DEPTH / 8),
                       x + (exists ? own_sources[i].from + offset : 0), exists);
    }
    channel += next_channel;
    tap += next_tap;
    if (channel >= group) {
      channel -= group;
      tap++;
    }
    if (tap >= taps && group == 8) {
      tap = 0;
      base += 64;
    }
    const Half *source = weights + ((wide)step * DEPTH + t / chunks) * s.F + f0 + t % chunks * 8;
    bool exists = f0 + t % chunks * 8 < s.F;
#pragma unroll
    for (int i = 0; i < DEPTH / lanes; i++)
      copy_chunk<false>(b + spot(t / chunks + i * lanes, t % chunks, chunks),
                        exists ? source + (wide)i * lanes * s.F : weights, exists);
  };
  multiply_tiles<4, ACROSS, false>(sums, memory, (taps * s.C + DEPTH - 1) / DEPTH, load);
}

// Writes the sums, or the maxima of the pooling windows and the index of each in its window (the first of equals), as
// halves to a tile in shared memory.
template <int ACROSS, int P>
__device__ void store_tile(float (*sums)[8][4], Eight *memory, unsigned char *winners) {
  const int chunks = ACROSS * 8, pitch = ACROSS * 64 + 8;
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  unsigned *tile = (unsigned *)memory;
#pragma unroll
  for (int i = 0; i < 4; i += P)
#pragma unroll
    for (int j = 0; j < 8; j++) {
      int column = warp % ACROSS * 8 + j;
      if (P == 1) {
        int r = warp / ACROSS * 64 + i * 16 + lane / 4;
        tile[spot(r, column, chunks) * 4 + lane % 4] = half_pair(sums[i][j][0], sums[i][j][1]);
        tile[spot(r + 8, column, chunks) * 4 + lane % 4] = half_pair(sums[i][j][2], sums[i][j][3]);
        continue;
      }
      int r = warp / ACROSS * 16 + i / 2 * 8 + lane / 4, first[2];
      float best[2];
#pragma unroll
      for (int e = 0; e < 2; e++) {
        best[e] = sums[i][j][e];
        first[e] = 0;
#pragma unroll
        for (int p = 1; p < 4; p++) {
          float value = sums[i + p / 2][j][p % 2 * 2 + e];
          if (value > best[e] || value != value) {  // a NaN stays a NaN
            best[e] = value;
            first[e] = p;
          }
        }
      }
      tile[spot(r, column, chunks) * 4 + lane % 4] = half_pair(best[0], best[1]);
      *(unsigned short *)(winners + r * pitch + column * 8 + lane % 4 * 2) = (unsigned short)(first[0] | first[1] << 8);
    }
}

// Sums of 8 channels over a thread's outputs, and the channels' parameters.
struct Channels {
  float first[8], second[8], mean[8], inverse[8], scale[8], shift[8];
};

// y = the values; with `first`, also the mean and the sum of squared deviations of each channel in this block; with
// `mean`, y = activation(scale * (value - mean) * inverse + shift) + addend, with a ReLU if it is joined.
__device__ void finish_forward(float *values, Channels &own, const Finish &finish, wide at) {
  if (finish.first) {
#pragma unroll
    for (int e = 0; e < 8; e++) {
      float apart = values[e] - own.mean[e];  // here, `mean` is the block's first output
      own.first[e] += apart;
      own.second[e] += apart * apart;
    }
  }
  if (!finish.mean) return;
  float others[8] = {};
  if (finish.addend) unpack(others, *(const Eight *)(finish.addend + at));
#pragma unroll
  for (int e = 0; e < 8; e++) {
    float normal = (values[e] - own.mean[e]) * own.inverse[e];
    values[e] = activated(shifted(normal, own.scale[e], own.shift[e]), finish.kind) + others[e];
    if (finish.is_joined && values[e] <= 0) values[e] = 0;
  }
}

// With the values v of a gradient: v += addend, and 0 where the output of a join's ReLU is 0; then the gradient before
// the normalisation, g = v * activation'(...), and the sums of g and of g * (before - mean) * inverse. y = g, or v if
// it is joined: the shortcut has the same gradient.
__device__ void finish_backward(float *values, Channels &own, const Finish &finish, wide at) {
  float others[8];
  if (finish.addend) {
    unpack(others, *(const Eight *)(finish.addend + at));
#pragma unroll
    for (int e = 0; e < 8; e++) values[e] += others[e];
  }
  if (finish.joined) {
    unpack(others, *(const Eight *)(finish.joined + at));
#pragma unroll
    for (int e = 0; e < 8; e++) values[e] = others[e] > 0 ? values[e] : 0;
  }
  if (!finish.first) return;
  if (finish.before) unpack(others, *(const Eight *)(finish.before + at));
  // Rounded before they are added up: the sums are those of the gradient that is stored.
  if (finish.is_joined) unpack(values, pack(values));
  float slopes[8];
#pragma unroll
  for (int e = 0; e < 8; e++) {
    others[e] = finish.before ? (others[e] - own.mean[e]) * own.inverse[e] : 0;
    slopes[e] = values[e];
    if (finish.before) slopes[e] *= steepness(shifted(others[e], own.scale[e], own.shift[e]), finish.kind);
  }
  if (!finish.is_joined) {
    unpack(slopes, pack(slopes));
#pragma unroll
    for (int e = 0; e < 8; e++) values[e] = slopes[e];
  }
#pragma unroll
  for (int e = 0; e < 8; e++) {
    own.first[e] += slopes[e];
    own.second[e] += slopes[e] * others[e];
  }
}

// y (images, outputs, F) = finish(maximum over P x P windows of x (images, H, W, C) * weights).
template <int ACROSS, int P, bool BACK>
__device__ void conv(const Half *x, const Half *weights, const Source *sources, Half *y, unsigned char *winner,
                     const Finish &finish, Sizes s) {
  DYNAMIC_SHARED(memory);
  const int filters = ACROSS * 64, chunks = filters / 8, lanes = ACROSS * 128 / chunks, outputs = 256 / (P * P);
  int across = (s.F + filters - 1) / filters, f0 = blockIdx.x % across * filters, block = blockIdx.x / across;
  int first = block * outputs, total = s.images * s.outputs;
  float sums[4][8][4] = {};
  convolve<ACROSS, P>(sums, memory, x, weights, sources, first, f0, s);
  unsigned char *winners = (unsigned char *)(memory + outputs * chunks);
  store_tile<ACROSS, P>(sums, memory, winners);
  __syncthreads();

  // From shared to device memory, row by row; a thread has 8 channels of every `lanes`-th row.
  int t = threadIdx.x, j = t % chunks, f = f0 + j * 8;
  Channels own = {};
  if (!BACK && finish.first) unpack(own.mean, memory[spot(0, j, chunks)]);
  if (finish.mean && f < s.F)
#pragma unroll
    for (int e = 0; e < 8; e++) {
      own.mean[e] = finish.mean[f + e];
      own.inverse[e] = finish.inverse[f + e];
      own.scale[e] = finish.scale[f + e];
      own.shift[e] = finish.shift[f + e];
    }
  for (int r = t / chunks; r < outputs; r += lanes) {
    if (first + r >= total || f >= s.F) break;
    wide at = (wide)(first + r) * s.F + f;
    float values[8];
    unpack(values, memory[spot(r, j, chunks)]);
    if (BACK)
      finish_backward(values, own, finish, at);
    else
      finish_forward(values, own, finish, at);
    *(Eight *)(y + at) = pack(values);
    if (P > 1 && winner) *(wide *)(winner + at) = *(const wide *)(winners + r * (filters + 8) + j * 8);
  }
  if (!finish.first) return;

  float *parts = (float *)(winners + (P == 1 ? 0 : outputs * (filters + 8)));  // (2, lanes, filters)
#pragma unroll
  for (int e = 0; e < 8; e++) {
    parts[t / chunks * filters + j * 8 + e] = own.first[e];
    parts[(lanes + t / chunks) * filters + j * 8 + e] = own.second[e];
  }
  __syncthreads();
  if (t >= filters || f0 + t >= s.F) return;
  float one = 0, two = 0;
  for (int lane = 0; lane < lanes; lane++) {
    one += parts[lane * filters + t];
    two += parts[(lanes + lane) * filters + t];
  }
  if (!BACK) {
    float count = total - first < outputs ? total - first : outputs;
    two -= one * one / count;
    one = number(((const Half *)(memory + spot(0, t / 8, chunks)))[t % 8]) + one / count;
  }
  finish.first[(wide)block * s.F + f0 + t] = one;
  finish.second[(wide)block * s.F + f0 + t] = two;
}

#define CONV                                                                                                           \
  (const Half *x, const Half *weights, const Source *sources, Half *y, unsigned char *winner, float *first,            \
   float *second, const Half *addend, const Half *joined, const Half *before, const float *mean,                       \
   const float *inverse, const float *scale, const float *shift, int kind, int is_joined, int image, int W, int C,     \
   int K, int outputs, int F, int images) {                                                                            \
  Sizes sizes = {image, W, C, K, outputs, F, images};                                                                  \
  Finish finish = {first, second, addend, joined, before, mean, inverse, scale, shift, kind, is_joined};
#define TILED(threads, blocks) KERNEL __launch_bounds__(threads, blocks)

TILED(128, 2) conv_1_64 CONV conv<1, 1, false>(x, weights, sources, y, winner, finish, sizes); }
TILED(256, 1) conv_1_128 CONV conv<2, 1, false>(x, weights, sources, y, winner, finish, sizes); }
TILED(128, 2) conv_2_64 CONV conv<1, 2, false>(x, weights, sources, y, winner, finish, sizes); }
TILED(256, 1) conv_2_128 CONV conv<2, 2, false>(x, weights, sources, y, winner, finish, sizes); }
TILED(128, 2) conv_back_64 CONV conv<1, 1, true>(x, weights, sources, y, winner, finish, sizes); }
TILED(256, 1) conv_back_128 CONV conv<2, 1, true>(x, weights, sources, y, winner, finish, sizes); }

// sums (blockIdx.y, taps * C, F) = x, as each tap sees it, times dz (images, outputs, F), over `share` outputs from
// blockIdx.y * share on. The tile's rows are taps x channels, and its depth is outputs.
template <int DOWN, int ACROSS>
__device__ void weight_sums(const Half *x, const Half *dz, const Source *sources, float *sums_out, Sizes s, int share) {
  DYNAMIC_SHARED(memory);
  const int filters = ACROSS * 64, chunks = filters / 8, threads = DOWN * ACROSS * 32, lanes = threads / chunks;
  const int rows = DOWN * 64, row_chunks = DOWN * 8, apart = threads / row_chunks, size = (rows + filters) * DEPTH / 8;
  int t = threadIdx.x, across = (s.F + filters - 1) / filters, f0 = blockIdx.x % across * filters;
  int total = s.images * s.outputs, begin = blockIdx.y * share, end = begin + share < total ? begin + share : total;
  int m0 = blockIdx.x / across * rows, m = m0 + t % row_chunks * 8, tap = m / s.C, k = tap / s.K;
  unsigned bit = tap < s.K * s.K ? 1u << tap : 0;  // rows beyond the last tap are zero
  int offset = (k * s.W + tap - k * s.K) * s.C + m % s.C;

  // The sources of a step's 64 outputs are looked up one step ahead, each by one thread.
  Source *table = (Source *)(memory + STAGES * size);
  int q = begin + t, n = q / s.outputs, output = q - n * s.outputs;
  int next_n = DEPTH / s.outputs, next = DEPTH % s.outputs;
  auto locate = [&](int step) {
    if (t >= DEPTH) return;
    Source source = {0, 0};
    if (q < end) source = sources[output];
    source.from += n * s.image;
    table[step % 2 * DEPTH + t] = source;
    q += DEPTH;
    n += next_n;
    output += next;
    if (output >= s.outputs) {
      output -= s.outputs;
      n++;
    }
  };
  locate(0);
  __syncthreads();
  auto load = [&](Eight *a, Eight *b, int step) {
    Source found[DEPTH / apart];  // all are read before the first copy: the two do not mix well in the memory pipeline
#pragma unroll
    for (int i = 0; i < DEPTH / apart; i++) found[i] = table[step % 2 * DEPTH + t / row_chunks + apart * i];
#pragma unroll
    for (int i = 0; i < DEPTH / apart; i++) {
      bool exists = found[i].inside & bit;
      copy_chunk<true>(a + spot(t / row_chunks + apart * i, t % row_chunks, row_chunks),
                       x + (exists ? found[i].from + offset : 0), exists);
    }
    int row = begin + step * DEPTH + t / chunks;
    const Half *source = dz + (wide)row * s.F + f0 + t % chunks * 8;
#pragma unroll
    for (int i = 0; i < DEPTH / lanes; i++) {
      bool exists = row + i * lanes < end && f0 + t % chunks * 8 < s.F;
      copy_chunk<false>(b + spot(t / chunks + i * lanes, t % chunks, chunks),
                        exists ? source + (wide)i * lanes * s.F : dz, exists);
    }
    locate(step + 1);
  };
  float sums[4][8][4] = {};
  multiply_tiles<DOWN, ACROSS, true>(sums, memory, (end - begin + DEPTH - 1) / DEPTH, load);
  int lane = t % 32, warp = t / 32;
#pragma unroll
  for (int i = 0; i < 4; i++)
#pragma unroll
    for (int e = 0; e < 4; e += 2) {
      int r = m0 + warp / ACROSS * 64 + i * 16 + e * 4 + lane / 4;
#pragma unroll
      for (int j = 0; j < 8; j++) {
        int f = f0 + warp % ACROSS * 64 + j * 8 + lane % 4 * 2;
        if (r < s.K * s.K * s.C && f < s.F)
          *(Pair *)(sums_out + ((wide)blockIdx.y * s.K * s.K * s.C + r) * s.F + f) = {sums[i][j][e], sums[i][j][e + 1]};
      }
    }
}

#define WEIGHT_SUMS                                                                                                    \
  (const Half *x, const Half *dz, const Source *sources, float *sums, int image, int W, int C, int K, int outputs,     \
   int F, int images, int share)
#define WITH_SIZES x, dz, sources, sums, {image, W, C, K, outputs, F, images}, share

TILED(64, 4) weight_sums_64 WEIGHT_SUMS { weight_sums<2, 1>(WITH_SIZES); }
TILED(256, 1) weight_sums_128 WEIGHT_SUMS { weight_sums<4, 2>(WITH_SIZES); }

struct alignas(16) Four {
  float values[4];
};

// gradient (taps, C, F) = factor * the sum of `parts` arrays (taps, D, F), D >= C. If a value is not finite, the loss
// of the step becomes NaN. Block 32 x LANES.
KERNEL add_weight_sums(const Four *sums, Four *gradient, float factor, int parts, int taps, int C, int D, int fours,
                       double *losses, const wide *position) {
  __shared__ Four shares[LANES][32];
  int i = blockIdx.x * 32 + threadIdx.x, row = i / fours;
  bool exists = i < taps * C * fours;
  const Four *source = sums + (row / C * D + row % C) * fours + i % fours;
  Four total = {};
  if (exists)
#pragma unroll 4
    for (int part = threadIdx.y; part < parts; part += LANES) {
      Four share = source[(wide)part * taps * D * fours];
#pragma unroll
      for (int e = 0; e < 4; e++) total.values[e] += share.values[e];
    }
  shares[threadIdx.y][threadIdx.x] = total;
  __syncthreads();
  if (threadIdx.y || !exists) return;
  for (int lane = 1; lane < LANES; lane++)
    for (int e = 0; e < 4; e++) total.values[e] += shares[lane][threadIdx.x].values[e];
  for (int e = 0; e < 4; e++) {
    total.values[e] *= factor;
    float none = total.values[e] - total.values[e];
    if (none != 0) losses[position[0]] = none;  // infinity - infinity is NaN
  }
  gradient[i] = total;
}

#endif
