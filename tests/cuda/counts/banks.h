// Notes every access of a kernel to shared memory, with its address. The compiler calls the functions below before each
// access (-fsanitize=thread), and they take the place of ThreadSanitizer's own. Included after shim.h.
#pragma once
#include <dlfcn.h>

#include <unordered_map>

#ifndef QUIET
#define QUIET __attribute__((no_sanitize("thread")))
#endif

namespace banks {

struct Range {
  const char *first, *last;
};
static Range *arrays;  // in shared memory, in order
static size_t array_count;

struct Access {
  size_t site;         // where in the library
  unsigned block, thread;
  unsigned turn;       // how often the thread has been at this site: its warp is there at the same time
  unsigned bytes;
  size_t address;
};

static std::vector<Access> accesses;
static std::unordered_map<size_t, unsigned> turns[1024];
static unsigned block = ~0u;

QUIET static void note(void *site, const void *address, unsigned bytes) {
  const char *place = (const char *)address;
  size_t low = 0, high = array_count;
  while (low < high) {
    size_t middle = (low + high) / 2;
    if (place < arrays[middle].last) high = middle;
    else low = middle + 1;
  }
  if (low == array_count || place < arrays[low].first) return;
  unsigned number = blockIdx.y * gridDim.x + blockIdx.x, thread = shim::running - shim::fibers.data();
  if (number != block)
    for (auto &turn : turns) turn.clear();
  block = number;
  Dl_info library;
  dladdr(site, &library);
  size_t where = (char *)site - (char *)library.dli_fbase, at = place - arrays[low].first;
  accesses.push_back({where, number, thread, turns[thread][where]++, bytes, at});
}

}  // namespace banks

extern "C" {

QUIET void set_arrays(banks::Range *arrays, size_t count) {
  banks::arrays = arrays;
  banks::array_count = count;
}

// The accesses since the last call.
QUIET size_t take_accesses(const banks::Access **first) {
  static std::vector<banks::Access> taken;
  taken.swap(banks::accesses);
  banks::accesses.clear();
  banks::block = ~0u;
  *first = taken.data();
  return taken.size();
}

#define NOTES(name, bytes) \
  QUIET void __tsan_##name(void *address) { banks::note(__builtin_return_address(0), address, bytes); }
#define NOTES_ALL(size) NOTES(read##size, size) NOTES(write##size, size) NOTES(unaligned_read##size, size) \
  NOTES(unaligned_write##size, size) NOTES(volatile_read##size, size) NOTES(volatile_write##size, size)
NOTES_ALL(1)
NOTES_ALL(2)
NOTES_ALL(4)
NOTES_ALL(8)
NOTES_ALL(16)
QUIET void __tsan_read_range(void *address, size_t bytes) { banks::note(__builtin_return_address(0), address, bytes); }
QUIET void __tsan_write_range(void *address, size_t bytes) { banks::note(__builtin_return_address(0), address, bytes); }
QUIET void note_access(void *site, const void *address, unsigned bytes) { banks::note(site, address, bytes); }
QUIET char __tsan_atomic8_load(const volatile char *address, int) { return *address; }
QUIET void __tsan_vptr_update(void **, void *) {}
QUIET void __tsan_vptr_read(void **) {}
QUIET void __tsan_func_entry(void *) {}
QUIET void __tsan_func_exit() {}
QUIET void __tsan_init() {}
}
