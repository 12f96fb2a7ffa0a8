// ---- augmented batches ----------------------------------------------------------------------------------------------

enum { AS_IT_IS, BY_CHANCE, ALTERNATING };

// How many numbers a view has.
#define VIEW 5

// Draws the change of each image: flip (0 or 1), pixels down and to the right, and the row and column of the first pixel
// of a square to be cut out of an image of H x W pixels; see nn/pixels.py.
KERNEL draw_views(const wide *order, const wide *position, int *views, wide steps, unsigned seed, unsigned purpose,
                  int flip, int reach, int side, int H, int W, int images) {
  int n = blockIdx.x * blockDim.x + threadIdx.x;
  if (n >= images) return;
  unsigned number = (unsigned)order[position[0] * images + n];
  unsigned epoch = (unsigned)((position[1] - position[0]) / steps);
  unsigned once[4] = {number, flip == ALTERNATING ? 0 : epoch, 0, 0}, words[4] = {number, epoch, 0, 0};
  unsigned centre[4] = {number, epoch, 1, 0};
  philox(once, seed, purpose);
  philox(words, seed, purpose);
  philox(centre, seed, purpose);
  int flipped = (int)(once[0] >> 31), odd = flip == ALTERNATING ? epoch & 1 : 0;
  int *view = views + VIEW * n;
  view[0] = flip == AS_IT_IS ? 0 : flipped ^ odd;
  for (int axis = 1; axis < 3; axis++)
    view[axis] = (int)((2 * reach + 1) * (unsigned_wide)words[axis] >> 32) - reach;
  view[3] = (int)(H * (unsigned_wide)centre[0] >> 32) - side / 2;
  view[4] = (int)(W * (unsigned_wide)centre[1] >> 32) - side / 2;
}

// Maps a position outside a row of pixels to the pixel that is mirrored there; other positions stay.
__device__ int mirrored(int place, int size) {
  int inside = place < 0 ? -place : place;
  return inside < size ? inside : 2 * (size - 1) - inside;
}

// Value i of an image after its change. With `zeros`, gaps are filled with zeros instead of by reflection. A square of
// `side` pixels is cut out.
__device__ float changed(const unsigned char *pixels, const int *view, float scale, float shift, int i, int length,
                         int channels, int H, int W, int zeros, int side) {
  int y = i / length, x = i % length / channels, down = y - view[1], across = x - view[2];
  if (y >= view[3] && y < view[3] + side && x >= view[4] && x < view[4] + side) return 0;
  if (zeros && (down < 0 || down >= H || across < 0 || across >= W)) return scaled(0, scale, shift);
  down = mirrored(down, H);
  across = mirrored(across, W);
  if (view[0]) across = W - 1 - across;
  return scaled(pixels[(down * W + across) * channels + i % channels], scale, shift);
}

// Like gather, for images that are changed. If `mixes`, each image is mixed with the one before it: the image has its
// share of the result, and the one before it has the rest.
KERNEL gather_views(const unsigned char *pixels, const wide *order, const wide *position, const int *views,
                    const double *shares, const float *scale, const float *shift, float *x, wide image, int row,
                    int length, int channels, int zeros, int side, int mixes, int images, int size) {
  const wide *chosen = order + position[0] * images;
  int H = size / length, W = length / channels;
  float share = mixes ? (float)shares[position[0]] : 1, rest = mixes ? (float)(1 - shares[position[0]]) : 0;
  EACH(n, images, i, size) {
    float factor = scale[i % channels], added = shift[i % channels];
    float value = changed(pixels + chosen[n] * size, views + VIEW * n, factor, added, i, length, channels, H, W, zeros,
                          side);
    if (mixes) {
      int before = (n + images - 1) % images;
      float other = changed(pixels + chosen[before] * size, views + VIEW * before, factor, added, i, length, channels,
                            H, W, zeros, side);
      value = __fadd_rn(__fmul_rn(value, share), __fmul_rn(other, rest));  // as in NumPy
    }
    x[place(n, i, length, image, row)] = value;
  }
}
