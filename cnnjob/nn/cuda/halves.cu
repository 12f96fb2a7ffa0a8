// ---- float16 factors of matrix products -----------------------------------------------------------------------------

#ifndef EMULATED  // on a CPU, tests/cuda/shim.h defines these two
__device__ unsigned short half_bits(float x) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}

__device__ float half_value(unsigned short bits) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
  return x;
}
#endif

struct Half {
  unsigned short bits;
};

__device__ float number(Half x) {
  return half_value(x.bits);
}

// A value that is too large becomes NaN, not infinity: ReLU would hide a negative infinity, while a NaN reaches the
// loss.
__device__ void put(Half &target, float x) {
  target.bits = fabsf(x) < 65520 ? half_bits(x) : 0x7e00;
}

// y = factor * x, where the rows of y start `row` values apart.
KERNEL halve(const float *x, Half *y, int row, float factor, int images, int size) {
  EACH(n, images, i, size) put(y[(wide)n * row + i], factor * x[(wide)n * size + i]);
}

KERNEL im2col_half(const float *x, wide image, int row, Half *columns, int K, int S, int C, int width, int pitch,
                   int images, int size) {
  to_columns(x, image, row, columns, K, S, C, width, pitch, images, size);
}

KERNEL col2im_half(const Half *columns, float factor, float *dx, wide image, int row, int K, int S, int pad, int C,
                   int W, int height, int width, int pitch, int images, int size) {
  to_image(columns, factor, dx, image, row, K, S, pad, C, W, height, width, pitch, images, size);
}
