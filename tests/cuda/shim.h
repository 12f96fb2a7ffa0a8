// Runs CUDA C on a CPU: g++ compiles kernels.cu after this header. Each thread of a block is a fiber of one thread of
// the host. Blocks, and the threads of a block between two barriers, run in an order that the caller chooses: a kernel
// whose result depends on it lacks a barrier, or writes where another block does. A barrier that not all threads of
// the block (or, for a shuffle, of the warp) reach at the same place is an error.
#pragma once
#include <math.h>
#include <setjmp.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <random>
#include <tuple>
#include <vector>

#define __global__
#define __device__ static inline
#define __shared__ static
#define __restrict__
#define __launch_bounds__(...)
#define __threadfence()

struct Index {
  unsigned x, y, z;
};
static Index threadIdx, blockIdx, blockDim, gridDim;

namespace shim {

constexpr unsigned WARP = 32;
constexpr size_t STACK_BYTES = 128 << 10;
enum Order { FORWARD, REVERSED, SHUFFLED };
enum Failure { NONE, SOME_THREADS_MISSED_A_BARRIER, THREADS_AT_DIFFERENT_BARRIERS, FAULT };

struct Fiber {
  std::unique_ptr<char[]> stack;
  ucontext_t start;
  jmp_buf place;
  bool begun = false, over = false;
  int barrier = 0;  // the line where it waits: of the block's barrier if positive, of the warp's if negative
  Index index;
};

static std::vector<Fiber> fibers;
static Fiber *running;
static jmp_buf scheduler;
static void (*kernel)(void **);
static void **arguments;
static double exchanged[1024];
static char fault[512];  // what a thread did that no GPU allows; such a thread goes back to the scheduler, for ever

// A fiber lives for ever: it runs one thread, gives control back, and runs another when it is resumed.
static void live() {
  for (;;) {
    kernel(arguments);
    running->over = true;
    if (!_setjmp(running->place)) _longjmp(scheduler, 1);
  }
}

static void resume(Fiber &fiber) {
  running = &fiber;
  threadIdx = fiber.index;
  if (_setjmp(scheduler)) return;
  if (fiber.begun) _longjmp(fiber.place, 1);
  fiber.begun = true;
  fiber.stack.reset(new char[STACK_BYTES]);
  getcontext(&fiber.start);
  fiber.start.uc_stack = {};
  fiber.start.uc_stack.ss_sp = fiber.stack.get();
  fiber.start.uc_stack.ss_size = STACK_BYTES;
  fiber.start.uc_link = nullptr;
  makecontext(&fiber.start, live, 0);
  setcontext(&fiber.start);
}

static void wait(int barrier) {
  Fiber *self = running;
  self->barrier = barrier;
  if (!_setjmp(self->place)) _longjmp(scheduler, 1);
}

static void arrange(std::vector<unsigned> &places, Order order, std::mt19937 &random) {
  if (order == REVERSED) std::reverse(places.begin(), places.end());
  if (order == SHUFFLED) std::shuffle(places.begin(), places.end(), random);
}

// Threads first .. last may go on when all of them wait at one barrier.
static Failure release(unsigned first, unsigned last, bool block) {
  unsigned waiting = 0, over = 0;
  int line = 0;
  bool same = true;
  for (unsigned t = first; t < last; t++) {
    int barrier = fibers[t].over ? 0 : fibers[t].barrier;
    over += fibers[t].over;
    if (!barrier || (barrier > 0) != block) continue;
    waiting++;
    same = same && (!line || line == barrier);
    line = barrier;
  }
  if (!waiting) return NONE;
  if (over) return SOME_THREADS_MISSED_A_BARRIER;
  if (waiting < last - first) return block ? NONE : THREADS_AT_DIFFERENT_BARRIERS;
  if (!same) return THREADS_AT_DIFFERENT_BARRIERS;
  for (unsigned t = first; t < last; t++) fibers[t].barrier = 0;
  return NONE;
}

static Failure run_block(unsigned threads, Order order, std::mt19937 &random) {
  if (fibers.size() < threads) fibers.resize(threads);
  std::vector<unsigned> places(threads);
  std::iota(places.begin(), places.end(), 0);
  for (unsigned t = 0; t < threads; t++) {
    fibers[t].over = false;
    fibers[t].barrier = 0;
    fibers[t].index = {t % blockDim.x, t / blockDim.x % blockDim.y, t / (blockDim.x * blockDim.y)};
  }
  arrange(places, order, random);
  for (;;) {
    if (order == SHUFFLED) arrange(places, order, random);
    bool ran = false, left = false;
    unsigned warp = 0;  // one warp runs for as long as it can: the others lag behind it as far as barriers let them
    for (unsigned t : places) {
      if (fibers[t].over || fibers[t].barrier || (ran && t / WARP != warp)) continue;
      warp = t / WARP;
      resume(fibers[t]);
      if (*fault) return FAULT;
      ran = true;
    }
    for (unsigned first = 0; first < threads; first += WARP)
      if (Failure failure = release(first, std::min(first + WARP, threads), false)) return failure;
    if (Failure failure = release(0, threads, true)) return failure;
    for (unsigned t = 0; t < threads; t++) left = left || !fibers[t].over;
    if (!left) return NONE;
    if (!ran) return THREADS_AT_DIFFERENT_BARRIERS;
  }
}

template <class... Arguments>
struct Unpacked {
  template <void (*function)(Arguments...), size_t... places>
  static void call(void **values, std::index_sequence<places...>) {
    function(*(std::remove_reference_t<Arguments> *)values[places]...);
  }
};

template <auto function>
struct Launch;

template <class... Arguments, void (*function)(Arguments...)>
struct Launch<function> {
  static void call(void **values) {
    Unpacked<Arguments...>::template call<function>(values, std::index_sequence_for<Arguments...>{});
  }
  static int count() { return sizeof...(Arguments); }
  static size_t size(int place) {
    size_t sizes[] = {sizeof(Arguments)...};
    return sizes[place];
  }
};

static int launch(void (*function)(void **), const unsigned *grid, const unsigned *block, void **values, int order) {
  kernel = function;
  arguments = values;
  *fault = 0;
  gridDim = {grid[0], grid[1], 1};
  blockDim = {block[0], block[1], 1};
  std::mt19937 random(order);
  std::vector<unsigned> blocks(grid[0] * grid[1]);
  std::iota(blocks.begin(), blocks.end(), 0);
  arrange(blocks, Order(order), random);
  for (unsigned number : blocks) {
    blockIdx = {number % grid[0], number / grid[0], 0};
    if (Failure failure = run_block(block[0] * block[1], Order(order), random)) {
      fibers.clear();  // their stacks hold what did not end
      return failure;
    }
  }
  return NONE;
}

template <class T>
static T exchange(T value, int other, int line) {
  unsigned self = running - fibers.data(), partner = self / WARP * WARP + (self % WARP ^ other);
  memcpy(&exchanged[self], &value, sizeof value);
  wait(-2 * line);
  T theirs;
  memcpy(&theirs, &exchanged[partner], sizeof theirs);
  wait(-2 * line - 1);
  return theirs;
}

}  // namespace shim

static unsigned atomicInc(unsigned *counter, unsigned most) {
  unsigned before = *counter;
  *counter = before >= most ? 0 : before + 1;
  return before;
}


#define EMULATED

// A float as the bits of a float16, to the nearest, of equally near ones the even; for what float16 can hold.
__device__ unsigned short half_bits(float x) {
  unsigned bits, sign;
  memcpy(&bits, &x, sizeof x);
  sign = bits >> 16 & 0x8000;
  if (fabsf(x) < 6.103515625e-05f) return sign | (unsigned)nearbyintf(fabsf(x) * 16777216);
  bits = (bits & 0x7fffffff) + 0xfff + (bits >> 13 & 1);
  return sign | (bits - (112 << 23)) >> 13;
}

__device__ float half_value(unsigned short bits) {
  int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  float x = exponent ? ldexpf(1024 + mantissa, exponent - 25) : ldexpf(mantissa, -24);
  if (exponent == 31) x = mantissa ? NAN : INFINITY;
  return bits & 0x8000 ? -x : x;
}

#define __fadd_rn(a, b) ((a) + (b))
#define __fmul_rn(a, b) ((a) * (b))
#define __syncthreads() shim::wait(__LINE__)
#define __shfl_xor_sync(mask, value, other) shim::exchange(value, other, __LINE__)

// ---- tensor cores, and copies that arrive later ---------------------------------------------------------------------

struct Eight;
#define DYNAMIC_SHARED(name) alignas(128) static Eight name[232448 / 16]

__device__ unsigned half_pair(float low, float high) {
  auto bits = [](float x) { return fabsf(x) < 65520 ? half_bits(x) : x != x ? 0x7fff : x < 0 ? 0xfc00 : 0x7c00; };
  return bits(low) | (unsigned)bits(high) << 16;
}

namespace shim {

struct Copy {
  void *target;
  const void *source;  // null: zeros arrive
  int group;
};

// What a lane gives to the other lanes of its warp. There are two, used in turn: a lane may begin the next exchange
// while another still reads this one, but no lane is two exchanges ahead.
struct Given {
  const void *row;
  float a[8], b[4];
};

struct Lane {
  Given given[2];
  int exchanges = 0, groups = 0;
  std::vector<Copy> copies;  // those that have not arrived
};
static Lane lanes[1024];

static Lane &own_lane() { return lanes[running - fibers.data()]; }

// Waits for the warp; returns its 32 lanes.
static Lane *exchange_lanes() {
  own_lane().exchanges++;
  wait(-1000000);
  return lanes + (running - fibers.data()) / WARP * WARP;
}

// Until a copy is awaited, its target holds NaNs; a barrier alone does not make it arrive.
static void copy_later(void *target, const void *source) {
  memset(target, 0xff, 16);
  own_lane().copies.push_back({target, source, own_lane().groups});
}

static void await(int left) {
  Lane &lane = own_lane();
  size_t kept = 0;
  for (Copy copy : lane.copies) {
    if (copy.group >= lane.groups - left) lane.copies[kept++] = copy;
    else if (copy.source) memcpy(copy.target, copy.source, 16);
    else memset(copy.target, 0, 16);
  }
  lane.copies.resize(kept);
}

static float from_half(unsigned short bits) {
  static const std::vector<float> values = [] {
    std::vector<float> all(65536);
    for (int b = 0; b < 65536; b++) all[b] = half_value(b);
    return all;
  }();
  return values[bits];
}

static void load_matrices(unsigned *matrices, const void *row, bool transposed) {
  int turn = own_lane().exchanges % 2, place = (running - fibers.data()) % WARP;
  own_lane().given[turn].row = row;
  Lane *warp = exchange_lanes();
  for (int i = 0; i < 4; i++) {
    unsigned short pair[2];
    for (int e = 0; e < 2; e++) {
      int r = transposed ? place % 4 * 2 + e : place / 4, c = transposed ? place / 4 : place % 4 * 2 + e;
      memcpy(&pair[e], (const char *)warp[8 * i + r].given[turn].row + 2 * c, 2);
    }
    matrices[i] = pair[0] | (unsigned)pair[1] << 16;
  }
}

// Each sum goes through the depth in order, in float32; those of a GPU are at least as exact.
static void multiply_add(float *sums, const unsigned *a, const unsigned *b) {
  int turn = own_lane().exchanges % 2, place = (running - fibers.data()) % WARP;
  Given &given = own_lane().given[turn];
  for (int e = 0; e < 8; e++) given.a[e] = from_half(a[e / 2] >> e % 2 * 16);
  for (int e = 0; e < 4; e++) given.b[e] = from_half(b[e / 2] >> e % 2 * 16);
  Lane *warp = exchange_lanes();
  for (int k = 0; k < 16; k++) {
    const Given &left = warp[place / 4 * 4 + k % 8 / 2].given[turn];
    float upper = left.a[k / 8 * 4 + k % 2], lower = left.a[k / 8 * 4 + 2 + k % 2];
    for (int e = 0; e < 2; e++) {
      float right = warp[(place % 4 * 2 + e) * 4 + k % 8 / 2].given[turn].b[k / 8 * 2 + k % 2];
      sums[e] += upper * right;
      sums[2 + e] += lower * right;
    }
  }
}

}  // namespace shim

template <bool IN_L1>
__device__ void copy_chunk(Eight *shared, const void *global, bool exists) {
  shim::copy_later(shared, exists ? global : nullptr);
}
__device__ void end_copy_group() { shim::own_lane().groups++; }
template <int LEFT>
__device__ void await_copies() { shim::await(LEFT); }
template <bool TRANSPOSED>
__device__ void load_matrices(unsigned *matrices, const Eight *row) {
  shim::load_matrices(matrices, row, TRANSPOSED);
}
__device__ void multiply_add(float *sums, const unsigned *a, const unsigned *b) { shim::multiply_add(sums, a, b); }
