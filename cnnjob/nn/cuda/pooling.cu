// ---- pooling, and the mean of several views -------------------------------------------------------------------------

// Maximum of each P x P window, with W windows per row, and its index in the window: the first of equals.
KERNEL max_pool(const float *x, wide x_image, int x_row, float *y, wide y_image, int y_row, unsigned short *winner,
                int P, int W, int C, int images, int size) {
  EACH(n, images, e, size) {
    int c = e % C, j = e / C % W, i = e / (C * W);
    const float *window = x + n * x_image + (wide)i * P * x_row + j * P * C + c;
    float best = window[0];
    int first = 0;
    for (int p = 1; p < P * P; p++) {
      float value = window[(wide)(p / P) * x_row + p % P * C];
      if (value > best || value != value) {  // a NaN stays a NaN
        best = value;
        first = p;
      }
    }
    y[place(n, e, W * C, y_image, y_row)] = best;
    winner[(wide)n * size + e] = (unsigned short)first;
  }
}

// The gradient of each of height x width windows goes to its winner; pixels outside all windows get 0. W pixels per
// row.
KERNEL max_pool_back(const float *dy, wide dy_image, int dy_row, const unsigned short *winner, float *dx, wide dx_image,
                     int dx_row, int P, int W, int C, int height, int width, int images, int size) {
  EACH(n, images, e, size) {
    int c = e % C, x = e / C % W, y = e / (C * W), i = y / P, j = x / P;
    float slope = 0;
    if (i < height && j < width) {
      int first = winner[((wide)n * height + i) * width * C + j * C + c];
      if (first == y % P * P + x % P) slope = dy[n * dy_image + (wide)i * dy_row + j * C + c];
    }
    dx[place(n, e, W * C, dx_image, dx_row)] = slope;
  }
}

// Mean of each channel of image blockIdx.x over the pixels. Block 32 x LANES.
KERNEL global_mean(const float *x, wide image, int row, float *y, int W, int C, int pixels) {
  __shared__ float lanes[LANES][32];
  int c = blockIdx.y * 32 + threadIdx.x;
  float sum = 0;
  if (c < C)
    for (int p = threadIdx.y; p < pixels; p += LANES)
      sum += x[blockIdx.x * image + (wide)(p / W) * row + p % W * C + c];
  lanes[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y == 0 && c < C) {
    for (int lane = 1; lane < LANES; lane++) sum += lanes[lane][threadIdx.x];
    y[(wide)blockIdx.x * C + c] = sum / pixels;
  }
}

KERNEL global_mean_back(const float *dy, float *dx, wide image, int row, int length, int C, int pixels, int images,
                        int size) {
  EACH(n, images, i, size) dx[place(n, i, length, image, row)] = dy[(wide)n * C + i % C] / pixels;
}

// Maximum of each channel likewise, and the first pixel that has it.
KERNEL global_max(const float *x, wide image, int row, float *y, int *first, int W, int C, int pixels) {
  __shared__ float values[LANES][32];
  __shared__ int places[LANES][32];
  int c = blockIdx.y * 32 + threadIdx.x, at = threadIdx.y < pixels ? threadIdx.y : 0;
  const float *channel = x + blockIdx.x * image + c;
  float best = c < C ? channel[(wide)(at / W) * row + at % W * C] : 0;
  if (c < C)
    for (int p = at; p < pixels; p += LANES) {
      float value = channel[(wide)(p / W) * row + p % W * C];
      if (value > best || value != value) {
        best = value;
        at = p;
      }
    }
  values[threadIdx.y][threadIdx.x] = best;
  places[threadIdx.y][threadIdx.x] = at;
  __syncthreads();
  if (threadIdx.y == 0 && c < C) {
    for (int lane = 1; lane < LANES; lane++) {
      float value = values[lane][threadIdx.x];
      int p = places[lane][threadIdx.x];
      if (value > best || value != value || (value == best && p < at)) {
        best = value;
        at = p;
      }
    }
    y[(wide)blockIdx.x * C + c] = best;
    first[(wide)blockIdx.x * C + c] = at;
  }
}

KERNEL global_max_back(const float *dy, const int *first, float *dx, wide image, int row, int length, int C, int images,
                       int size) {
  EACH(n, images, i, size) {
    wide channel = (wide)n * C + i % C;
    dx[place(n, i, length, image, row)] = first[channel] == i / C ? dy[channel] : 0;
  }
}

// mean = share * logits in the first view, mean += share * logits in the others; all (N, K).
KERNEL add_share(const float *logits, float *mean, float share, int begins, int images, int size) {
  EACH(n, images, k, size) {
    wide at = (wide)n * size + k;
    mean[at] = (begins ? 0 : mean[at]) + share * logits[at];
  }
}
