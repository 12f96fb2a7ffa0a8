// Threads and memory of kernels that translation.py made: shim.h runs the threads; here their accesses to shared memory are
// judged. Between two barriers of the block no byte may be accessed by two threads of which one writes; lanes of a warp
// are also ordered by the warp's barriers. A byte is not read before it was written, and a byte that an asynchronous copy
// writes is touched by nobody until its thread has waited for it, which then counts as that thread's write. An atomic
// tells other blocks of what the block has written: a barrier lies between it and what other threads of the block write.
#include "ptx.h"

#include <stdarg.h>
#include <stdio.h>

#include <string>
#include <unordered_map>

#include "../shim.h"

namespace {

constexpr u32 MOST_SHARED = 227 << 10, MOST_THREADS = 1024;

// The last accesses to a byte: when, counted in barriers of the block (of all launches) and of the warp, and by whom.
struct Write {
  u32 epoch;
  u16 synced, thread : 15, arriving : 1;
};
enum { SEVERAL_WARPS = 0xffff, SEVERAL_LANES = 0xffff };
struct Read {
  u32 epoch;
  u16 synced;
  u16 thread;
  u16 warp;
};
struct Cell {
  Write write;
  Read read;
};

struct Copy {
  u32 shared, size, from_source, group;
  u64 global;
};

struct State {
  u32 epoch;
  u16 synced;
  bool turn;  // which of two places a warp instruction uses: the other may not have been read by all lanes
  u32 stored;  // when it last wrote to the GPU's memory
  u32 group;
  std::vector<Copy> copies;
};

struct Fragment {
  f32 a[8], b[4];
};

alignas(1024) char memory[MOST_SHARED];
Cell words[MOST_SHARED / 4], bytes[MOST_SHARED];  // those of a word's bytes once a narrower access has split it
u32 split[MOST_SHARED / 4];                        // the first epoch of the block that split the word
State states[MOST_THREADS];
Fragment fragments[2][MOST_THREADS];
u64 given[2][MOST_THREADS];

u32 limit, dynamic_bytes, first_epoch, last_epoch, told;  // told: when a thread of the block last told other blocks, by an atomic
u32 teller;
Index current;
bool launched;
std::string planted;  // the kernel that lacks a barrier, and its number
int planted_number, skipped;

// Accesses to shared memory, for what is asked about them later (counts/banks.py). A thread's turn is how often it has been
// at an instruction of the block: lanes of a warp whose turns are the same are there together.
struct Access {
  const char *instruction;
  u32 block, thread, turn, size, address;
};
std::vector<Access> accesses;
std::unordered_map<const char *, u32> turns[MOST_THREADS];
bool recording;

u32 self() {
  return shim::running - shim::fibers.data();
}

void race(const char *instruction, const char *what, u32 address, u32 other) {
  char by[32] = "several threads";
  if (other < MOST_THREADS) snprintf(by, sizeof by, "thread %u", other);
  fault(instruction, "%s shared byte %u by %s without a barrier in between", what, address, by);
}

// Calls judge(cell, address) for the cells of some bytes.
template <class Judge>
void each_cell(u32 address, u32 size, Judge judge) {
  for (u32 at = address; at < address + size;) {
    u32 word = at / 4;
    if (size >= 4 && split[word] != first_epoch) {
      judge(words[word], at);
      at += 4;
      continue;
    }
    if (split[word] != first_epoch) {
      split[word] = first_epoch;
      std::fill_n(bytes + 4 * word, 4, words[word]);
    }
    judge(bytes[at], at);
    at++;
  }
}

void touch(u32 address, u32 size, bool write, const char *instruction) {
  u32 thread = self();
  u16 warp = thread / shim::WARP;
  State &state = states[thread];
  each_cell(address, size, [&](Cell &cell, u32 at) {
    Write &written = cell.write;
    Read &read = cell.read;
    if (written.epoch >= first_epoch && written.arriving)
      fault(instruction, "shared byte %u awaits an asynchronous copy of thread %u", at, written.thread);
    if (!write && written.epoch < first_epoch) fault(instruction, "nothing has been written to shared byte %u", at);
    if (written.epoch == state.epoch && written.thread != thread &&
        (written.thread / shim::WARP != warp || written.synced == state.synced))
      race(instruction, write ? "a write, after a write to" : "a read, after a write to", at, written.thread);
    bool is_new = read.epoch != state.epoch || (read.warp == warp && read.synced != state.synced);
    if (write) {
      if (!is_new && (read.warp != warp || read.thread != thread))
        race(instruction, "a write, after a read of", at, read.thread);
      written = {state.epoch, state.synced, (u16)thread, 0};
    } else if (is_new) {
      read = {state.epoch, state.synced, (u16)thread, warp};
    } else {
      if (read.warp != warp) read.warp = SEVERAL_WARPS;
      if (read.thread != thread) read.thread = SEVERAL_LANES;
    }
  });
}

// What each lane of the warp gives, when all have given it.
template <class T>
const T *collected(T (*places)[MOST_THREADS], const T &own, int number) {
  u32 thread = self();
  State &state = states[thread];
  T *all = places[state.turn = !state.turn];
  all[thread] = own;
  shim::wait(number);
  return all + thread / shim::WARP * shim::WARP;
}

}  // namespace

void fault(const char *instruction, const char *format, ...) {
  char what[256];
  va_list values;
  va_start(values, format);
  vsnprintf(what, sizeof what, format, values);
  va_end(values);
  snprintf(shim::fault, sizeof shim::fault, "%s: %s (block %u, %u, thread %u)", instruction, what, blockIdx.x, blockIdx.y,
           self());
  _longjmp(shim::scheduler, 1);
}

extern "C" const char *what_was_wrong() {
  return shim::fault;
}

// Plants a fault: a kernel does not wait at the barrier with this number (0 for none).
extern "C" void skip_barrier(const char *kernel, int number) {
  planted = kernel;
  planted_number = number;
}

extern "C" void record_accesses(bool begin) {
  recording = begin;
}

// The accesses since the last call.
extern "C" size_t take_accesses(const Access **first) {
  static std::vector<Access> taken;
  taken.swap(accesses);
  accesses.clear();
  *first = taken.data();
  return taken.size();
}

// How much dynamic shared memory the next launches have.
extern "C" void give_shared(u32 size) {
  dynamic_bytes = size;
}

int run(void (*function)(void **), const char *name, u32 shared_bytes, bool dynamic, u32 most_threads, const unsigned *grid,
        const unsigned *block, void **values, int order) {
  limit = shared_bytes + (dynamic ? dynamic_bytes : 0);
  launched = true;
  skipped = planted == name ? planted_number : 0;
  if (block[0] * block[1] > most_threads) {
    snprintf(shim::fault, sizeof shim::fault, "%u threads, where it is compiled for %u", block[0] * block[1], most_threads);
    return shim::FAULT;
  }
  if (limit > MOST_SHARED) {
    snprintf(shim::fault, sizeof shim::fault, "%u bytes of shared memory, of at most %u", limit, MOST_SHARED);
    return shim::FAULT;
  }
  return shim::launch(function, grid, block, values, order);
}

Thread begin() {
  if (launched || current.x != blockIdx.x || current.y != blockIdx.y) {
    first_epoch = ++last_epoch;
    current = blockIdx;
    launched = false;
  }
  states[self()] = {first_epoch};
  turns[self()].clear();
  auto three = [](Index index) { return Three{index.x, index.y, index.z}; };
  return {three(threadIdx), three(blockDim), three(blockIdx), three(gridDim), self() % shim::WARP};
}

char *shared_at(u32 address, u32 size, bool write, const char *instruction) {
  if (address % size) fault(instruction, "the address is not a multiple of %u (it is %u in shared memory)", size, address);
  if (address + size > limit || address + size < address)
    fault(instruction, "the address is outside of %u bytes of shared memory (it is %u)", limit, address);
  touch(address, size, write, instruction);
  if (recording)
    accesses.push_back({instruction, blockIdx.y * gridDim.x + blockIdx.x, self(), turns[self()][instruction]++, size, address});
  return memory + address;
}

char *generic_at(u64 address, u32 size, bool write, const char *instruction) {
  u64 place = address - (u64)memory;
  return place < MOST_SHARED ? shared_at(place, size, write, instruction) : global_at(address, size, instruction);
}

u64 to_generic(u32 address) {
  return (u64)memory + address;
}

u32 to_shared(u64 address, const char *instruction) {
  u64 place = address - (u64)memory;
  if (place >= MOST_SHARED) fault(instruction, "the address is not in shared memory (it is 0x%llx)", address);
  return place;
}

void unordered_store(const char *instruction, u32 thread) {
  fault(instruction, "no barrier between it and what thread %u does to memory that other blocks read", thread);
}

char *stored_at(u64 address, u32 size, const char *instruction) {
  if (told == states[self()].epoch && teller != self()) unordered_store(instruction, teller);
  states[self()].stored = states[self()].epoch;
  return global_at(address, size, instruction);
}

u32 atomic_inc(u64 address, u32 most, const char *instruction) {
  for (u32 thread = 0; thread < blockDim.x * blockDim.y; thread++)
    if (thread != self() && states[thread].stored == states[self()].epoch) unordered_store(instruction, thread);
  told = states[self()].epoch;
  teller = self();
  char *counter = global_at(address, 4, instruction);
  u32 before = load<u32>(counter);
  store(counter, before >= most ? 0 : before + 1);
  return before;
}

void barrier(int number) {
  if (number == skipped) return;
  shim::wait(number);
  last_epoch = std::max(last_epoch, ++states[self()].epoch);
}

void warp_barrier(int number) {
  shim::wait(number);
  states[self()].synced++;
}

// 9.7.9.6: c has the last lane that may be read from (or the first, upwards), and the bits that are the same in a segment.
u32 shuffle(char kind, bool *inside, u32 value, u32 b, u32 c, int number) {
  const u64 *all = collected<u64>(given, value, number);
  int lane = self() % shim::WARP, segment = c >> 8 & 31, shift = b & 31, from;
  int first = lane & segment, last = first | (c & 31 & ~segment);
  switch (kind) {
    case 'u': from = lane - shift; *inside = from >= last; break;
    case 'd': from = lane + shift; *inside = from <= last; break;
    case 'b': from = lane ^ shift; *inside = from <= last; break;
    default: from = first | (shift & ~segment); *inside = from <= last;
  }
  return all[*inside ? from : lane];
}

u32 vote(bool value, int number) {
  const u64 *all = collected<u64>(given, value, number);
  u32 ballot = 0;
  for (u32 lane = 0; lane < shim::WARP; lane++) ballot |= (u32)all[lane] << lane;
  return ballot;
}

// 9.7.14.5.15: lane 8 m + r has the address of row r of matrix m; a lane gets two neighbours of row lane / 4 of each.
template <int COUNT, bool TURNED>
void load_matrices(u32 *m, u32 address, const char *instruction, int number) {
  u32 lane = self() % shim::WARP;
  u64 own = lane < 8 * COUNT ? (u64)shared_at(address, 16, false, instruction) : 0;
  const u64 *rows = collected<u64>(given, own, number);
  for (u32 i = 0; i < COUNT; i++)
    for (u32 e = 0, both = 0; e < 2; e++) {
      u32 row = lane / 4, column = lane % 4 * 2 + e;
      if (TURNED) std::swap(row, column);
      both |= (u32)load<u16>((const char *)rows[8 * i + row] + 2 * column) << 16 * e;
      m[i] = both;
    }
}

template void load_matrices<1, false>(u32 *, u32, const char *, int);
template void load_matrices<2, false>(u32 *, u32, const char *, int);
template void load_matrices<4, false>(u32 *, u32, const char *, int);
template void load_matrices<1, true>(u32 *, u32, const char *, int);
template void load_matrices<2, true>(u32 *, u32, const char *, int);
template void load_matrices<4, true>(u32 *, u32, const char *, int);

// 9.7.14.5: d (16 x 8) += a (16 x K) b (K x 8). A lane has, of each group of PACKED * 4 columns of a, PACKED neighbours in
// rows lane / 4 and lane / 4 + 8. The sum goes through K in order, in float32; the manual leaves its order and rounding open.
template <class Element, int K>
void multiply_add(u32 *d, const u32 *a, const u32 *b, int number) {
  constexpr int PACKED = 4 / sizeof(Element), GROUP = 4 * PACKED, GROUPS = K / GROUP;
  auto value = [](const u32 *packed, int i) {
    if constexpr (PACKED == 2) return from_half(packed[i / 2] >> i % 2 * 16);
    else return as<f32>(packed[i] & 0xffffe000);  // tf32
  };
  Fragment own;
  for (int i = 0; i < 2 * GROUPS * PACKED; i++) own.a[i] = value(a, i);
  for (int i = 0; i < GROUPS * PACKED; i++) own.b[i] = value(b, i);
  const Fragment *all = collected(fragments, own, number);
  int lane = self() % shim::WARP;
  for (int e = 0; e < 4; e++) {
    int lower = e / 2, column = lane % 4 * 2 + e % 2;
    f32 sum = as<f32>(d[e]);
    for (int k = 0; k < K; k++) {
      int group = k / GROUP, neighbour = k % PACKED, other = k % GROUP / PACKED;
      f32 left = all[lane / 4 * 4 + other].a[(group * 2 + lower) * PACKED + neighbour];
      sum += left * all[column * 4 + other].b[group * PACKED + neighbour];
    }
    d[e] = bits(sum);
  }
}

template void multiply_add<u16, 16>(u32 *, const u32 *, const u32 *, int);
template void multiply_add<u16, 8>(u32 *, const u32 *, const u32 *, int);
template void multiply_add<u32, 8>(u32 *, const u32 *, const u32 *, int);
template void multiply_add<u32, 4>(u32 *, const u32 *, const u32 *, int);

// 9.7.9.25: what is not from the source is zero.
void copy_async(u32 shared, u64 global, u32 size, u32 from_source, const char *instruction) {
  if (from_source > size) fault(instruction, "%u bytes of %u", from_source, size);
  shared_at(shared, size, true, instruction);
  global_at(global, size, instruction);
  each_cell(shared, size, [](Cell &cell, u32) { cell.write.arriving = 1; });
  memset(memory + shared, 0xff, size);  // no numbers
  State &state = states[self()];
  state.copies.push_back({shared, size, from_source, state.group, global});
}

void commit_copies() {
  states[self()].group++;
}

void await_copies(u32 left) {
  State &state = states[self()];
  size_t kept = 0;
  for (Copy copy : state.copies) {
    if (copy.group + left >= state.group) {
      state.copies[kept++] = copy;
      continue;
    }
    memset(memory + copy.shared, 0, copy.size);
    memcpy(memory + copy.shared, (const char *)copy.global, copy.from_source);
    Write arrived = {state.epoch, state.synced, (u16)self(), 0};
    each_cell(copy.shared, copy.size, [&](Cell &cell, u32) { cell.write = arrived; });
  }
  state.copies.resize(kept);
}

void await_all_copies() {
  commit_copies();
  await_copies(0);
}
