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
#define __launch_bounds__(threads)
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
    for (unsigned t : places) {
      if (fibers[t].over || fibers[t].barrier) continue;
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
