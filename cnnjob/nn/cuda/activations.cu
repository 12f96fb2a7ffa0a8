// ---- activations, and the sum of a residual block -------------------------------------------------------------------

enum { LINEAR, RELU, GELU, SILU };

// Distribution function of the standard normal distribution.
__device__ float normal_cdf(float u) {
  return 0.5f + 0.5f * erff(u * 0.70710678f);
}

__device__ float sigmoid(float u) {
  return 1 / (1 + expf(-u));
}

__device__ float activated(float u, int kind) {
  if (kind == GELU) return u * normal_cdf(u);
  if (kind == SILU) return u * sigmoid(u);
  return kind == RELU && u <= 0 ? 0 : u;
}

// Derivative of the activation.
__device__ float steepness(float u, int kind) {
  if (kind == GELU) return normal_cdf(u) + u * 0.39894228f * expf(-0.5f * u * u);
  if (kind == SILU) return sigmoid(u) * (1 + u * (1 - sigmoid(u)));
  return kind == RELU && !(u > 0) ? 0 : 1;
}

// y = activation(a + b), or activation(a) with one term; each array has its own strides.
KERNEL activate(const float *a, wide a_image, int a_row, const float *b, wide b_image, int b_row, int terms, float *y,
                wide y_image, int y_row, int length, int kind, int images, int size) {
  EACH(n, images, i, size) {
    float u = a[place(n, i, length, a_image, a_row)];
    if (terms > 1) u += b[place(n, i, length, b_image, b_row)];
    y[place(n, i, length, y_image, y_row)] = activated(u, kind);
  }
}

KERNEL activate_back(const float *a, wide a_image, int a_row, const float *b, wide b_image, int b_row, int terms,
                     const float *dy, wide dy_image, int dy_row, float *du, wide du_image, int du_row, int length,
                     int kind, int images, int size) {
  EACH(n, images, i, size) {
    float u = a[place(n, i, length, a_image, a_row)];
    if (terms > 1) u += b[place(n, i, length, b_image, b_row)];
    du[place(n, i, length, du_image, du_row)] = dy[place(n, i, length, dy_image, dy_row)] * steepness(u, kind);
  }
}

// target += source
KERNEL accumulate(const float *source, wide s_image, int s_row, float *target, wide t_image, int t_row, int length,
                  int images, int size) {
  EACH(n, images, i, size)
    target[place(n, i, length, t_image, t_row)] += source[place(n, i, length, s_image, s_row)];
}
