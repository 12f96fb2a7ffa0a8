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

// factor = a I + b gram + factor, all (side, side)
KERNEL muon_factor(float *factor, const float *gram, float a, float b, int side) {
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < side * side; i += gridDim.x * blockDim.x)
    factor[i] += b * gram[i] + (i / side == i % side ? a : 0);
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
