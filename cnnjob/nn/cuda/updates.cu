// ---- update of the flat buffers: one piece per block ----------------------------------------------------------------
//
// The last block of the step's last kernel advances the position, after all blocks have read it.
// A piece starts at `starts` and has `counts` values; `factors` scale the learning rate, `decays` are the weight decay.
// `drops` are the amounts by which the momentum, or beta1, is less than its setting in each step.

// g += decay w, v = momentum v + g, w -= rate v. Nesterov momentum: w -= rate (g + momentum v). Decoupled decay:
// w *= 1 - rate decay, and g unchanged. Without momentum there is no v, and w -= rate g.
KERNEL sgd(float *weights, const float *gradients, float *velocity, const wide *starts, const int *counts,
           const double *factors, const float *decays, const double *rates, const double *drops, wide *position,
           unsigned *ticket, int last, double setting, int nesterov, int decoupled) {
  int piece = blockIdx.x;
  float momentum = (float)(setting - drops[position[0]]);
  float rate = (float)(rates[position[0]] * factors[piece]), decay = decays[piece];
  for (int i = threadIdx.x; i < counts[piece]; i += blockDim.x) {
    wide at = starts[piece] + i;
    float w = weights[at], g = gradients[at];
    if (decoupled) w *= 1 - rate * decay;
    else g += decay * w;
    float change = g;
    if (setting != 0) {
      velocity[at] = change = momentum * velocity[at] + g;
      if (nesterov) change = momentum * change + g;
    }
    weights[at] = w - rate * change;
  }
  if (last && is_last(ticket)) move_on(position);
}

// g += decay w, m = beta1 m + (1 - beta1) g, v = beta2 v + (1 - beta2) g g, w -= rate m' / (sqrt(v') + eps), with
// m' = m / (1 - beta1^t) and v' = v / (1 - beta2^t) at step t. Decoupled decay: w *= 1 - rate decay, and g unchanged.
KERNEL adam(float *weights, const float *gradients, float *first, float *second, const wide *starts, const int *counts,
            const double *factors, const float *decays, const double *rates, const double *drops, wide *position,
            unsigned *ticket, int last, double setting, double beta2, float eps, int decoupled) {
  double beta1 = setting - drops[position[0]];
  __shared__ float corrections[2];
  if (threadIdx.x == 0) {
    double t = (double)(position[1] + 1);
    corrections[0] = (float)(1 / (1 - pow(beta1, t)));
    corrections[1] = (float)(1 / sqrt(1 - pow(beta2, t)));
  }
  __syncthreads();
  int piece = blockIdx.x;
  float rate = (float)(rates[position[0]] * factors[piece]), decay = decays[piece];
  float keep1 = (float)beta1, take1 = (float)(1 - beta1), keep2 = (float)beta2, take2 = (float)(1 - beta2);
  for (int i = threadIdx.x; i < counts[piece]; i += blockDim.x) {
    wide at = starts[piece] + i;
    float w = weights[at], g = gradients[at];
    if (decoupled) w *= 1 - rate * decay;
    else g += decay * w;
    float m = first[at] = keep1 * first[at] + take1 * g;
    float v = second[at] = keep2 * second[at] + take2 * (g * g);
    float change = rate * corrections[0] * m / (sqrtf(v) * corrections[1] + eps);
    weights[at] = w - change;
  }
  if (last && is_last(ticket)) move_on(position);
}

// slow += (1 - share) (fast - slow) and, if it resets, fast = slow. Nothing is done in steps with a share of -1.
KERNEL average(float *fast, float *slow, const double *shares, wide *position, unsigned *ticket, int last, int resets,
               wide size) {
  double share = shares[position[0]];
  if (share < 0) size = 0;
  for (wide i = blockIdx.x * blockDim.x + threadIdx.x; i < size; i += gridDim.x * blockDim.x) {
    slow[i] += (float)(1 - share) * (fast[i] - slow[i]);
    if (share == 0) slow[i] = fast[i];  // an exact copy
    if (resets) fast[i] = slow[i];
  }
  if (last && is_last(ticket)) move_on(position);
}

// ---- clipping of the gradients by their norm ------------------------------------------------------------------------

// sums[block] = the squares of the block's values, in double, where the square of no float overflows.
KERNEL add_squares(const float *values, double *sums, wide size) {
  double sum = 0;
  for (wide i = blockIdx.x * blockDim.x + threadIdx.x; i < size; i += gridDim.x * blockDim.x)
    sum += (double)values[i] * values[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// g *= bound / (norm + eps) if this is below 1; the norm is the root of the sum of `count` sums.
KERNEL clip(float *gradients, const double *sums, wide size, int count, double bound, double eps) {
  double sum = 0;
  for (int i = threadIdx.x; i < count; i += blockDim.x) sum += sums[i];
  double factor = bound / (sqrt(block_sum(sum)) + eps);
  if (!(factor < 1)) return;  // also if the norm is NaN
  for (wide i = blockIdx.x * blockDim.x + threadIdx.x; i < size; i += gridDim.x * blockDim.x)
    gradients[i] *= (float)factor;
}
