// Shared by all kernels: the element type of the engine's tensors and the parameter block of a request.
//
// Compiled by NVRTC or nvcc with -fmad=false: a fused multiply-add skips a rounding of the CPU's.
// ELEMENT is 0 for float32, 1 for float16, 2 for bfloat16. Uses no header of the CUDA toolkit, which
// hosts that run engines often lack.
typedef unsigned int u32;
typedef unsigned long long u64;

#ifndef HOST_EMULATION
#define DYNAMIC_SHARED extern __shared__
__device__ inline float widen_half(unsigned short bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}
__device__ inline unsigned short narrow_half(float value) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}
#endif

#if ELEMENT == 0
typedef float Element;
__device__ inline float widen(Element value) { return value; }
__device__ inline Element narrow(float value) { return value; }
#elif ELEMENT == 1
typedef unsigned short Element;
__device__ inline float widen(Element bits) { return widen_half(bits); }
__device__ inline Element narrow(float value) { return narrow_half(value); }
#elif ELEMENT == 2
typedef unsigned short Element;
__device__ inline float widen(Element bits) { return __uint_as_float((u32)bits << 16); }
__device__ inline Element narrow(float value) {  // finite values only; ties to even
  u32 bits = __float_as_uint(value);
  return (Element)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
#endif

struct Box {
  float x1, y1, x2, y2;
};

// Layouts shared with the host: see `runtime/device_structs.py`, whose tests compare the sizes and offsets.
struct Frame {
  u64 pixels;            // device address of uint8 BGR rows, or of a Y plane followed by its UV plane
  int height, width;     // source pixels
  int pitch;             // bytes from row to row
  int format;            // 0 BGR, 1 NV12
  int left, top;         // position of the resized image in the network input
  int fit_width, fit_height;
  double scale_x, scale_y;  // source pixels per resized pixel
  float pad_x, pad_y, scale;  // transform of boxes to the source image
  int halved;            // both sides exactly halved: OpenCV then averages four pixels
  int packed;            // 0: all rows; 1 or 2: only this many rows per resized row
  int reserved;
};

struct Request {
  int images;      // images of the batch in use
  float conf;
  double iou;
  int multi_label, agnostic, max_det;
  int class_filter;  // whether `class_mask` applies
};

struct Found {
  float x1, y1, x2, y2, score;
  int class_id;
  int row;   // of the raw output
  u32 mask;  // offset of its mask's bits in bytes, in the area of its image
};

struct Summary {
  u32 candidates;  // above the threshold, also beyond the capacity
  u32 kept;        // after suppression; those beyond max_det are counted, not written
  u32 overflow;    // 1: candidates exceeded the capacity and nothing was suppressed: run again with more
  u32 mask_bytes;  // that the masks of the image take
};
