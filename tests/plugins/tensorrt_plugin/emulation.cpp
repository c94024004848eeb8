// Runs the CUDA kernels on the CPU: each thread of a block is a fiber, a barrier or warp operation switches.
// Only what the kernels use. Compiled in one piece with their sources (see test_kernels.py).
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <ucontext.h>
#include <vector>

#define HOST_EMULATION
#define __device__
#define __global__
#define __shared__ static
#define DYNAMIC_SHARED extern

struct Dim3 {
  unsigned x, y, z;
};
static Dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace fibers {
constexpr size_t kStack = 64 * 1024;
struct Fiber {
  ucontext_t context;
  Dim3 index;
  unsigned linear = 0;
  bool done = false;
  uint64_t block_waits = 0, warp_waits = 0;
};
static std::vector<Fiber> all;
static std::vector<char> stacks;
static ucontext_t scheduler;
static Fiber* now;
static std::function<void()> body;
static std::vector<uint64_t> slots;  // two generations of one value per thread

static void yield() { swapcontext(&now->context, &scheduler); }
static void start() {
  body();
  now->done = true;
  yield();
}
// Waits until every live thread of [first, last) has come here as often as this one.
template <uint64_t Fiber::*Count>
static void meet(unsigned first, unsigned last) {
  uint64_t mine = ++(now->*Count);
  for (;;) {
    bool ready = true;
    for (unsigned at = first; at < last && ready; at++) ready = all[at].done || all[at].*Count >= mine;
    if (ready) return;
    yield();
  }
}
static uint64_t* exchange_warp(uint64_t value) {
  unsigned first = now->linear & ~31u, last = first + 32 < all.size() ? first + 32 : all.size();
  uint64_t* generation = slots.data() + (now->warp_waits & 1) * all.size();
  generation[now->linear] = value;
  meet<&Fiber::warp_waits>(first, last);
  return generation + first;
}
static void launch(Dim3 grid, Dim3 block, std::function<void()> kernel) {
  body = kernel;
  gridDim = grid;
  blockDim = block;
  unsigned threads = block.x * block.y * block.z;
  stacks.resize(threads * kStack);
  for (blockIdx.z = 0; blockIdx.z < grid.z; blockIdx.z++)
    for (blockIdx.y = 0; blockIdx.y < grid.y; blockIdx.y++)
      for (blockIdx.x = 0; blockIdx.x < grid.x; blockIdx.x++) {
        all.assign(threads, Fiber());
        slots.assign(2 * threads, 0);
        for (unsigned at = 0; at < threads; at++) {
          Fiber& fiber = all[at];
          fiber.linear = at;
          fiber.index = {at % block.x, at / block.x % block.y, at / (block.x * block.y)};
          getcontext(&fiber.context);
          fiber.context.uc_stack = {stacks.data() + at * kStack, 0, kStack};
          fiber.context.uc_link = nullptr;
          makecontext(&fiber.context, start, 0);
        }
        for (bool live = true; live;) {
          live = false;
          for (Fiber& fiber : all) {
            if (fiber.done) continue;
            live = true;
            now = &fiber;
            threadIdx = fiber.index;
            swapcontext(&scheduler, &fiber.context);
          }
        }
      }
}
}  // namespace fibers

template <class To, class From>
static To same_bits(From from) {
  To to;
  static_assert(sizeof(To) == sizeof(From));
  std::memcpy(&to, &from, sizeof to);
  return to;
}
static inline unsigned __float_as_uint(float value) { return same_bits<unsigned>(value); }
static inline float __uint_as_float(unsigned bits) { return same_bits<float>(bits); }
static inline int __float2int_rn(float value) { return (int)std::lrintf(value); }
static inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
static inline int __ffs(unsigned bits) { return __builtin_ffs((int)bits); }
static inline float widen_half(unsigned short bits) { return (float)same_bits<_Float16>(bits); }
static inline unsigned short narrow_half(float value) { return same_bits<unsigned short>((_Float16)value); }
static inline unsigned atomicAdd(unsigned* at, unsigned value) {
  unsigned old = *at;
  *at += value;
  return old;
}
static inline void restore() { threadIdx = fibers::now->index; }
static inline void __syncthreads() {
  fibers::meet<&fibers::Fiber::block_waits>(0, fibers::all.size());
  restore();
}
static inline unsigned __ballot_sync(unsigned, bool value) {
  uint64_t* warp = fibers::exchange_warp(value);
  unsigned bits = 0;
  for (unsigned lane = 0; lane < 32; lane++) bits |= (unsigned)(warp[lane] & 1) << lane;
  restore();
  return bits;
}
template <class T>
static inline T __shfl_sync(unsigned, T value, int lane) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = fibers::exchange_warp(bits)[lane];
  std::memcpy(&value, &bits, sizeof value);
  restore();
  return value;
}
template <class T>
static inline T __shfl_xor_sync(unsigned mask, T value, int step) {
  return __shfl_sync(mask, value, (int)(fibers::now->linear & 31u) ^ step);
}

alignas(16) unsigned long long sorted[65536];

#include "kernels.cu"

// One entry per kernel: the grid, then the kernel's own arguments. The fibers are global: one launch at a time.
template <unsigned X, unsigned Y, class... Args>
static void go(const unsigned* grid, void (*kernel)(Args...), Args... args) {
  fibers::launch({grid[0], grid[1], grid[2]}, {X, Y, 1}, [=] { kernel(args...); });
}
#define IN const Request *request
#define RAW const Element *raw, int rows, int columns
#define OUT Summary *summary, Found *found, u32 room
extern "C" {
void sizes(int* out) {
  int all[] = {sizeof(Frame), sizeof(Request), sizeof(Found), sizeof(Summary), sizeof(Box)};
  std::memcpy(out, all, sizeof all);
}
void run_letterbox(const unsigned* grid, IN, const Frame* frames, Element* out, int height, int width) {
  go<32, 8>(grid, letterbox, request, frames, out, height, width);
}
void run_find_candidates(const unsigned* grid, IN, const u32* mask, RAW, u64* keys, u32* counts, u32 capacity) {
  go<256, 1>(grid, find_candidates, request, mask, raw, rows, columns, keys, counts, capacity);
}
void run_suppress(const unsigned* grid, IN, const Frame* frames, RAW, const u64* keys, const u32* counts, u32 capacity,
                  Box* boxes, int* groups, OUT) {
  go<1024, 1>(grid, suppress, request, frames, raw, rows, columns, keys, counts, capacity, boxes, groups, summary,
              found, room);
}
void run_pad_keys(const unsigned* grid, u64* keys, u32 count, u32 size) {
  go<256, 1>(grid, pad_keys, keys, count, size);
}
void run_sort_blocks(const unsigned* grid, u64* keys, u32 first_run, u32 last_run) {
  go<1024, 1>(grid, sort_blocks, keys, first_run, last_run);
}
void run_sort_step(const unsigned* grid, u64* keys, u32 run, u32 step) {
  go<1024, 1>(grid, sort_step, keys, run, step);
}
void run_order_many(const unsigned* grid, IN, RAW, const u64* keys, u32 count, Box* boxes, int* groups) {
  go<256, 1>(grid, order_many, request, raw, rows, columns, keys, count, boxes, groups);
}
void run_suppress_chunk(const unsigned* grid, IN, const Frame* frame, RAW, const u64* keys, u32 count, Box* boxes,
                        int* groups, u32* removed, u32 begin, u32 end, u32* state, u32* kept_list, OUT) {
  go<1024, 1>(grid, suppress_chunk, request, frame, raw, rows, columns, keys, count, boxes, groups, removed, begin,
              end, state, kept_list, summary, found, room);
}
#ifndef NO_MASKS
void run_place_masks(const unsigned* grid, IN, const Frame* frames, Summary* summaries, Found* found, u32 room) {
  go<256, 1>(grid, place_masks, request, frames, summaries, found, room);
}
void run_draw_masks(const unsigned* grid, IN, const Frame* frames, RAW, const Element* prototypes, int map_rows,
                    int map_columns, const Summary* summaries, const Found* found, u32 room, unsigned char* bits,
                    u32 area) {
  go<256, 1>(grid, draw_masks, request, frames, raw, rows, columns, prototypes, map_rows, map_columns, summaries, found,
             room, bits, area);
}
#endif
void run_suppress_rest(const unsigned* grid, IN, u32 begin, u32 count, const Box* boxes, const int* groups,
                       u32* removed, const u32* state, const u32* kept_list) {
  go<256, 1>(grid, suppress_rest, request, begin, count, boxes, groups, removed, state, kept_list);
}
}
