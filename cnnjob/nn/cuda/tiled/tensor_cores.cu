// ---- products of matrices of halves on the tensor cores (from sm_80 on) ---------------------------------------------
//
// A block of 4 x ACROSS or 2 x 1 warps computes a tile of a product; a warp computes 64 x 64 sums of it, in float32.
// DEPTH terms of each sum are added at a time: a stage in shared memory holds that much of both factors, in chunks of 8
// halves. Chunk c of row r is stored at position c ^ r % 8 of its row, so that eight rows of a chunk, and eight chunks
// of a row, are in different memory banks. Every sum has a fixed order.

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800

#define DEPTH 64
#ifndef WIDE_STAGES  // 3 stages of a wide tile take 144 KB of shared memory; device.py says how many a GPU has room for
#define WIDE_STAGES 3
#endif
#define STAGES (ACROSS > 1 ? WIDE_STAGES : 2)

struct alignas(16) Eight {
  unsigned pairs[4];
};

#ifndef EMULATED  // on a CPU, tests/cuda/shim.h defines these
#define DYNAMIC_SHARED(name) extern __shared__ Eight name[]

__device__ unsigned half_pair(float low, float high) {
  unsigned pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

__device__ unsigned shared_address(const void *shared) {
  return (unsigned)__cvta_generic_to_shared(shared);
}

// Starts copying 16 bytes to shared memory, or zeros. IN_L1: they are soon read again, so the L1 cache keeps them.
template <bool IN_L1>
__device__ void copy_chunk(Eight *shared, const void *global, bool exists) {
  unsigned address = shared_address(shared), size = exists ? 16 : 0;
  if (IN_L1)
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global), "r"(size) : "memory");
  else
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global), "r"(size) : "memory");
}

__device__ void end_copy_group() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until all copies of this thread are complete except those of the last LEFT groups.
template <int LEFT>
__device__ void await_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

// Loads four matrices of 8 x 8 halves; lane 8 i + r has the address of row r of matrix i.
template <bool TRANSPOSED>
__device__ void load_matrices(unsigned *matrices, const Eight *row) {
  if (TRANSPOSED)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
                 : "r"(shared_address(row)) : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
                 : "r"(shared_address(row)) : "memory");
}

// sums += a b, with a of 16 x 16 and b of 16 x 8.
__device__ void multiply_add(float *sums, const unsigned *a, const unsigned *b) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
               "{%0, %1, %2, %3};"
               : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

__device__ void unpack(float *values, Eight eight) {
#pragma unroll
  for (int e = 0; e < 4; e++) {
    values[2 * e] = half_value((unsigned short)eight.pairs[e]);
    values[2 * e + 1] = half_value((unsigned short)(eight.pairs[e] >> 16));
  }
}

__device__ Eight pack(const float *values) {
  Eight eight;
#pragma unroll
  for (int e = 0; e < 4; e++) eight.pairs[e] = half_pair(values[2 * e], values[2 * e + 1]);
  return eight;
}

// Position of a chunk in a factor whose rows have `chunks` chunks.
__device__ int spot(int row, int chunk, int chunks) {
  return row * chunks + (chunk ^ (row & 7));
}

// Adds a warp's products of one stage, from `row` and `column` of the tile. The first factor is stored as (rows,
// depth), or as (depth, rows) if TRANSPOSED; the second as (depth, columns).
template <int DOWN, int ACROSS, bool TRANSPOSED>
__device__ void multiply_stage(float (*sums)[8][4], const Eight *a, const Eight *b, int row, int column) {
  int lane = threadIdx.x % 32;
#pragma unroll
  for (int k = 0; k < DEPTH; k += 16) {
    unsigned left[4][4], right[8][2];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      int r = row + i * 16;
      if (TRANSPOSED)
        load_matrices<true>(left[i], a + spot(k + lane % 8 + lane / 16 * 8, r / 8 + lane / 8 % 2, DOWN * 8));
      else
        load_matrices<false>(left[i], a + spot(r + lane % 16, k / 8 + lane / 16, DEPTH / 8));
    }
#pragma unroll
    for (int j = 0; j < 8; j += 2)
      load_matrices<true>(right[j], b + spot(k + lane % 16, column / 8 + j + lane / 16, ACROSS * 8));
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
      for (int j = 0; j < 8; j++) multiply_add(sums[i][j], left[i], right[j]);
  }
}

// Adds the products of all steps; `load(a, b, step)` starts copying the factors of a step to a stage. While one step is
// multiplied, the copies of the next are under way.
template <int DOWN, int ACROSS, bool TRANSPOSED, class Load>
__device__ void multiply_tiles(float (*sums)[8][4], Eight *memory, int steps, Load load) {
  const int second = DOWN * DEPTH * 8, size = second + ACROSS * DEPTH * 8;
  int warp = threadIdx.x / 32;
#pragma unroll
  for (int step = 0; step < STAGES - 1; step++) {
    if (step) __syncthreads();  // `load` may have prepared this step, in shared memory, together with the one before
    if (step < steps) load(memory + step * size, memory + step * size + second, step);
    end_copy_group();
  }
  int reads = 0, writes = STAGES - 1;
  for (int step = 0; step < steps; step++) {
    await_copies<STAGES - 2>();
    __syncthreads();  // this step's factors have arrived, and no warp reads the stage that is overwritten next
    Eight *next = memory + writes * size, *now = memory + reads * size;
    if (step + STAGES - 1 < steps) load(next, next + second, step + STAGES - 1);
    end_copy_group();
    multiply_stage<DOWN, ACROSS, TRANSPOSED>(sums, now, now + second, warp / ACROSS * 64, warp % ACROSS * 64);
    if (++reads == STAGES) reads = 0;
    if (++writes == STAGES) writes = 0;
  }
  await_copies<0>();
  __syncthreads();
}

#endif
