// ---- Muon: matrices in pieces, one per block ------------------------------------------------------------------------
//
// A piece has `counts` values of the matrix `owners`. They begin at `starts` in the flat buffers, and at `places` in
// the buffers that hold all matrices. The pieces of matrix m are firsts[m] ... firsts[m + 1] - 1.

// The sum over the pieces of a piece's matrix, in a fixed order.
__device__ double matrix_sum(const double *sums, const int *owners, const int *firsts) {
  int owner = owners[blockIdx.x];
  double sum = 0;
  for (int piece = firsts[owner] + threadIdx.x; piece < firsts[owner + 1]; piece += blockDim.x) sum += sums[piece];
  return block_sum(sum);
}

// v = momentum v + g, and u = v or, with Nesterov momentum, g + momentum v; sums = the squares of each piece of u.
KERNEL muon_momentum(const float *gradients, float *velocity, float *updates, double *sums, const wide *starts,
                     const wide *places, const int *counts, float momentum, int nesterov) {
  int piece = blockIdx.x;
  double sum = 0;
  for (int i = threadIdx.x; i < counts[piece]; i += blockDim.x) {
    wide at = starts[piece] + i;
    float g = gradients[at];
    float v = velocity[at] = momentum * velocity[at] + g;
    float u = nesterov ? momentum * v + g : v;
    updates[places[piece] + i] = u;
    sum += (double)u * u;
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) sums[piece] = sum;
}

// u /= norm of its matrix + eps
KERNEL muon_normalise(float *updates, const double *sums, const wide *places, const int *counts, const int *owners,
                      const int *firsts, double eps) {
  int piece = blockIdx.x;
  float inverse = (float)(1 / (sqrt(matrix_sum(sums, owners, firsts)) + eps));
  for (int i = threadIdx.x; i < counts[piece]; i += blockDim.x) updates[places[piece] + i] *= inverse;
}

// A tile of 64 x 64 values of a product: where the matrices begin, the row and column of the tile, the sizes of the
// product, and the distances between values of each matrix.
struct Tile {
  wide a, b, out, row, column, rows, columns, depth, a_row, a_step, b_step, b_column, out_row, out_column;
};

#define STEP 16
#define PITCH 66  // columns of shared memory, for which neither the stores nor the loads have bank conflicts

// out = alpha a b + beta c + gamma I for the products of many matrices, each block a tile. c has the layout of `out`.
// Block 256: thread t has rows 2 (t / 16) + {0, 1, 32, 33}, and columns 2 (t % 16) + the same.
KERNEL muon_product(const float *a, const float *b, const float *c, float *out, const Tile *tiles, float alpha,
                    float beta, float gamma) {
  __shared__ float left[STEP][PITCH], right[STEP][PITCH];
  Tile tile = tiles[blockIdx.x];
  int t = threadIdx.x, down = t / 16 * 2, across = t % 16 * 2;
  float sums[4][4] = {};
  for (int first = 0; first < tile.depth; first += STEP) {
    for (int e = t; e < 64 * STEP; e += 256) {
      // Neighbouring threads read neighbouring values.
      int i = tile.a_step == 1 ? e / STEP : e % 64, k = tile.a_step == 1 ? e % STEP : e / 64;
      bool exists = tile.row + i < tile.rows && first + k < tile.depth;
      left[k][i] = exists ? a[tile.a + (tile.row + i) * tile.a_row + (first + k) * tile.a_step] : 0;
      int j = tile.b_step == 1 ? e / STEP : e % 64, m = tile.b_step == 1 ? e % STEP : e / 64;
      exists = tile.column + j < tile.columns && first + m < tile.depth;
      right[m][j] = exists ? b[tile.b + (first + m) * tile.b_step + (tile.column + j) * tile.b_column] : 0;
    }
    __syncthreads();
    for (int k = 0; k < STEP; k++) {
      Pair rows[2] = {*(Pair *)&left[k][down], *(Pair *)&left[k][down + 32]};
      Pair columns[2] = {*(Pair *)&right[k][across], *(Pair *)&right[k][across + 32]};
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
          sums[i][j] = fmaf(rows[i / 2].values[i % 2], columns[j / 2].values[j % 2], sums[i][j]);
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 4; i++)
#pragma unroll
    for (int j = 0; j < 4; j++) {
      wide row = tile.row + down + i / 2 * 32 + i % 2, column = tile.column + across + j / 2 * 32 + j % 2;
      if (row >= tile.rows || column >= tile.columns) continue;
      wide at = tile.out + row * tile.out_row + column * tile.out_column;
      float value = alpha * sums[i][j] + (row == column ? gamma : 0);
      out[at] = beta ? fmaf(beta, c[at], value) : value;
    }
}

// sums = the squares of each piece of the weights
KERNEL muon_squares(const float *weights, double *sums, const wide *starts, const int *counts) {
  double sum = 0;
  for (int i = threadIdx.x; i < counts[blockIdx.x]; i += blockDim.x) {
    float w = weights[starts[blockIdx.x] + i];
    sum += (double)w * w;
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// w *= 1 - rate decay, w -= rate scale u. With `norms`: first w *= norms / norm of its matrix, unless that norm is 0.
KERNEL muon_step(float *weights, const float *updates, const double *sums, const wide *starts, const wide *places,
                 const int *counts, const int *owners, const int *firsts, const double *norms, const double *factors,
                 const double *decays, const double *scales, const double *rates, const wide *position,
                 int normalise) {
  int piece = blockIdx.x, owner = owners[piece];
  double rate = rates[position[0]] * factors[owner], keep = 1 - rate * decays[owner];
  if (normalise) {
    double norm = sqrt(matrix_sum(sums, owners, firsts));
    if (norm > 0) keep *= norms[owner] / norm;
  }
  float kept = (float)keep, size = (float)(rate * scales[owner]);
  for (int i = threadIdx.x; i < counts[piece]; i += blockDim.x) {
    wide at = starts[piece] + i;
    weights[at] = weights[at] * kept - size * updates[places[piece] + i];
  }
}
