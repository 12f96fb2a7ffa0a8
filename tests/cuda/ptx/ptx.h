// The meaning of PTX instructions, for the C++ that translation.py makes of them. Registers hold bits: `as` gives them a type, and
// `bits` takes it away again. Operations are named as the instructions, with an underscore; numbers of sections are those
// of "PTX ISA" (NVIDIA, version 9).
#pragma once
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include <limits>
#include <type_traits>

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using s8 = int8_t;
using s16 = int16_t;
using s32 = int32_t;
using s64 = int64_t;
using b8 = u8;
using b16 = u16;
using b32 = u32;
using b64 = u64;
using f32 = float;
using f64 = double;
using pred = bool;

template <class T, class X>
static inline T as(X x) {
  if constexpr (std::is_floating_point_v<T>) {
    std::conditional_t<sizeof(T) == 4, u32, u64> bits = x;
    T value;
    memcpy(&value, &bits, sizeof value);
    return value;
  } else {
    return T(x);
  }
}

template <class T>
static inline auto bits(T x) {
  if constexpr (std::is_floating_point_v<T>) {
    std::conditional_t<sizeof(T) == 4, u32, u64> bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
  } else {
    return x;
  }
}

// ---- threads and memory (ptx.cpp) -------------------------------------------------------------------------------------

struct Three {
  u32 x, y, z;
};

// The special registers of a thread.
struct Thread {
  Three tid, ntid, ctaid, nctaid;
  u32 laneid;
};

Thread begin();

// Ends the launch with a message that names the kernel, the instruction and the thread.
[[noreturn]] void fault(const char *instruction, const char *format, ...);

int run(void (*kernel)(void **), const char *name, u32 shared_bytes, bool dynamic, u32 most_threads, const unsigned *grid,
        const unsigned *block, void **values, int order);

// Where `size` bytes of shared memory lie. Size must divide the address; all threads' accesses are judged together.
char *shared_at(u32 address, u32 size, bool write, const char *instruction);
// The same for what is written to the GPU's memory.
char *stored_at(u64 address, u32 size, const char *instruction);
u32 atomic_inc(u64 address, u32 most, const char *instruction);
// The same for an address of any memory, and such addresses of shared memory.
char *generic_at(u64 address, u32 size, bool write, const char *instruction);
u64 to_generic(u32 address);
u32 to_shared(u64 address, const char *instruction);

static inline char *global_at(u64 address, u32 size, const char *instruction) {
  if (address % size) fault(instruction, "the address is not a multiple of %u (it is 0x%llx)", size, address);
  return (char *)address;
}

template <class T>
static inline T load(const char *from) {
  T value;
  memcpy(&value, from, sizeof value);
  return value;
}

template <class T>
static inline void store(char *to, T value) {
  memcpy(to, &value, sizeof value);
}

// Barriers of the block have numbers from 1 in each kernel; instructions of a warp have negative ones.
void barrier(int number);
void warp_barrier(int number);
u32 shuffle(char kind, bool *inside, u32 value, u32 b, u32 c, int number);
u32 vote(bool value, int number);
template <int COUNT, bool TURNED>
void load_matrices(u32 *m, u32 address, const char *instruction, int number);
template <class Element, int K>
void multiply_add(u32 *d, const u32 *a, const u32 *b, int number);
void copy_async(u32 shared, u64 global, u32 size, u32 from_source, const char *instruction);
void commit_copies();
void await_copies(u32 left);
void await_all_copies();

static inline void all_lanes(u32 mask, const char *instruction) {
  if (mask != 0xffffffff) fault(instruction, "the mask is not that of all lanes (it is 0x%x)", mask);
}

// ---- floating point (9.7.3, 9.7.4) --------------------------------------------------------------------------------------

// What .ftz does to operands and results.
static inline f32 flush(f32 x) {
  return fabsf(x) < FLT_MIN ? copysignf(0, x) : x;
}

static inline f32 saturate(f32 x) {
  return x > 0 ? x < 1 ? x : 1 : 0;  // NaN becomes 0
}

static inline f32 fma_(f32 a, f32 b, f32 c) {
  return fmaf(a, b, c);
}

static inline f64 fma_(f64 a, f64 b, f64 c) {
  return fma(a, b, c);
}

// Rounded down (m), up (p) or towards zero (z). The product is exact in float64, and the sum is exact with its error
// (Knuth 1998, "Seminumerical Algorithms", 4.2.2, theorem B).
static inline f32 fma_toward(char direction, f32 a, f32 b, f32 c) {
  f64 product = (f64)a * b, sum = product + c, part = sum - product, error = (product - (sum - part)) + (c - part);
  f32 nearest = (f32)sum;
  f64 beyond = (sum - nearest) + error;  // how far the exact result lies above it
  if (direction == 'z') direction = sum > 0 ? 'm' : 'p';
  if (direction == 'm' && beyond < 0) return nextafterf(nearest, -INFINITY);
  if (direction == 'p' && beyond > 0) return nextafterf(nearest, INFINITY);
  return nearest;
}

static inline f32 add_toward(char direction, f32 a, f32 b) {
  return fma_toward(direction, a, 1, b);
}

static inline f32 sub_toward(char direction, f32 a, f32 b) {
  return fma_toward(direction, a, 1, -b);
}

static inline f32 mul_toward(char direction, f32 a, f32 b) {
  return fma_toward(direction, a, b, -0.0f);
}

template <class T>
static inline T mul_(T a, T b) {
  return a * b;
}

template <class T>
static inline T copysign_(T sign, T of) {
  return copysign(of, sign);
}

// Of the approximations, whose results the manual only bounds, the exact results.
template <class T>
static inline T rcp_(T x) {
  return 1 / x;
}

template <class T>
static inline T sqrt_(T x) {
  return sqrt(x);
}

template <class T>
static inline T rsqrt_(T x) {
  return 1 / sqrt(x);
}

static inline f32 ex2_(f32 x) {
  return exp2f(x);
}

static inline f32 lg2_(f32 x) {
  return log2f(x);
}

static inline f32 sin_(f32 x) {
  return sinf(x);
}

static inline f32 cos_(f32 x) {
  return cosf(x);
}

static inline f32 tanh_(f32 x) {
  return tanhf(x);
}

// rcp.approx.ftz.f64 (9.7.3.14): neither the operand nor the result has more than the upper 32 bits.
static inline f64 rcp_gross(f64 x) {
  f64 result = 1 / as<f64>(bits(x) & 0xffffffff00000000);
  return result == 0 || fabs(result) < DBL_MIN ? copysign(0, x) : as<f64>(bits(result) & 0xffffffff00000000);
}

// ---- integers (9.7.1) and bits (9.7.8) ------------------------------------------------------------------------------------

template <class T>
using Unsigned = std::make_unsigned_t<T>;
template <class T>
constexpr u32 width = sizeof(T) * 8;
template <class T>
using Wide = std::conditional_t<std::is_signed_v<T>,
                                std::conditional_t<sizeof(T) == 2, s32, std::conditional_t<sizeof(T) == 4, s64, __int128>>,
                                std::conditional_t<sizeof(T) == 2, u32,
                                                   std::conditional_t<sizeof(T) == 4, u64, unsigned __int128>>>;

template <class T>
static inline T add_(T a, T b) {
  if constexpr (std::is_floating_point_v<T>) return a + b;
  else return T(Unsigned<T>(a) + Unsigned<T>(b));
}

template <class T>
static inline T sub_(T a, T b) {
  if constexpr (std::is_floating_point_v<T>) return a - b;
  else return T(Unsigned<T>(a) - Unsigned<T>(b));
}

template <class T>
static inline Wide<T> mul_wide(T a, T b) {
  return (Wide<T>)a * b;
}

template <class T>
static inline T mul_lo(T a, T b) {
  return T(mul_wide(a, b));
}

template <class T>
static inline T mul_hi(T a, T b) {
  return T(mul_wide(a, b) >> width<T>);
}

template <class T>
static inline T mad_lo(T a, T b, T c) {
  return add_(mul_lo(a, b), c);
}

template <class T>
static inline T mad_hi(T a, T b, T c) {
  return add_(mul_hi(a, b), c);
}

template <class T>
static inline Wide<T> mad_wide(T a, T b, Wide<T> c) {
  return add_(mul_wide(a, b), c);
}

// Integers' quotient; its instruction is named if there is none.
template <class T>
static inline T div_(T a, T b, const char *instruction) {
  if (b == 0) fault(instruction, "division by zero");
  return std::is_signed_v<T> && b == T(-1) ? sub_(T(0), a) : T(a / b);
}

template <class T>
static inline T rem_(T a, T b, const char *instruction) {
  if (b == 0) fault(instruction, "division by zero");
  return std::is_signed_v<T> && b == T(-1) ? 0 : T(a % b);
}

template <class T>
static inline T div_(T a, T b) {
  return a / b;
}

template <class T>
static inline T abs_(T x) {
  if constexpr (std::is_floating_point_v<T>) return fabs(x);
  else return x < 0 ? sub_(T(0), x) : x;
}

template <class T>
static inline T neg_(T x) {
  if constexpr (std::is_floating_point_v<T>) return -x;
  else return sub_(T(0), x);
}

// Of a number and NaN the number; -0 is below +0.
template <class T>
static inline T min_(T a, T b) {
  if constexpr (std::is_floating_point_v<T>)
    if (a != a || b != b || a == b) return a != a || (b == b && signbit(b)) ? b : a;
  return b < a ? b : a;
}

template <class T>
static inline T max_(T a, T b) {
  if constexpr (std::is_floating_point_v<T>)
    if (a != a || b != b || a == b) return a != a || (b == b && !signbit(b)) ? b : a;
  return b > a ? b : a;
}

template <class T>
static inline T and_(T a, T b) {
  return a & b;
}

template <class T>
static inline T or_(T a, T b) {
  return a | b;
}

template <class T>
static inline T xor_(T a, T b) {
  return a ^ b;
}

template <class T>
static inline T not_(T a) {
  if constexpr (std::is_same_v<T, bool>) return !a;
  else return ~a;
}

template <class T>
static inline T selp_(T a, T b, bool first) {
  return first ? a : b;
}

template <class T>
static inline T shl_(T a, u32 n) {
  return n < width<T> ? T(a << n) : T(0);
}

template <class T>
static inline T shr_(T a, u32 n) {
  if constexpr (std::is_signed_v<T>) return a >> (n < width<T> ? n : width<T> - 1);
  else return n < width<T> ? a >> n : 0;
}

// A shift of two words, of which one is kept: the upper to the left, the lower to the right.
static inline u32 shf_l(u32 low, u32 high, u32 n, bool wrap) {
  return ((u64)high << 32 | low) << (wrap ? n % 32 : n < 32 ? n : 32) >> 32;
}

static inline u32 shf_r(u32 low, u32 high, u32 n, bool wrap) {
  return ((u64)high << 32 | low) >> (wrap ? n % 32 : n < 32 ? n : 32);
}

template <class T>
static inline T bfe_(T a, u32 at, u32 length) {
  at &= 255;
  length &= 255;
  u32 last = at + length - 1 < width<T> ? at + length - 1 : width<T> - 1;
  bool sign = std::is_signed_v<T> && length && (Unsigned<T>(a) >> last & 1);
  Unsigned<T> found = 0;
  for (u32 i = 0; i < width<T>; i++)
    found |= Unsigned<T>(i < length && at + i < width<T> ? Unsigned<T>(a) >> (at + i) & 1 : sign) << i;
  return found;
}

template <class T>
static inline T bfi_(T a, T b, u32 at, u32 length) {
  at &= 255;
  length &= 255;
  for (u32 i = 0; i < length && at + i < width<T>; i++) b = (b & ~(T(1) << (at + i))) | (a >> i & 1) << (at + i);
  return b;
}

static inline u32 popc_(u64 a) {
  return __builtin_popcountll(a);
}

template <class T>
static inline u32 clz_(T a) {
  u32 zeros = 0;
  while (zeros < width<T> && !(a >> (width<T> - 1 - zeros) & 1)) zeros++;
  return zeros;
}

template <class T>
static inline T brev_(T a) {
  T turned = 0;
  for (u32 i = 0; i < width<T>; i++) turned |= (a >> i & 1) << (width<T> - 1 - i);
  return turned;
}

static inline u32 prmt_(u32 a, u32 b, u32 choice) {
  u64 both = (u64)b << 32 | a;
  u32 result = 0;
  for (int i = 0; i < 4; i++) {
    u32 chosen = choice >> 4 * i & 15, byte = both >> chosen % 8 * 8 & 255;
    if (chosen & 8) byte = byte & 128 ? 255 : 0;  // its sign
    result |= byte << 8 * i;
  }
  return result;
}

static inline u32 lop3_(u32 a, u32 b, u32 c, u32 table) {
  u32 result = 0;
  for (int i = 0; i < 8; i++)
    if (table >> i & 1) result |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  return result;
}

// ---- conversions (9.7.9.22) -----------------------------------------------------------------------------------------------

// The nearest value that T has; of an integral float (NaN is 0) or an integer.
template <class T, class X>
static inline T clamped(X x) {
  using Limits = std::numeric_limits<T>;
  if constexpr (std::is_floating_point_v<X>) {
    if (x != x) return 0;
    return x < (X)Limits::min() ? Limits::min() : x >= ldexp(X(1), Limits::digits) ? Limits::max() : T(x);
  } else {
    __int128 wide = x;
    return wide < Limits::min() ? Limits::min() : wide > Limits::max() ? Limits::max() : T(x);
  }
}

// A float as the bits of a float16, to the nearest, of equally near ones the even.
static inline u16 to_half(f32 x) {
  u32 all = bits(x), sign = all >> 16 & 0x8000;
  if (x != x) return 0x7fff;
  if (fabsf(x) >= 65520) return sign | 0x7c00;
  if (fabsf(x) < 6.103515625e-05f) return sign | (u32)nearbyintf(fabsf(x) * 16777216);
  return sign | ((all & 0x7fffffff) - (112 << 23) + 0xfff + (all >> 13 & 1)) >> 13;
}

static inline f32 from_half(u16 half) {
  u32 rest = half & 0x7fff, sign = (half & 0x8000) << 16;
  if (rest >= 0x7c00) return as<f32>(sign | 0x7f800000 | (rest & 0x3ff) << 13);
  return as<f32>(bits(as<f32>(rest << 13) * 0x1p112f) | sign);
}

static inline u32 to_halves(f32 high, f32 low) {
  return (u32)to_half(high) << 16 | to_half(low);
}

// To the nearest with 10 bits after the point, of equally near ones the one away from zero.
static inline u32 to_tf32(f32 x) {
  return isfinite(x) ? (bits(x) + 0x1000) & 0xffffe000 : bits(x);
}
