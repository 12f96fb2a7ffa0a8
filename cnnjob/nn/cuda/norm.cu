// ---- batch normalisation, and the activation after it ---------------------------------------------------------------
//
// An input of N x H x W x C is `rows` rows of C channels. A block sums `part` rows of 32 channels, the first of them
// row blockIdx.y * part; the results of the parts are combined in a fixed order.

// Number of values, their mean, and the sum of their squared deviations from it.
struct Moments {
  float count, mean, squares;
};

// Moments of the union of two sets of values (Chan, Golub & LeVeque 1983, eq. 2.1).
__device__ Moments together(Moments a, Moments b) {
  if (b.count == 0) return a;
  float count = a.count + b.count, share = b.count / count, apart = b.mean - a.mean;
  return {count, a.mean + apart * share, a.squares + b.squares + apart * apart * a.count * share};
}

// Moments of each channel over a part of the rows (Welford 1962). Block 32 x LANES.
KERNEL moments(const float *x, float *means, float *squares, wide rows, int C, wide part) {
  __shared__ Moments lanes[LANES][32];
  int c = blockIdx.x * 32 + threadIdx.x;
  wide first = blockIdx.y * part, last = first + part < rows ? first + part : rows;
  Moments own = {0, 0, 0};
  if (c < C)
    for (wide r = first + threadIdx.y; r < last; r += LANES) {
      float value = x[r * C + c], apart = value - own.mean;
      own.count += 1;
      own.mean += apart * (1 / own.count);
      own.squares += apart * (value - own.mean);
    }
  lanes[threadIdx.y][threadIdx.x] = own;
  __syncthreads();
  if (threadIdx.y == 0 && c < C) {
    for (int lane = 1; lane < LANES; lane++) own = together(own, lanes[lane][threadIdx.x]);
    means[(wide)blockIdx.y * C + c] = own.mean;
    squares[(wide)blockIdx.y * C + c] = own.squares;
  }
}

// Mean and 1 / sqrt(variance + eps) of a batch from its parts; updates the running statistics. Block: channels x lanes.
KERNEL batch_statistics(const float *means, const float *squares, wide rows, wide part, int parts, int C,
                        float *running_mean, float *running_variance, float momentum, float eps, float *mean,
                        float *inverse) {
  __shared__ Moments lanes[1024];
  int c = blockIdx.x * blockDim.x + threadIdx.x, at = threadIdx.y * blockDim.x + threadIdx.x;
  Moments own = {0, 0, 0};
  if (c < C)
    for (int p = threadIdx.y; p < parts; p += blockDim.y) {
      wide left = rows - p * part, from = (wide)p * C + c;
      own = together(own, {(float)(left < part ? left : part), means[from], squares[from]});
    }
  lanes[at] = own;
  __syncthreads();
  if (threadIdx.y == 0 && c < C) {
    for (unsigned lane = 1; lane < blockDim.y; lane++) own = together(own, lanes[lane * blockDim.x + threadIdx.x]);
    mean[c] = own.mean;
    inverse[c] = 1 / sqrtf(own.squares / rows + eps);
    running_mean[c] = (1 - momentum) * running_mean[c] + momentum * own.mean;
    float unbiased = own.squares / (rows > 1 ? rows - 1 : 1);
    running_variance[c] = (1 - momentum) * running_variance[c] + momentum * unbiased;
  }
}

// Mean and 1 / sqrt(variance + eps) of an evaluation.
KERNEL running_statistics(const float *running_mean, const float *running_variance, float eps, float *mean,
                          float *inverse, int C) {
  int c = blockIdx.x * blockDim.x + threadIdx.x;
  if (c >= C) return;
  mean[c] = running_mean[c];
  inverse[c] = 1 / sqrtf(running_variance[c] + eps);
}

// Input of the activation. Forward and backward must get the same bits, hence the explicit fused multiply-add.
__device__ float shifted(float normal, float scale, float shift) {
  return fmaf(normal, scale, shift);
}

// y = activation(scale * (x - mean) * inverse + shift)
KERNEL normalise(const float *x, const float *mean, const float *inverse, const float *scale, const float *shift,
                 float *y, wide image, int row, int length, int kind, int C, int images, int size) {
  EACH(n, images, i, size) {
    int c = i % C;
    float normal = (x[(wide)n * size + i] - mean[c]) * inverse[c];
    y[place(n, i, length, image, row)] = activated(shifted(normal, scale[c], shift[c]), kind);
  }
}

// Sums of g and of g * (x - mean) * inverse over a part, with g the gradient before the activation. The images have
// H x W pixels; dy may have a border. Block 32 x LANES.
KERNEL slope_sums(const float *x, const float *mean, const float *inverse, const float *scale, const float *shift,
                  const float *dy, wide image, int row, int kind, float *sums, float *products, wide rows, int H, int W,
                  int C, wide part) {
  __shared__ float lanes[2][LANES][32];
  int c = blockIdx.x * 32 + threadIdx.x;
  wide first = blockIdx.y * part, last = first + part < rows ? first + part : rows;
  wide r = first + threadIdx.y, n = r / (H * W);
  int i = (int)(r % (H * W)) / W, j = (int)(r % W);
  float sum = 0, product = 0;
  if (c < C)
    for (; r < last; r += LANES) {
      float normal = (x[r * C + c] - mean[c]) * inverse[c];
      float g = dy[n * image + (wide)i * row + j * C + c] * steepness(shifted(normal, scale[c], shift[c]), kind);
      sum += g;
      product += g * normal;
      for (j += LANES; j >= W; j -= W)
        if (++i == H) {
          i = 0;
          n++;
        }
    }
  lanes[0][threadIdx.y][threadIdx.x] = sum;
  lanes[1][threadIdx.y][threadIdx.x] = product;
  __syncthreads();
  if (threadIdx.y == 0 && c < C) {
    for (int lane = 1; lane < LANES; lane++) {
      sum += lanes[0][lane][threadIdx.x];
      product += lanes[1][lane][threadIdx.x];
    }
    sums[(wide)blockIdx.y * C + c] = sum;
    products[(wide)blockIdx.y * C + c] = product;
  }
}

// Gradients of shift and scale: factor times these sums over all parts. blockIdx.y selects one of the two. Block:
// channels x lanes.
KERNEL sum_parts(const float *sums, const float *products, float *of_sums, float *of_products, int parts, int C,
                 float factor) {
  __shared__ float lanes[1024];
  const float *values = blockIdx.y ? products : sums;
  int c = blockIdx.x * blockDim.x + threadIdx.x, at = threadIdx.y * blockDim.x + threadIdx.x;
  float sum = 0;
  if (c < C)
    for (int p = threadIdx.y; p < parts; p += blockDim.y) sum += values[(wide)p * C + c];
  lanes[at] = sum;
  __syncthreads();
  if (threadIdx.y == 0 && c < C) {
    for (unsigned lane = 1; lane < blockDim.y; lane++) sum += lanes[lane * blockDim.x + threadIdx.x];
    (blockIdx.y ? of_products : of_sums)[c] = factor * sum;
  }
}

// dx = scale * inverse * (g - (dshift + normal * dscale) / rows)
KERNEL normalise_back(const float *x, const float *mean, const float *inverse, const float *scale, const float *shift,
                      const float *dy, wide image, int row, int length, int kind, const float *dshift,
                      const float *dscale, float *dx, wide rows, int C, int images, int size) {
  EACH(n, images, i, size) {
    int c = i % C;
    float normal = (x[(wide)n * size + i] - mean[c]) * inverse[c];
    float g = dy[place(n, i, length, image, row)] * steepness(shifted(normal, scale[c], shift[c]), kind);
    dx[(wide)n * size + i] = scale[c] * inverse[c] * (g - (dshift[c] + normal * dscale[c]) / rows);
  }
}
