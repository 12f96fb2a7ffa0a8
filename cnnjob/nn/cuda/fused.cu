// Fused kernels: the first conv block, which reads the bytes of the images, and the classifier with its loss. Compiled
// after kernels.cu, as one module.

#define WARPS 8
#define TILE 6144
#define FUSED KERNEL __launch_bounds__(32 * WARPS)

struct alignas(8) Pair {
  float values[2];
};

// ---- first conv block: one lane per filter, one warp per row of pooled outputs, one block per band of WARPS rows ----
// K kernel side, P pooling side, C channels. The tile holds the rows of pixels that a band depends on, as floats with
// their border of zeros, channel by channel. All lanes of a warp read the same pixel, each for its own filter.

template <int K, int P>
struct Band {
  static constexpr int ROWS = WARPS * P + K - 1, SIDE = K + P - 1;
};

template <int K, int P, int C>
__device__ void load_band(const unsigned char *image, const float *scale, const float *shift, float *tile, int band,
                          int pitch, int H, int W, int pad) {
  const int rows = Band<K, P>::ROWS;
  for (int e = threadIdx.y * 32 + threadIdx.x; e < rows * pitch; e += 32 * WARPS) {
    int y = band * WARPS * P + e / pitch - pad, x = e % pitch - pad;
    bool inside = y >= 0 && y < H && x >= 0 && x < W;
    for (int c = 0; c < C; c++)
      tile[c * rows * pitch + e] = inside ? scaled(image[((wide)y * W + x) * C + c], scale[c], shift[c]) : 0;
  }
}

#define FIRST_FORWARD                                                                                               \
  (const unsigned char *pixels, const wide *order, const wide *position, const float *scale, const float *shift,      \
   const float *weights, const float *bias, float *y, wide image, int row, unsigned char *winner, int H, int W,       \
   int pad, int pitch, int height, int width, int F, int relu, int keeps, int images)
#define FORWARD_GIVEN                                                                                                 \
  pixels, order, position, scale, shift, weights, bias, y, image, row, winner, H, W, pad, pitch, height, width, F,    \
      relu, keeps, images
#define FIRST_BACKWARD                                                                                                \
  (const unsigned char *pixels, const wide *order, const wide *position, const float *scale, const float *shift,      \
   const float *dy, wide image, int row, const unsigned char *winner, float *sums, int H, int W, int pad, int pitch,  \
   int height, int width, int F, int images)
#define BACKWARD_GIVEN                                                                                                \
  pixels, order, position, scale, shift, dy, image, row, winner, sums, H, W, pad, pitch, height, width, F, images

// y = activation(max of the window + bias); winner is the index of the maximum, or P * P where the activation is 0.
template <int K, int P, int C>
__device__ void first_forward FIRST_FORWARD {
  const int rows = Band<K, P>::ROWS, side = Band<K, P>::SIDE;
  alignas(16) __shared__ float tile[TILE];
  int bands = (height + WARPS - 1) / WARPS, n = blockIdx.x / bands, band = blockIdx.x % bands;
  int i = band * WARPS + threadIdx.y, f = blockIdx.y * 32 + threadIdx.x;
  float taps[K][K][C], seen[C][side][side];
  if (f < F)
#pragma unroll
    for (int t = 0; t < K * K * C; t++) taps[t / C / K][t / C % K][t % C] = weights[t * F + f];
  load_band<K, P, C>(pixels + order[position[0] * images + n] * H * W * C, scale, shift, tile, band, pitch, H, W, pad);
  __syncthreads();
  if (f >= F || i >= height) return;
  const float *patch = tile + threadIdx.y * P * pitch;
#pragma unroll
  for (int c = 0; c < C; c++)
#pragma unroll
    for (int r = 0; r < side; r++)
#pragma unroll
      for (int m = 0; m < K - 1; m++) seen[c][r][P + m] = patch[(c * rows + r) * pitch + m];
  float added = bias[f];
  float *out = y + n * image + (wide)i * row + f;
  unsigned char *won = winner + ((wide)n * height + i) * width * F + f;
#pragma unroll 2
  for (int j = 0; j < width; j++) {
#pragma unroll
    for (int c = 0; c < C; c++)
#pragma unroll
      for (int r = 0; r < side; r++) {  // the window moves right: all but P of its columns are in registers
        const float *next = patch + (c * rows + r) * pitch + j * P + K - 1;
#pragma unroll
        for (int m = 0; m < K - 1; m++) seen[c][r][m] = seen[c][r][m + P];
        if (P == 2) {
          Pair pair = *(const Pair *)next;
          seen[c][r][K - 1] = pair.values[0];
          seen[c][r][side - 1] = pair.values[1];
        } else {
          seen[c][r][K - 1] = next[0];
        }
      }
    float z[P * P];
#pragma unroll
    for (int p = 0; p < P * P; p++) {
      z[p] = 0;
#pragma unroll
      for (int c = 0; c < C; c++)
#pragma unroll
        for (int k = 0; k < K; k++)
#pragma unroll
          for (int m = 0; m < K; m++) z[p] += taps[k][m][c] * seen[c][p / P + k][p % P + m];
    }
    float best = z[0];
    int first = 0;
#pragma unroll
    for (int p = 1; p < P * P; p++)
      if (z[p] > best || z[p] != z[p]) {  // a NaN stays a NaN
        best = z[p];
        first = p;
      }
    best += added;
    bool dead = relu && best <= 0;
    out[j * F] = dead ? 0 : best;
    if (keeps) won[j * F] = dead ? P * P : first;
  }
}

#define STRIP 4
#define AT_A_TIME (TILE / (32 * WARPS))

// Gradients of the weights and then of the bias, summed over the bands of a block: row blockIdx.x of `sums`.
template <int K, int P, int C>
__device__ void first_backward FIRST_BACKWARD {
  const int rows = Band<K, P>::ROWS, taps = K * K * C;
  alignas(16) __shared__ float tile[TILE];
  int bands = (height + WARPS - 1) / WARPS, f = blockIdx.y * 32 + threadIdx.x;
  float total[taps + 1];
#pragma unroll
  for (int t = 0; t <= taps; t++) total[t] = 0;
  for (int item = blockIdx.x; item < images * bands; item += gridDim.x) {
    int n = item / bands, band = item % bands, i = band * WARPS + threadIdx.y;
    const unsigned char *source = pixels + order[position[0] * images + n] * H * W * C;
    __syncthreads();  // all threads have read the tile, which is overwritten now
    load_band<K, P, C>(source, scale, shift, tile, band, pitch, H, W, pad);
    __syncthreads();
    if (f >= F || i >= height) continue;
    const float *slopes = dy + n * image + (wide)i * row + f;
    const unsigned char *won = winner + ((wide)n * height + i) * width * F + f;
    for (int j = 0; j < width; j += STRIP) {
      float slope[STRIP];
      int code[STRIP];
#pragma unroll
      for (int s = 0; s < STRIP; s++) {  // all loads are issued before the first value is used
        bool there = j + s < width;
        slope[s] = there ? slopes[(j + s) * F] : 0;
        code[s] = there ? won[(j + s) * F] : P * P;
      }
#pragma unroll
      for (int s = 0; s < STRIP; s++) {
        if (code[s] == P * P) continue;
        const float *patch = tile + (threadIdx.y * P + code[s] / P) * pitch + (j + s) * P + code[s] % P;
#pragma unroll
        for (int t = 0; t < taps; t++)
          total[t] += slope[s] * patch[(t % C * rows + t / C / K) * pitch + t / C % K];
        total[taps] += slope[s];
      }
    }
  }
#pragma unroll
  for (int start = 0; start <= taps; start += AT_A_TIME) {  // the sums of the warps, added up in a fixed order
    __syncthreads();
#pragma unroll
    for (int t = start; t < start + AT_A_TIME; t++)
      if (t <= taps) tile[(threadIdx.y * AT_A_TIME + t - start) * 32 + threadIdx.x] = total[t];
    __syncthreads();
    for (int q = threadIdx.y; q < AT_A_TIME; q += WARPS) {
      if (f >= F || start + q > taps) continue;
      float sum = 0;
#pragma unroll
      for (int warp = 0; warp < WARPS; warp++) sum += tile[(warp * AT_A_TIME + q) * 32 + threadIdx.x];
      sums[((wide)blockIdx.x * (taps + 1) + start + q) * F + f] = sum;
    }
  }
}

FUSED first_forward_3_1_1 FIRST_FORWARD { first_forward<3, 1, 1>(FORWARD_GIVEN); }
FUSED first_forward_3_1_3 FIRST_FORWARD { first_forward<3, 1, 3>(FORWARD_GIVEN); }
FUSED first_forward_3_2_1 FIRST_FORWARD { first_forward<3, 2, 1>(FORWARD_GIVEN); }
FUSED first_forward_3_2_3 FIRST_FORWARD { first_forward<3, 2, 3>(FORWARD_GIVEN); }
FUSED first_forward_5_1_1 FIRST_FORWARD { first_forward<5, 1, 1>(FORWARD_GIVEN); }
FUSED first_forward_5_2_1 FIRST_FORWARD { first_forward<5, 2, 1>(FORWARD_GIVEN); }
FUSED first_backward_3_1_1 FIRST_BACKWARD { first_backward<3, 1, 1>(BACKWARD_GIVEN); }
FUSED first_backward_3_1_3 FIRST_BACKWARD { first_backward<3, 1, 3>(BACKWARD_GIVEN); }
FUSED first_backward_3_2_1 FIRST_BACKWARD { first_backward<3, 2, 1>(BACKWARD_GIVEN); }
FUSED first_backward_3_2_3 FIRST_BACKWARD { first_backward<3, 2, 3>(BACKWARD_GIVEN); }
FUSED first_backward_5_1_1 FIRST_BACKWARD { first_backward<5, 1, 1>(BACKWARD_GIVEN); }
FUSED first_backward_5_2_1 FIRST_BACKWARD { first_backward<5, 2, 1>(BACKWARD_GIVEN); }

// ---- head: classifier and loss, with bias and activation of a dense block before them; one block per image ----------

#define MOST_VALUES 1024
#define HEAD_THREADS 128

// x = activation(x + x_bias) if `hidden`; z = x w + b; loss, right predictions and gradient of z as in cross_entropy;
// dx, before the activation if `hidden`. The last block adds up the losses and right predictions of the step.
KERNEL head(float *x, const float *x_bias, const float *weights, const float *bias, const wide *labels,
            const wide *order, const wide *position, float *gradient, float *dx, float *losses, int *hits,
            double *epoch_losses, wide *epoch_hits, unsigned *ticket, float smoothing, int hidden, int relu, int learns, int values,
            int classes, int images) {
  __shared__ float seen[MOST_VALUES], z[32], dz[32];
  int n = blockIdx.x, t = threadIdx.x, lane = t % 32;
  x += (wide)n * values;
  for (int v = t; v < values; v += HEAD_THREADS) {
    float value = x[v];
    if (hidden) {
      value += x_bias[v];
      if (relu && value <= 0) value = 0;
      x[v] = value;
    }
    seen[v] = value;
  }
  __syncthreads();
  for (int k = t / 32; k < classes; k += HEAD_THREADS / 32) {
    float sum = 0;
    for (int v = lane; v < values; v += 32) sum += seen[v] * weights[v * classes + k];
    sum = warp_sum(sum);
    if (lane == 0) z[k] = sum + bias[k];
  }
  __syncthreads();
  if (t < 32) {
    bool there = lane < classes;
    int label = (int)labels[order[position[0] * images + n]];
    float mine = there ? z[lane] : z[0], largest = warp_max(mine), power = expf(mine - largest);
    float total = warp_sum(there ? power : 0);
    float spread = smoothing / classes, sure = 1 - smoothing, depth = 0;
    if (smoothing > 0) depth = warp_sum(there ? largest - mine : 0);
    int guess = warp_min(there && mine == largest ? lane : classes);
    if (there) gradient[(wide)n * classes + lane] = dz[lane] = (power / total - spread - sure * (lane == label)) / images;
    if (lane == 0) {
      losses[n] = logf(total) + sure * (largest - z[label]) + spread * depth;
      hits[n] = guess == label;
    }
  }
  __syncthreads();
  if (learns)
    for (int v = t; v < values; v += HEAD_THREADS) {
      float sum = 0;
      for (int k = 0; k < classes; k++) sum += dz[k] * weights[v * classes + k];
      dx[(wide)n * values + v] = hidden && relu && seen[v] <= 0 ? 0 : sum;
    }
  if (is_last(ticket)) add_up(losses, hits, position, epoch_losses, epoch_hits, images);
}

// ---- remaining sums over the batch: LANES threads per column share its rows --------------------------------------------
// `parts` columns of `groups` rows, written by first_backward; then biases and weights of the head, from its gradients.

KERNEL batch_sums(const float *sums, float *filters, float *filter_bias, int groups, int taps, int parts,
                  const float *dx, float *hidden_bias, int units, const float *dz, float *bias, int classes,
                  const float *x, float *weights, int products, int images) {
  __shared__ float lanes[LANES][32];
  int column = blockIdx.x * 32 + threadIdx.x, rows = images, apart = classes, other_apart = 0;
  const float *values = dz, *others = nullptr;
  float *out = nullptr;
  if (column < parts) {
    values = sums + column;
    rows = groups;
    apart = parts;
    out = column < taps ? filters + column : filter_bias + column - taps;
  } else if ((column -= parts) < units) {
    values = dx + column;
    apart = units;
    out = hidden_bias + column;
  } else if ((column -= units) < classes) {
    values = dz + column;
    out = bias + column;
  } else if ((column -= classes) < products) {
    values = dz + column % classes;
    others = x + column / classes;
    other_apart = products / classes;
    out = weights + column;
  }
  float sum = 0;
  if (out)
    for (int r = threadIdx.y; r < rows; r += LANES)
      sum += values[(wide)r * apart] * (others ? others[(wide)r * other_apart] : 1);
  lanes[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y == 0 && out) {
    for (int lane = 1; lane < LANES; lane++) sum += lanes[lane][threadIdx.x];
    *out = sum;
  }
}
