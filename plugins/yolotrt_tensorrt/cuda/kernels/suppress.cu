// Raw output in device memory -> final boxes: threshold, sort, exact greedy suppression, transform, write.
//
// The head's source, compiled in front of this one, defines `struct Head` with
//   const Element* raw; int rows, columns;
//   int classes() const; float objectness(int image, int row) const;
//   float score(int image, int row, float objectness, int class_id) const; Box box(int image, int row) const;
// A row whose `objectness` is not finite or not above the threshold has no candidates. A head without objectness returns
// the highest of the row's finite scores. The head's postprocessor defines selection, order and arithmetic.
//
// A candidate is one 64-bit key, smaller is better: the inverted bits of its positive float32 score, then
// row * classes + class. So order and ties equal the CPU's, and only one number is sorted.

__device__ inline bool finite(float value) { return (__float_as_uint(value) & 0x7f800000u) != 0x7f800000u; }

__device__ inline u64 key_of(float score, u32 index) { return ((u64)~__float_as_uint(score) << 32) | index; }
__device__ inline u32 index_of(u64 key) { return (u32)key; }
__device__ inline float score_of(u64 key) { return __uint_as_float(~(u32)(key >> 32)); }

__device__ inline bool is_selected(const Request* request, const u32* class_mask, int class_id) {
  return !request->class_filter || (class_mask[class_id >> 5] >> (class_id & 31) & 1);
}

// Whether the IoU of two boxes is greater than `iou`: float64 from float32 corners, as on the CPU.
__device__ inline bool overlaps(const Box& a, const Box& b, double iou) {
  float right = fminf(a.x2, b.x2), left = fmaxf(a.x1, b.x1);
  float bottom = fminf(a.y2, b.y2), top = fmaxf(a.y1, b.y1);
  if (right <= left || bottom <= top) return false;
  double inter = ((double)right - left) * ((double)bottom - top);
  double width_a = (double)a.x2 - a.x1, height_a = (double)a.y2 - a.y1;
  double width_b = (double)b.x2 - b.x1, height_b = (double)b.y2 - b.y1;
  double both = fmax(width_a, 0.0) * fmax(height_a, 0.0) + fmax(width_b, 0.0) * fmax(height_b, 0.0) - inter;
  return both > 0.0 && inter / both > iou;
}

// Grid (ceil(rows / 256), batch), block 256. Each warp checks 32 objectness values, then processes each
// passing row together. `counts` starts at zero and keeps counting beyond `capacity`.
extern "C" __global__ void find_candidates(const Request* request, const u32* class_mask, const Element* raw, int rows,
                                           int columns, u64* keys, u32* counts, u32 capacity) {
  int image = blockIdx.y, lane = threadIdx.x & 31;
  if (image >= request->images) return;
  Head head = {raw, rows, columns};
  int classes = head.classes(), first = (blockIdx.x * 256 + threadIdx.x) & ~31, row = first + lane;
  float conf = request->conf;
  float mine = row < rows ? head.objectness(image, row) : 0.0f;
  u32 pending = __ballot_sync(0xffffffffu, row < rows && mine > conf && finite(mine));
  keys += (u64)image * capacity;
  while (pending) {
    int at = __ffs(pending) - 1;
    pending &= pending - 1;
    float objectness = __shfl_sync(0xffffffffu, mine, at);
    row = first + at;
    Box box = head.box(image, row);
    if (!(finite(box.x1) && finite(box.y1) && finite(box.x2) && finite(box.y2))) continue;
    u64 best = ~0ull;
    for (int begin = 0; begin < classes; begin += 32) {
      int class_id = begin + lane;
      float score = class_id < classes ? head.score(image, row, objectness, class_id) : 0.0f;
      bool passes = class_id < classes && score > conf && finite(score);
      u64 key = passes ? key_of(score, (u32)row * classes + class_id) : ~0ull;
      if (!request->multi_label) {
        best = key < best ? key : best;
        continue;
      }
      passes = passes && is_selected(request, class_mask, class_id);
      u32 all = __ballot_sync(0xffffffffu, passes);
      if (!all) continue;
      u32 start = 0;
      if (lane == 0) start = atomicAdd(counts + image, (u32)__popc(all));
      start = __shfl_sync(0xffffffffu, start, 0) + __popc(all & ((1u << lane) - 1));
      if (passes && start < capacity) keys[start] = key;
    }
    if (request->multi_label) continue;
    for (int step = 16; step; step >>= 1) {
      u64 other = __shfl_xor_sync(0xffffffffu, best, step);
      best = other < best ? other : best;
    }
    if (lane == 0 && best != ~0ull && is_selected(request, class_mask, index_of(best) % classes)) {
      u32 start = atomicAdd(counts + image, 1u);
      if (start < capacity) keys[start] = best;
    }
  }
}

__device__ inline void exchange(u64* keys, u32 low, u32 high, bool ascending) {
  u64 a = keys[low], b = keys[high];
  if ((a > b) == ascending) {
    keys[low] = b;
    keys[high] = a;
  }
}

__device__ inline u32 low_of_pair(u32 pair, u32 step) { return 2 * pair - (pair & (step - 1)); }

__device__ inline void sort_shared(u64* keys, u32 size) {
  for (u32 run = 2; run <= size; run <<= 1)
    for (u32 step = run >> 1; step; step >>= 1) {
      for (u32 pair = threadIdx.x; pair < size / 2; pair += blockDim.x) {
        u32 low = low_of_pair(pair, step);
        exchange(keys, low, low + step, !(low & run));
      }
      __syncthreads();
    }
}

__device__ inline u32 power_of_two(u32 count) {
  u32 size = 2;
  while (size < count) size <<= 1;
  return size;
}

// Sorted candidates for suppression. `removed` has one bit each; a 32-bit mask is written by a single warp,
// without atomics.
struct Ordered {
  const u64* keys;
  Box* boxes;
  int* groups;  // class, or 0 for all if agnostic
  u32* removed;
  u32 count;
};

__device__ inline void order(const Ordered& all, const Head& head, int image, bool agnostic, u32 first, u32 step) {
  u32 classes = head.classes();
  for (u32 at = first; at < all.count; at += step) {
    u32 index = index_of(all.keys[at]);
    all.boxes[at] = head.box(image, index / classes);
    all.groups[at] = agnostic ? 0 : index % classes;
  }
}

__device__ inline void write_found(const Ordered& all, const Head& head, const Frame& frame, u32 at, Found* out) {
  Box box = all.boxes[at];
  float width = frame.width, height = frame.height;
  out->x1 = fminf(fmaxf((box.x1 - frame.pad_x) / frame.scale, 0.0f), width);
  out->y1 = fminf(fmaxf((box.y1 - frame.pad_y) / frame.scale, 0.0f), height);
  out->x2 = fminf(fmaxf((box.x2 - frame.pad_x) / frame.scale, 0.0f), width);
  out->y2 = fminf(fmaxf((box.y2 - frame.pad_y) / frame.scale, 0.0f), height);
  out->score = score_of(all.keys[at]);
  out->class_id = index_of(all.keys[at]) % head.classes();
  out->row = index_of(all.keys[at]) / head.classes();
  out->mask = 0;
}

struct Shared {
  u32 rows[32];   // rows[i] bit j: i of the group suppresses j
  Box boxes[32];  // and their boxes
  int groups[32];
};

// Greedy suppression of candidates [begin, end) by a block of 1024 threads, 32 candidates at a time: every
// pair of the group at once, the group in order, then everything after it against what the group kept.
// Returns the total number of kept candidates. `begin` is a multiple of 32.
__device__ inline u32 suppress_range(const Ordered& all, u32 begin, u32 end, double iou, Shared* shared,
                                     const Head& head, const Frame& frame, u32 max_det, u32 kept_before, Found* out,
                                     u32* kept_list) {
  u32 warp = threadIdx.x >> 5, lane = threadIdx.x & 31, total = kept_before;
  for (u32 base = begin; base < end; base += 32) {
    u32 valid = end - base >= 32 ? 0xffffffffu : (1u << (end - base)) - 1;
    u32 pending = valid & ~all.removed[base >> 5];
    if (!pending) continue;  // equal for all threads: this mask is not written until the next group
    bool suppresses = false;
    if (warp < lane && (pending >> warp & 1) && (pending >> lane & 1) &&
        all.groups[base + warp] == all.groups[base + lane])
      suppresses = overlaps(all.boxes[base + warp], all.boxes[base + lane], iou);
    u32 row = __ballot_sync(0xffffffffu, suppresses);
    if (lane == 0) shared->rows[warp] = row;
    __syncthreads();
    u32 kept = 0, left = pending;
    while (left) {
      u32 at = __ffs(left) - 1;
      kept |= 1u << at;
      left &= ~(shared->rows[at] | (1u << at));
    }
    if (warp == 0 && (kept >> lane & 1)) {
      u32 slot = __popc(kept & ((1u << lane) - 1));
      shared->boxes[slot] = all.boxes[base + lane];
      shared->groups[slot] = all.groups[base + lane];
      if (total + slot < max_det) write_found(all, head, frame, base + lane, out + total + slot);
      if (kept_list) kept_list[total - kept_before + slot] = base + lane;
    }
    u32 count = __popc(kept);
    total += count;
    __syncthreads();
    for (u32 word = (base >> 5) + 1 + warp; word << 5 < end; word += 32) {
      u32 at = (word << 5) + lane, before = all.removed[word];
      bool gone = at >= end || (before >> lane & 1);
      if (!gone) {
        Box box = all.boxes[at];
        int group = all.groups[at];
        for (u32 slot = 0; slot < count && !gone; slot++)
          gone = shared->groups[slot] == group && overlaps(shared->boxes[slot], box, iou);
      }
      u32 after = __ballot_sync(0xffffffffu, gone);
      if (lane == 0) all.removed[word] = after;
    }
    __syncthreads();
  }
  return total;
}

// Grid (batch), block 1024, dynamic shared memory: capacity keys of 8 bytes and capacity / 32 masks.
// `capacity` is a power of two. An image with more candidates is only marked.
extern "C" __global__ void suppress(const Request* request, const Frame* frames, const Element* raw, int rows,
                                    int columns, const u64* keys, const u32* counts, u32 capacity, Box* boxes,
                                    int* groups, Summary* summaries, Found* found, u32 room) {
  DYNAMIC_SHARED u64 sorted[];
  __shared__ Shared shared;
  u32 image = blockIdx.x;
  if (image >= (u32)request->images) return;
  u32 count = counts[image];
  Summary* summary = summaries + image;
  if (count > capacity) {
    if (threadIdx.x == 0) *summary = {count, 0u, 1u, 0u};
    return;
  }
  u32* removed = (u32*)(sorted + capacity);
  u32 size = power_of_two(count);
  for (u32 at = threadIdx.x; at < size; at += blockDim.x)
    sorted[at] = at < count ? keys[(u64)image * capacity + at] : ~0ull;
  for (u32 word = threadIdx.x; word << 5 < count; word += blockDim.x) removed[word] = 0;
  __syncthreads();
  sort_shared(sorted, size);
  Head head = {raw, rows, columns};
  Ordered all = {sorted, boxes + (u64)image * capacity, groups + (u64)image * capacity, removed, count};
  order(all, head, image, request->agnostic, threadIdx.x, blockDim.x);
  __syncthreads();
  u32 limit = (u32)request->max_det < room ? (u32)request->max_det : room;
  u32 kept = suppress_range(all, 0, count, request->iou, &shared, head, frames[image], limit, 0,
                            found + (u64)image * room, 0);
  if (threadIdx.x == 0) *summary = {count, kept, 0u, 0u};
}

// The same for one image with any number of candidates, as a sequence of launches over global memory. All
// pointers belong to that image; `request->images` is ignored.

// Grid (size / 2048), block 1024, 16 KiB of shared memory: all steps under 2048 of the runs from `first_run` to
// `last_run`; `size` is a multiple of 2048.
extern "C" __global__ void sort_blocks(u64* keys, u32 first_run, u32 last_run) {
  __shared__ u64 part[2048];
  u32 base = blockIdx.x * 2048;
  for (u32 at = threadIdx.x; at < 2048; at += 1024) part[at] = keys[base + at];
  __syncthreads();
  for (u32 run = first_run; run <= last_run; run <<= 1)
    for (u32 step = run >> 1 < 1024 ? run >> 1 : 1024; step; step >>= 1) {
      u32 low = low_of_pair(threadIdx.x, step);
      exchange(part, low, low + step, !((base + low) & run));
      __syncthreads();
    }
  for (u32 at = threadIdx.x; at < 2048; at += 1024) keys[base + at] = part[at];
}

// Grid (size / 2048), block 1024: one step of a run, across blocks.
extern "C" __global__ void sort_step(u64* keys, u32 run, u32 step) {
  u32 low = low_of_pair(blockIdx.x * 1024 + threadIdx.x, step);
  exchange(keys, low, low + step, !(low & run));
}

// Grid (any), block 256.
extern "C" __global__ void pad_keys(u64* keys, u32 count, u32 size) {
  for (u32 at = count + blockIdx.x * 256 + threadIdx.x; at < size; at += gridDim.x * 256) keys[at] = ~0ull;
}

// Grid (any), block 256.
extern "C" __global__ void order_many(const Request* request, const Element* raw, int rows, int columns,
                                      const u64* keys, u32 count, Box* boxes, int* groups) {
  Head head = {raw, rows, columns};
  Ordered all = {keys, boxes, groups, 0, count};
  order(all, head, 0, request->agnostic, blockIdx.x * 256 + threadIdx.x, gridDim.x * 256);
}

// Grid 1, block 1024: candidates [begin, end), at most 1024. `state` is kept so far and kept in this chunk.
extern "C" __global__ void suppress_chunk(const Request* request, const Frame* frame, const Element* raw, int rows,
                                          int columns, const u64* keys, u32 count, Box* boxes, int* groups,
                                          u32* removed, u32 begin, u32 end, u32* state, u32* kept_list,
                                          Summary* summary, Found* found, u32 room) {
  __shared__ Shared shared;
  Head head = {raw, rows, columns};
  Ordered all = {keys, boxes, groups, removed, count};
  u32 before = state[0];
  u32 limit = (u32)request->max_det < room ? (u32)request->max_det : room;
  u32 kept = suppress_range(all, begin, end, request->iou, &shared, head, *frame, limit, before, found, kept_list);
  if (threadIdx.x == 0) {
    state[0] = kept;
    state[1] = kept - before;
    *summary = {count, kept, 0u, 0u};
  }
}

// Grid (any), block 256: everything from `begin` on against the kept candidates of the previous chunk.
extern "C" __global__ void suppress_rest(const Request* request, u32 begin, u32 count, const Box* boxes,
                                         const int* groups, u32* removed, const u32* state, const u32* kept_list) {
  u32 lane = threadIdx.x & 31, kept = state[1];
  for (u32 word = (begin >> 5) + ((blockIdx.x * 256 + threadIdx.x) >> 5); word << 5 < count; word += gridDim.x * 8) {
    u32 at = (word << 5) + lane, before = removed[word];
    bool gone = at >= count || (before >> lane & 1);
    if (!gone) {
      Box box = boxes[at];
      int group = groups[at];
      for (u32 slot = 0; slot < kept && !gone; slot++) {
        u32 other = kept_list[slot];
        gone = groups[other] == group && overlaps(boxes[other], box, request->iou);
      }
    }
    u32 after = __ballot_sync(0xffffffffu, gone);
    if (lane == 0) removed[word] = after;
  }
}
