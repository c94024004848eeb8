// Instance masks of kept boxes, as `yolotrt_core/inference/masks.py` computes them, packed to bits.
//
// Compiled behind suppress.cu for heads that also define
//   int coefficients() const; float coefficient(int image, int row, int index) const;
// A map of the network input, sigmoid(coefficients . prototypes), is enlarged to the source image inside the box. Each
// block computes the part of the map that its tile reads, so the map is never stored.

const int kMapColumns = 64, kMapRows = 32, kMostCoefficients = 1024;

struct Window {
  int x1, y1, x2, y2;
  __device__ int row_bytes() const { return (x2 - x1 + 7) / 8; }
};

__device__ inline int clipped(float value, int limit) { return (int)fminf(fmaxf(rintf(value), 0.0f), (float)limit); }

// The pixels of a box rounded to whole source pixels; rintf rounds ties to even, as NumPy.
__device__ inline Window window_of(const Found& box, const Frame& frame) {
  Window out = {clipped(box.x1, frame.width), clipped(box.y1, frame.height), clipped(box.x2, frame.width),
                clipped(box.y2, frame.height)};
  if (out.x2 < out.x1) out.x2 = out.x1;
  if (out.y2 < out.y1) out.y2 = out.y1;
  return out;
}

__device__ inline u32 drawn(const Request* request, const Summary& summary, u32 room) {
  u32 limit = (u32)request->max_det < room ? (u32)request->max_det : room;
  return summary.kept < limit ? summary.kept : limit;
}

// Grid (batch), block 256: places the masks of each image one after the other; `mask_bytes` may exceed the area.
extern "C" __global__ void place_masks(const Request* request, const Frame* frames, Summary* summaries, Found* found,
                                       u32 room) {
  __shared__ u32 used;
  u32 image = blockIdx.x;
  if (image >= (u32)request->images) return;
  if (threadIdx.x == 0) used = 0;
  __syncthreads();
  u32 count = drawn(request, summaries[image], room);
  for (u32 at = threadIdx.x; at < count; at += blockDim.x) {
    Found* one = found + (u64)image * room + at;
    Window window = window_of(*one, frames[image]);
    one->mask = atomicAdd(&used, (u32)window.row_bytes() * (u32)(window.y2 - window.y1));
  }
  __syncthreads();
  if (threadIdx.x == 0) summaries[image].mask_bytes = used;
}

// One axis of the map: the part that the image fills, and its sampling, bilinear with half-pixel centers.
struct Axis {
  int begin, count;  // cells of the map
  float scale;       // cells per source pixel
  __device__ float place(int pixel) const { return fmaxf(scale * ((float)pixel + 0.5f) - 0.5f, 0.0f); }
  __device__ int first(int pixel) const {
    int cell = (int)place(pixel);
    return cell < count - 1 ? cell : count - 1;
  }
  __device__ int second(int pixel) const {
    int cell = first(pixel) + 1;
    return cell < count - 1 ? cell : count - 1;
  }
};

__device__ inline Axis axis_of(int cells, int pixels, double gain) {
  double pad = (cells - pixels * gain) / 2;
  int begin = (int)pad, count = (int)(cells - pad) - begin;
  Axis out = {begin, count, (float)count / (float)pixels};
  return out;
}

struct Map {
  const Element* prototypes;  // of this image, (coefficients, rows, columns)
  const float* weights;
  int coefficients, rows, columns;
  Axis down, across;

  __device__ float value(int y, int x) const {
    const Element* at = prototypes + (long long)(down.begin + y) * columns + across.begin + x;
    float sum = 0.0f;
    for (int k = 0; k < coefficients; k++) sum += weights[k] * widen(at[(long long)k * rows * columns]);
    return 1.0f / (1.0f + expf(-sum));
  }
};

__device__ inline bool exceeds(float a, float b, float c, float d, float wx, float wy) {
  float left = a * (1.0f - wy) + c * wy, right = b * (1.0f - wy) + d * wy;
  return left * (1.0f - wx) + right * wx > 0.5f;
}

__device__ inline bool pixel_of(const Map& map, int x, int y) {
  int top = map.down.first(y), bottom = map.down.second(y), left = map.across.first(x), right = map.across.second(x);
  return exceeds(map.value(top, left), map.value(top, right), map.value(bottom, left), map.value(bottom, right),
                 map.across.place(x) - (float)left, map.down.place(y) - (float)top);
}

// Draws the tile [x1, x2) x [y1, y2) of a window; `part` holds the part of the map that it reads.
__device__ inline void draw_tile(const Map& map, const Window& window, const Window& tile, float* part,
                                 unsigned char* out) {
  int begin = map.across.first(tile.x1), wide = map.across.second(tile.x2 - 1) - begin + 1;
  int top = map.down.first(tile.y1), tall = map.down.second(tile.y2 - 1) - top + 1;
  for (int at = threadIdx.x; at < wide * tall; at += blockDim.x)
    part[at] = map.value(top + at / wide, begin + at % wide);
  __syncthreads();
  int bytes = tile.row_bytes();
  for (int at = threadIdx.x; at < bytes * (tile.y2 - tile.y1); at += blockDim.x) {
    int y = tile.y1 + at / bytes, x = tile.x1 + at % bytes * 8;
    const float* upper = part + (map.down.first(y) - top) * wide;
    const float* lower = part + (map.down.second(y) - top) * wide;
    float wy = map.down.place(y) - (float)map.down.first(y);
    u32 bits = 0;
    for (int bit = 0; bit < 8 && x + bit < tile.x2; bit++) {
      int left = map.across.first(x + bit), right = map.across.second(x + bit) - begin;
      float wx = map.across.place(x + bit) - (float)left;
      left -= begin;
      if (exceeds(upper[left], upper[right], lower[left], lower[right], wx, wy)) bits |= 0x80u >> bit;
    }
    out[(long long)(y - window.y1) * window.row_bytes() + (x - window.x1) / 8] = (unsigned char)bits;
  }
  __syncthreads();
}

// Grid (blocks per mask, masks at once, batch), block 256. `bits` is host memory that the GPU writes, `area` bytes per
// image; the masks of an image that needs more are not drawn.
extern "C" __global__ void draw_masks(const Request* request, const Frame* frames, const Element* raw, int rows,
                                      int columns, const Element* prototypes, int map_rows, int map_columns,
                                      const Summary* summaries, const Found* found, u32 room, unsigned char* bits,
                                      u32 area) {
  __shared__ float weights[kMostCoefficients];
  __shared__ float part[kMapColumns * kMapRows];
  int image = blockIdx.z;
  if (image >= request->images || summaries[image].mask_bytes > area) return;
  Head head = {raw, rows, columns};
  Frame frame = frames[image];
  double gain = fmin((double)map_rows / frame.height, (double)map_columns / frame.width);
  Map map = {prototypes + (long long)image * head.coefficients() * map_rows * map_columns, weights,
             head.coefficients(), map_rows, map_columns, axis_of(map_rows, frame.height, gain),
             axis_of(map_columns, frame.width, gain)};
  // A tile reads at most one cell more than its size in cells, on either side.
  int wide = (int)fminf((kMapColumns - 2) / map.across.scale, 256.0f) & ~7;
  int tall = (int)fminf((kMapRows - 2) / map.down.scale, 64.0f);
  u32 count = drawn(request, summaries[image], room);
  for (u32 slot = blockIdx.y; slot < count; slot += gridDim.y) {
    Found one = found[(u64)image * room + slot];
    Window window = window_of(one, frame);
    unsigned char* out = bits + (u64)image * area + one.mask;
    __syncthreads();  // the weights of the mask before are no longer read
    for (int k = threadIdx.x; k < map.coefficients; k += blockDim.x) weights[k] = head.coefficient(image, one.row, k);
    __syncthreads();
    if (!wide || !tall) {  // an image smaller than the map by far
      int bytes = window.row_bytes();
      for (int at = blockIdx.x * blockDim.x + threadIdx.x; at < bytes * (window.y2 - window.y1);
           at += gridDim.x * blockDim.x) {
        int y = window.y1 + at / bytes, x = window.x1 + at % bytes * 8;
        u32 all = 0;
        for (int bit = 0; bit < 8 && x + bit < window.x2; bit++)
          if (pixel_of(map, x + bit, y)) all |= 0x80u >> bit;
        out[at] = (unsigned char)all;
      }
      continue;
    }
    int across = (window.x2 - window.x1 + wide - 1) / wide, down = (window.y2 - window.y1 + tall - 1) / tall;
    for (int at = blockIdx.x; at < across * down; at += gridDim.x) {
      Window tile = {window.x1 + at % across * wide, window.y1 + at / across * tall, 0, 0};
      tile.x2 = tile.x1 + wide < window.x2 ? tile.x1 + wide : window.x2;
      tile.y2 = tile.y1 + tall < window.y2 ? tile.y1 + tall : window.y2;
      draw_tile(map, window, tile, part, out);
    }
  }
}
