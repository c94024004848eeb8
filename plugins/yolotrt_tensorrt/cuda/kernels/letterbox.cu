// uint8 images of any size -> letterboxed, normalised RGB in the engine's input: planar, or interleaved
// with CHANNELS_LAST defined.
//
// Bit-exact with the CPU's letterbox: OpenCV 4.x/5.x `resize` INTER_LINEAR on uint8 (imgproc/src/resize.cpp:
// 11-bit coefficients, two roundings) and `cvtColor` NV12 (imgproc/src/color_yuv: BT.601, 20-bit), then / 255.

struct Bgr {
  int b, g, r;
};

__device__ inline int clamp_byte(int value) { return value < 0 ? 0 : value > 255 ? 255 : value; }

__device__ inline Bgr pixel(const Frame& frame, const unsigned char* rows, int y, int x) {
  Bgr out;
  if (frame.format == 0) {
    const unsigned char* at = rows + (long long)y * frame.pitch + 3 * x;
    out.b = at[0];
    out.g = at[1];
    out.r = at[2];
    return out;
  }
  const unsigned char* chroma = rows + (long long)(frame.height + y / 2) * frame.pitch + (x & ~1);
  int luma = rows[(long long)y * frame.pitch + x] - 16;
  luma = (luma < 0 ? 0 : luma) * 1220542;
  int u = chroma[0] - 128, v = chroma[1] - 128;
  out.b = clamp_byte((luma + 2116026 * u + (1 << 19)) >> 20);
  out.g = clamp_byte((luma - 852492 * v - 409993 * u + (1 << 19)) >> 20);
  out.r = clamp_byte((luma + 1673527 * v + (1 << 19)) >> 20);
  return out;
}

struct Tap {
  int first, second, weight_first, weight_second;
};

__device__ inline Tap tap(int at, double scale, int size, bool horizontal) {
  float position = (float)((at + 0.5) * scale - 0.5);
  int low = (int)floorf(position);
  float rest = position - low;
  if (horizontal && low < 0) {
    low = 0;
    rest = 0;
  }
  if (horizontal && low >= size - 1) {
    low = size - 1;
    rest = 0;
  }
  Tap out;
  out.weight_first = __float2int_rn((1.0f - rest) * 2048.0f);
  out.weight_second = __float2int_rn(rest * 2048.0f);
  out.first = low < 0 ? 0 : low > size - 1 ? size - 1 : low;
  out.second = low + 1 < 0 ? 0 : low + 1 > size - 1 ? size - 1 : low + 1;
  return out;
}

__device__ inline int blend(int a, int b, int c, int d, const Tap& x, const Tap& y) {
  int upper = a * x.weight_first + b * x.weight_second;
  int lower = c * x.weight_first + d * x.weight_second;
  return clamp_byte((((y.weight_first * (upper >> 4)) >> 16) + ((y.weight_second * (lower >> 4)) >> 16) + 2) >> 2);
}

__device__ inline Bgr resized(const Frame& frame, const unsigned char* rows, int y, int x) {
  Bgr a, b, c, d, out;
  if (frame.halved) {
    a = pixel(frame, rows, 2 * y, 2 * x);
    b = pixel(frame, rows, 2 * y, 2 * x + 1);
    c = pixel(frame, rows, 2 * y + 1, 2 * x);
    d = pixel(frame, rows, 2 * y + 1, 2 * x + 1);
    out.b = (a.b + b.b + c.b + d.b + 2) >> 2;
    out.g = (a.g + b.g + c.g + d.g + 2) >> 2;
    out.r = (a.r + b.r + c.r + d.r + 2) >> 2;
    return out;
  }
  if (frame.width == frame.fit_width && frame.height == frame.fit_height) return pixel(frame, rows, y, x);
  Tap across = tap(x, frame.scale_x, frame.width, true), down = tap(y, frame.scale_y, frame.height, false);
  if (frame.packed) {
    down.first = y * frame.packed;
    down.second = down.first + frame.packed - 1;
  }
  // Pixels with zero weight are not read: 1920x1080 to 640 reads one pixel of nine.
  a = pixel(frame, rows, down.first, across.first);
  b = across.weight_second ? pixel(frame, rows, down.first, across.second) : a;
  c = down.weight_second ? pixel(frame, rows, down.second, across.first) : a;
  d = !across.weight_second ? c : down.weight_second ? pixel(frame, rows, down.second, across.second) : b;
  out.b = blend(a.b, b.b, c.b, d.b, across, down);
  out.g = blend(a.g, b.g, c.g, d.g, across, down);
  out.r = blend(a.r, b.r, c.r, d.r, across, down);
  return out;
}

// Grid: (ceil(width / 32), ceil(height / 8), batch), block (32, 8).
extern "C" __global__ void letterbox(const Request* request, const Frame* frames, Element* out, int height, int width) {
  int image = blockIdx.z, x = blockIdx.x * 32 + threadIdx.x, y = blockIdx.y * 8 + threadIdx.y;
  if (image >= request->images || x >= width || y >= height) return;
  const Frame& frame = frames[image];
  int inner_x = x - frame.left, inner_y = y - frame.top;
  Bgr value = {114, 114, 114};
  if (inner_x >= 0 && inner_y >= 0 && inner_x < frame.fit_width && inner_y < frame.fit_height)
    value = resized(frame, (const unsigned char*)frame.pixels, inner_y, inner_x);
  long long plane = (long long)height * width, inside = (long long)y * width + x;
#ifdef CHANNELS_LAST
  Element* at = out + 3 * (image * plane + inside);
  plane = 1;
#else
  Element* at = out + 3 * image * plane + inside;
#endif
  at[0] = narrow((float)value.r / 255.0f);
  at[plane] = narrow((float)value.g / 255.0f);
  at[2 * plane] = narrow((float)value.b / 255.0f);
}
