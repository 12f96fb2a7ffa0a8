// ---- between convolutions of halves: 8 channels a thread ------------------------------------------------------------

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800

// y = x as halves, with D >= C channels, of which the last are zero. x has `length` pixels per row, and may have a
// border.
KERNEL to_halves(const float *x, wide image, int row, Eight *y, int length, int C, int D, int images, int size) {
  EACH(n, images, i, size) {
    int c = i % (D / 8) * 8, pixel = i / (D / 8);
    const float *source = x + n * image + (wide)(pixel / length) * row + pixel % length * C;
    float values[8];
#pragma unroll
    for (int e = 0; e < 8; e++) values[e] = c + e < C ? source[c + e] : 0;
    y[(wide)n * size + i] = pack(values);
  }
}

// y = factor * x, from halves with D channels to floats with C; the inverse of the above.
KERNEL to_floats(const Eight *x, float factor, float *y, wide image, int row, int length, int C, int D, int images,
                 int size) {
  EACH(n, images, i, size) {
    int c = i % (D / 8) * 8, pixel = i / (D / 8);
    float *target = y + n * image + (wide)(pixel / length) * row + pixel % length * C, values[8];
    unpack(values, x[(wide)n * size + i]);
#pragma unroll
    for (int e = 0; e < 8; e++)
      if (c + e < C) target[c + e] = factor * values[e];
  }
}

// y = activation(scale * (x - mean) * inverse + shift) + addend, with a ReLU if it is joined; `size` values in eights.
KERNEL normalise_halves(const Eight *x, const float *mean, const float *inverse, const float *scale, const float *shift,
                        const Eight *addend, Eight *y, int kind, int is_joined, int C, int size) {
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < size; i += gridDim.x * blockDim.x) {
    int c = i % (C / 8) * 8;
    float values[8], others[8] = {};
    unpack(values, x[i]);
    if (addend) unpack(others, addend[i]);
#pragma unroll
    for (int e = 0; e < 8; e++) {
      float normal = (values[e] - mean[c + e]) * inverse[c + e];
      values[e] = activated(shifted(normal, scale[c + e], shift[c + e]), kind) + others[e];
      if (is_joined && values[e] <= 0) values[e] = 0;
    }
    y[i] = pack(values);
  }
}

// What conv_back does to the gradient of its input, for factor * floats, which may have a border, or for halves that are
// the `addend`: the sums of the `part` rows of a block go to row blockIdx.y. Block 8 x 32.
KERNEL finish_gradient(const float *floats, wide image, int row, float factor, Half *y, float *first, float *second,
                       const Half *addend, const Half *joined, const Half *before, const float *mean,
                       const float *inverse, const float *scale, const float *shift, int kind, int is_joined,
                       int pixels, int length, int C, int rows, int part) {
  __shared__ float lanes[2][32][64];
  int c = (blockIdx.x * 8 + threadIdx.x) * 8, begin = blockIdx.y * part;
  int end = begin + part < rows ? begin + part : rows;
  Finish finish = {first, second, addend, joined, before, mean, inverse, scale, shift, kind, is_joined};
  Channels own = {};
  if (c < C) {
    if (before)
      for (int e = 0; e < 8; e++) {
        own.mean[e] = mean[c + e];
        own.inverse[e] = inverse[c + e];
        own.scale[e] = scale[c + e];
        own.shift[e] = shift[c + e];
      }
    for (int r = begin + threadIdx.y; r < end; r += 32) {
      wide at = (wide)r * C + c;
      const float *source = floats + r / pixels * image + (wide)(r % pixels / length) * row + r % pixels % length * C + c;
      float values[8];
      for (int e = 0; e < 8; e++) values[e] = floats ? factor * source[e] : 0;
      finish_backward(values, own, finish, at);
      *(Eight *)(y + at) = pack(values);
    }
  }
  for (int e = 0; e < 8; e++) {
    lanes[0][threadIdx.y][threadIdx.x * 8 + e] = own.first[e];
    lanes[1][threadIdx.y][threadIdx.x * 8 + e] = own.second[e];
  }
  __syncthreads();
  int t = threadIdx.y * 8 + threadIdx.x, channel = blockIdx.x * 64 + t % 64;
  if (t >= 128 || channel >= C) return;
  float sum = 0;
  for (int lane = 0; lane < 32; lane++) sum += lanes[t / 64][lane][t % 64];
  (t < 64 ? first : second)[(wide)blockIdx.y * C + channel] = sum;
}

// dz = scale * inverse * (g - loss_scale * (dshift + normal * dscale) / rows) for the winner of each P x P window, and
// 0 for the others; g is dy times the slope of the activation `kind` after the normalisation of x.
template <int P>
__device__ void norm_pool_back(const Eight *x, const Eight *dy, const wide *winner, const float *mean,
                               const float *inverse, const float *scale, const float *shift, int kind,
                               const float *dshift, const float *dscale, float loss_scale, Eight *dz, int rows,
                               int width, int C, int size) {
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < size; i += gridDim.x * blockDim.x) {
    int chunks = C / 8, c = i % chunks * 8, column = i / chunks % width, row = i / chunks / width;  // row of all images
    float values[8], slopes[8];
    unpack(values, x[i]);
    unpack(slopes, dy[i]);
#pragma unroll
    for (int e = 0; e < 8; e++) {
      float normal = (values[e] - mean[c + e]) * inverse[c + e];
      float g = slopes[e] * steepness(shifted(normal, scale[c + e], shift[c + e]), kind);
      slopes[e] = scale[c + e] * inverse[c + e] * (g - loss_scale * (dshift[c + e] + normal * dscale[c + e]) / rows);
    }
    if (P == 1) {
      dz[i] = pack(slopes);
      continue;
    }
    unsigned_wide first = (unsigned_wide)winner[i];
#pragma unroll
    for (int p = 0; p < P * P; p++) {
#pragma unroll
      for (int e = 0; e < 8; e++) values[e] = (int)(first >> 8 * e & 255) == p ? slopes[e] : 0;
      dz[((wide)(row * P + p / P) * width * P + column * P + p % P) * chunks + c / 8] = pack(values);
    }
  }
}

#define NORM_POOL_BACK                                                                                                 \
  (const Eight *x, const Eight *dy, const wide *winner, const float *mean, const float *inverse, const float *scale,   \
   const float *shift, int kind, const float *dshift, const float *dscale, float loss_scale, Eight *dz, int rows,      \
   int width, int C, int size)
#define AS_GIVEN                                                                                                       \
  (x, dy, winner, mean, inverse, scale, shift, kind, dshift, dscale, loss_scale, dz, rows, width, C, size)

KERNEL norm_pool_back_1 NORM_POOL_BACK { norm_pool_back<1> AS_GIVEN; }
KERNEL norm_pool_back_2 NORM_POOL_BACK { norm_pool_back<2> AS_GIVEN; }

#endif
