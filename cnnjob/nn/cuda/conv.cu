// ---- convolution: K kernel side, S stride, P pooling side, C channels, F filters -----------------------------------

// The values of the matrix are float, or Half (halves.cu).
__device__ float number(float x) {
  return x;
}

__device__ void put(float &target, float x) {
  target = x;
}

// Row (n, i, j) of the matrix holds the K*K*C values that output (i, j) of image n depends on, and then nothing up to
// its length `pitch`. x includes its border.
template <class Value>
__device__ void to_columns(const float *x, wide image, int row, Value *columns, int K, int S, int C, int width,
                           int pitch, int images, int size) {
  EACH(n, images, e, size) {
    int output = e / pitch, tap = e % pitch, c = tap % C, m = tap / C % K, k = tap / C / K;
    if (k >= K) continue;
    int y = output / width * S + k, x0 = output % width * S + m;
    put(columns[(wide)n * size + e], x[n * image + (wide)y * row + x0 * C + c]);
  }
}

// The transpose: the gradient of a pixel is the sum over the elements of the matrix that it was copied to, tap by tap.
template <class Value>
__device__ void to_image(const Value *columns, float factor, float *dx, wide image, int row, int K, int S, int pad,
                         int C, int W, int height, int width, int pitch, int images, int size) {
  EACH(n, images, e, size) {
    int c = e % C, x = e / C % W, y = e / (C * W);
    const Value *taps = columns + (wide)n * height * width * pitch + c;
    float sum = 0;
    for (int k = 0; k < K; k++) {
      int i = y + pad - k;
      if (i < 0 || i % S || i / S >= height) continue;
      for (int m = 0; m < K; m++) {
        int j = x + pad - m;
        if (j < 0 || j % S || j / S >= width) continue;
        sum += number(taps[((wide)(i / S) * width + j / S) * pitch + (k * K + m) * C]);
      }
    }
    dx[n * image + (wide)y * row + x * C + c] = factor * sum;
  }
}

KERNEL im2col(const float *x, wide image, int row, float *columns, int K, int S, int C, int width, int pitch,
              int images, int size) {
  to_columns(x, image, row, columns, K, S, C, width, pitch, images, size);
}

KERNEL col2im(const float *columns, float factor, float *dx, wide image, int row, int K, int S, int pad, int C, int W,
              int height, int width, int pitch, int images, int size) {
  to_image(columns, factor, dx, image, row, K, S, pad, C, W, height, width, pitch, images, size);
}

// Start of the P x P window of pooled value e = (i, j, f) in an image with P*W outputs per row.
__device__ wide window(int e, int P, int W, int F) {
  int f = e % F, j = e / F % W, i = e / (F * W);
  return ((wide)i * P * W * P + j * P) * F + f;
}

__device__ wide within(int p, int P, int W, int F) {
  return ((wide)(p / P) * W * P + p % P) * F;
}

// y = activation(max of the window + bias). The winner is the index of the maximum: the first of equals, compared
// before the bias is added.
template <class Code>
__device__ void pool(const float *z, const float *bias, float *y, wide image, int row, Code *winner, int P, int W, int F,
                     int relu, int images, int size) {
  EACH(n, images, e, size) {
    const float *values = z + (wide)n * size * P * P + window(e, P, W, F);
    float best = values[0];
    int first = 0;
    for (int p = 1; p < P * P; p++) {
      float value = values[within(p, P, W, F)];
      if (value > best || value != value) {  // a NaN stays a NaN
        best = value;
        first = p;
      }
    }
    float out = best + bias[e % F];
    y[place(n, e, W * F, image, row)] = relu && out <= 0 ? 0 : out;
    winner[(wide)n * size + e] = (Code)first;
  }
}

// The gradient before the pooling: the whole gradient of a window goes to its winner.
template <class Code>
__device__ void unpool(const float *slope, const Code *winner, float *dz, int P, int W, int F, int images, int size) {
  EACH(n, images, e, size) {
    float *values = dz + (wide)n * size * P * P + window(e, P, W, F);
    int first = winner[(wide)n * size + e];
    float share = slope[(wide)n * size + e];
    for (int p = 0; p < P * P; p++) values[within(p, P, W, F)] = p == first ? share : 0;
  }
}

KERNEL pool_byte(const float *z, const float *bias, float *y, wide image, int row, unsigned char *winner, int P, int W,
                 int F, int relu, int images, int size) {
  pool(z, bias, y, image, row, winner, P, W, F, relu, images, size);
}

KERNEL pool_short(const float *z, const float *bias, float *y, wide image, int row, unsigned short *winner, int P, int W,
                  int F, int relu, int images, int size) {
  pool(z, bias, y, image, row, winner, P, W, F, relu, images, size);
}

KERNEL unpool_byte(const float *slope, const unsigned char *winner, float *dz, int P, int W, int F, int images,
                   int size) {
  unpool(slope, winner, dz, P, W, F, images, size);
}

KERNEL unpool_short(const float *slope, const unsigned short *winner, float *dz, int P, int W, int F, int images,
                    int size) {
  unpool(slope, winner, dz, P, W, F, images, size);
}
