// The network in CUDA C, compiled by NVRTC for a GPU, and by g++ with tests/cuda/shim.h for the CPU.
//
// N images of `size` values follow each other, as rows of `length` values (a row of pixels with all channels; a vector
// is one row). If a border of zeros surrounds the pixels, rows start `row` values apart, and images `image` values
// apart. Every sum has a fixed order and none uses atomics: the same input gives the same bits.

typedef long long wide;
typedef unsigned long long unsigned_wide;

#define KERNEL extern "C" __global__ void

// One thread for value i of image n; device_api.each has the grid. The last step of i goes to `size` and no further,
// since beyond 2^30 values i plus the threads of the grid would overflow an int.
#define EACH(n, images, i, size)                                \
  for (int n = blockIdx.y; n < (images); n += gridDim.y)        \
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < (size); i += step_within(gridDim.x * blockDim.x, (size) - i))

__device__ unsigned step_within(unsigned step, unsigned left) {
  return step < left ? step : left;
}

__device__ wide place(int n, int i, int length, wide image, int row) {
  return n * image + (wide)(i / length) * row + i % length;
}

// True in the last block of the grid to arrive here, which sees everything that the others wrote before. `ticket` is 0
// before and after. Which block is last depends on timing, so no sum may follow the order in which blocks arrive.
__device__ bool is_last(unsigned *ticket) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  unsigned blocks = gridDim.x * gridDim.y;
  if (threadIdx.x == 0 && threadIdx.y == 0) last = atomicInc(ticket, blocks - 1) == blocks - 1;
  __syncthreads();
  __threadfence();
  return last;
}

// Advances the step within the epoch, and the steps since the start of the training.
__device__ void move_on(wide *position) {
  if (threadIdx.x < 2 && threadIdx.y == 0) position[threadIdx.x] += 1;
}

// Fills an array with zeros at step `first` of the training and at all later ones.
KERNEL zero_from(float *values, const wide *position, wide first, int images, int size) {
  EACH(n, images, i, size)
    if (position[1] >= first) values[i] = 0;
}

// ---- batches --------------------------------------------------------------------------------------------------------

// Rounded twice, as in NumPy, for the same bits: no fused multiply-add.
__device__ float scaled(float pixel, float scale, float shift) {
  return __fadd_rn(__fmul_rn(pixel, scale), shift);
}

// x = pixel * scale + shift, for the images whose rows are order[step * images ...].
KERNEL gather(const unsigned char *pixels, const wide *order, const wide *position, const float *scale,
              const float *shift, float *x, wide image, int row, int length, int channels, int images, int size) {
  const wide *chosen = order + position[0] * images;
  EACH(n, images, i, size) {
    float pixel = pixels[chosen[n] * size + i];
    x[place(n, i, length, image, row)] = scaled(pixel, scale[i % channels], shift[i % channels]);
  }
}

// ---- shared by conv and dense blocks --------------------------------------------------------------------------------

// y = activation(scale * (y + bias))
KERNEL add_bias(float *y, const float *bias, float scale, int relu, int images, int size) {
  EACH(n, images, u, size) {
    float out = (y[(wide)n * size + u] + bias[u]) * scale;
    y[(wide)n * size + u] = relu && out <= 0 ? 0 : out;
  }
}

// The gradient before the activation, without a border; y and dy have the same strides.
KERNEL activation_slope(const float *y, const float *dy, wide image, int row, int length, float *slope, int relu,
                        int images, int size) {
  EACH(n, images, i, size) {
    wide at = place(n, i, length, image, row);
    slope[(wide)n * size + i] = relu && y[at] <= 0 ? 0 : dy[at];
  }
}

#define LANES 8

// Sums over the rows of a matrix: those of the `part` rows of a block go to row blockIdx.y of `sums`. Block 32 x LANES.
KERNEL column_sums(const float *values, float *sums, wide rows, int columns, wide part) {
  __shared__ float lanes[LANES][32];
  int column = blockIdx.x * 32 + threadIdx.x;
  wide first = blockIdx.y * part, last = first + part < rows ? first + part : rows;
  float sum = 0;
  if (column < columns)
    for (wide r = first + threadIdx.y; r < last; r += LANES) sum += values[r * columns + column];
  lanes[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y == 0 && column < columns) {
    for (int lane = 1; lane < LANES; lane++) sum += lanes[lane][threadIdx.x];
    sums[(wide)blockIdx.y * columns + column] = sum;
  }
}

// The gradient before the scale and the activation of y (rows, columns), and its sums over the rows. Block 32 x LANES.
KERNEL dense_slope(const float *y, const float *dy, float *slope, float *sums, float scale,
                   int relu, int rows, int columns) {
  __shared__ float lanes[LANES][32];
  int column = blockIdx.x * 32 + threadIdx.x;
  float sum = 0;
  if (column < columns)
    for (int r = threadIdx.y; r < rows; r += LANES) {
      wide at = (wide)r * columns + column;
      sum += slope[at] = relu && y[at] <= 0 ? 0 : dy[at] * scale;
    }
  lanes[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y == 0 && column < columns) {
    for (int lane = 1; lane < LANES; lane++) sum += lanes[lane][threadIdx.x];
    sums[column] = sum;
  }
}

// ---- dropout --------------------------------------------------------------------------------------------------------

// Turns a counter of four words into random words, with key (seed, purpose): Philox4x32-10 (Salmon et al. 2011, 3.2).
__device__ void philox(unsigned *c, unsigned seed, unsigned purpose) {
  for (int round = 0; round < 10; round++) {
    unsigned_wide a = (unsigned_wide)0xD2511F53u * c[0], b = (unsigned_wide)0xCD9E8D57u * c[2];
    c[0] = (unsigned)(b >> 32) ^ c[1] ^ seed;
    c[2] = (unsigned)(a >> 32) ^ c[3] ^ purpose;
    c[1] = (unsigned)b;
    c[3] = (unsigned)a;
    seed += 0x9E3779B9u;
    purpose += 0xBB67AE85u;
  }
}

// Element i of step t is word i % 4 of the block with counter (i / 4, t, t >> 32, 0), as in cnnjob/nn/random.py.
__device__ float uniform(wide element, wide step, unsigned seed, unsigned purpose) {
  unsigned c[4] = {(unsigned)(element / 4), (unsigned)step, (unsigned)(step >> 32), 0};
  philox(c, seed, purpose);
  int word = (int)(element % 4);
  unsigned bits = word == 0 ? c[0] : word == 1 ? c[1] : word == 2 ? c[2] : c[3];
  return (bits >> 8) * (1.0f / 16777216);
}

// y = x * factor where the random number of the element is at least the probability, else 0; backward likewise, on
// gradients.
KERNEL dropout(const float *x, wide x_image, int x_row, float *y, wide y_image, int y_row, int length,
               const wide *position, unsigned seed, unsigned purpose, float probability, float factor, int images,
               int size) {
  EACH(n, images, i, size) {
    float kept = uniform((wide)n * size + i, position[1], seed, purpose) >= probability ? factor : 0;
    y[place(n, i, length, y_image, y_row)] = x[place(n, i, length, x_image, x_row)] * kept;
  }
}

// ---- loss: one warp per image ---------------------------------------------------------------------------------------

#define ALL_LANES 0xffffffffu

__device__ float warp_max(float v) {
  for (int other = 16; other; other /= 2) v = fmaxf(v, __shfl_xor_sync(ALL_LANES, v, other));
  return v;
}

__device__ float warp_sum(float v) {
  for (int other = 16; other; other /= 2) v += __shfl_xor_sync(ALL_LANES, v, other);
  return v;
}

__device__ int warp_min(int v) {
  for (int other = 16; other; other /= 2) {
    int theirs = __shfl_xor_sync(ALL_LANES, v, other);
    v = theirs < v ? theirs : v;
  }
  return v;
}

__device__ float largest_of(const float *z, int classes) {
  float largest = z[0];
  for (int k = threadIdx.x; k < classes; k += 32) largest = fmaxf(largest, z[k]);
  return warp_max(largest);
}

__device__ float total_of(const float *z, int classes, float largest) {
  float total = 0;
  for (int k = threadIdx.x; k < classes; k += 32) total += expf(z[k] - largest);
  return warp_sum(total);
}

// Writes rows position[0] * images ... of the probabilities. The last block advances the position, after all have read
// it.
KERNEL softmax(const float *logits, float *probabilities, wide *position, unsigned *ticket, int images, int classes) {
  int n = blockIdx.x * blockDim.y + threadIdx.y;
  if (n < images) {
    const float *z = logits + (wide)n * classes;
    float largest = largest_of(z, classes), total = total_of(z, classes, largest);
    float *p = probabilities + (position[0] * images + n) * classes;
    for (int k = threadIdx.x; k < classes; k += 32) p[k] = expf(z[k] - largest) / total;
  }
  if (is_last(ticket)) move_on(position);
}

// Sum over the outputs of their distance to the largest one.
__device__ float depth_of(const float *z, int classes, float largest) {
  float depth = 0;
  for (int k = threadIdx.x; k < classes; k += 32) depth += largest - z[k];
  return warp_sum(depth);
}

// Loss of an image, 1 if its first largest output is that of its label, and the gradient (softmax - t) / N with
// t = (1 - smoothing) * onehot + smoothing / classes. If `mixes`, the label has only a share of onehot, and the label
// of the image before it has the rest; a prediction is right if it is the label with the larger share.
KERNEL cross_entropy(const float *logits, const wide *labels, const wide *order, const wide *position,
                     const double *shares, float *gradient, float *losses, int *hits, float smoothing, int mixes,
                     int images, int classes) {
  int n = blockIdx.x * blockDim.y + threadIdx.y;
  if (n >= images) return;
  const float *z = logits + (wide)n * classes;
  const wide *chosen = order + position[0] * images;
  int label = (int)labels[chosen[n]], other = mixes ? (int)labels[chosen[(n + images - 1) % images]] : label;
  float share = mixes ? (float)shares[position[0]] : 1, rest = mixes ? (float)(1 - shares[position[0]]) : 0;
  float largest = largest_of(z, classes), total = total_of(z, classes, largest);
  float spread = smoothing / classes, sure = 1 - smoothing, depth = 0;
  if (smoothing > 0) depth = depth_of(z, classes, largest);
  int guess = classes;
  for (int k = threadIdx.x; k < classes; k += 32) {
    float target = share * (k == label) + rest * (k == other);
    gradient[(wide)n * classes + k] = (expf(z[k] - largest) / total - spread - sure * target) / images;
    if (z[k] == largest && k < guess) guess = k;
  }
  guess = warp_min(guess);
  if (threadIdx.x == 0) {
    float missing = largest - z[label];
    if (mixes) missing = share * missing + rest * (largest - z[other]);
    losses[n] = logf(total) + sure * missing + spread * depth;
    hits[n] = guess == (mixes && shares[position[0]] < 0.5 ? other : label);
  }
}

#define MOST_THREADS 256

// Returns the sum of the values of a block's MOST_THREADS threads, in a fixed order, to each of them. All threads must
// call it, and only once in a kernel.
__device__ double block_sum(double value) {
  __shared__ double sums[MOST_THREADS];
  int t = threadIdx.x;
  sums[t] = value;
  for (int half = MOST_THREADS / 2; half; half /= 2) {
    __syncthreads();
    if (t < half) sums[t] += sums[t + half];
  }
  __syncthreads();
  return sums[0];
}

// Mean loss and number of right predictions of the step, by all threads of a block, whose number is a power of two.
__device__ void add_up(const float *losses, const int *hits, const wide *position, double *epoch_losses,
                       wide *epoch_hits, int images) {
  __shared__ double loss[MOST_THREADS];
  __shared__ wide hit[MOST_THREADS];
  int t = threadIdx.x;
  loss[t] = 0;
  hit[t] = 0;
  for (int n = t; n < images; n += blockDim.x) {
    loss[t] += losses[n];
    hit[t] += hits[n];
  }
  for (int half = blockDim.x / 2; half; half /= 2) {
    __syncthreads();
    if (t < half) {
      loss[t] += loss[t + half];
      hit[t] += hit[t + half];
    }
  }
  if (t == 0) {
    epoch_losses[position[0]] = loss[0] / images;
    epoch_hits[position[0]] = hit[0];
  }
}

KERNEL tally(const float *losses, const int *hits, const wide *position, double *epoch_losses, wide *epoch_hits,
             int images) {
  add_up(losses, hits, position, epoch_losses, epoch_hits, images);
}
