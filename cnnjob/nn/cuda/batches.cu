// ---- augmented batches ----------------------------------------------------------------------------------------------

enum { AS_IT_IS, BY_CHANCE, ALTERNATING };

// Draws the change of each image: flip (0 or 1), and pixels down and to the right; see nn/pixels.py.
KERNEL draw_views(const wide *order, const wide *position, int *views, wide steps, unsigned seed, unsigned purpose,
                  int flip, int reach, int images) {
  int n = blockIdx.x * blockDim.x + threadIdx.x;
  if (n >= images) return;
  unsigned number = (unsigned)order[position[0] * images + n];
  unsigned epoch = (unsigned)((position[1] - position[0]) / steps);
  unsigned once[4] = {number, flip == ALTERNATING ? 0 : epoch, 0, 0}, words[4] = {number, epoch, 0, 0};
  philox(once, seed, purpose);
  philox(words, seed, purpose);
  int flipped = (int)(once[0] >> 31), odd = flip == ALTERNATING ? epoch & 1 : 0;
  views[3 * n] = flip == AS_IT_IS ? 0 : flipped ^ odd;
  for (int axis = 1; axis < 3; axis++)
    views[3 * n + axis] = (int)((2 * reach + 1) * (unsigned_wide)words[axis] >> 32) - reach;
}

// Maps a position outside a row of pixels to the pixel that is mirrored there; other positions stay.
__device__ int mirrored(int place, int size) {
  int inside = place < 0 ? -place : place;
  return inside < size ? inside : 2 * (size - 1) - inside;
}

// Like gather, for images that are flipped or moved.
KERNEL gather_views(const unsigned char *pixels, const wide *order, const wide *position, const int *views,
                    const float *scale, const float *shift, float *x, wide image, int row, int length, int channels,
                    int images, int size) {
  const wide *chosen = order + position[0] * images;
  int H = size / length, W = length / channels;
  EACH(n, images, i, size) {
    const int *view = views + 3 * n;
    int down = mirrored(i / length - view[1], H), across = mirrored(i % length / channels - view[2], W);
    if (view[0]) across = W - 1 - across;
    float pixel = pixels[chosen[n] * size + (down * W + across) * channels + i % channels];
    x[place(n, i, length, image, row)] = scaled(pixel, scale[i % channels], shift[i % channels]);
  }
}
