// Reads the raw output of a YOLOv5 head in device memory: step 1 of `decode.py`, with the same arithmetic.
// A GPU runner compiles this between its own prelude (Element, widen, Box) and its suppression kernels.
// COEFFICIENTS: columns after the classes, of a segmentation head.

struct Head {
  const Element* raw;  // (B, rows, columns); a row is cx, cy, w, h, objectness, class scores, mask coefficients
  int rows, columns;

  __device__ const Element* row_of(int image, int row) const { return raw + ((long long)image * rows + row) * columns; }
  __device__ int coefficients() const { return COEFFICIENTS; }
  __device__ int classes() const { return columns - 5 - COEFFICIENTS; }
  __device__ float objectness(int image, int row) const { return widen(row_of(image, row)[4]); }
  __device__ float score(int image, int row, float objectness, int class_id) const {
    return objectness * widen(row_of(image, row)[5 + class_id]);
  }
  // Scaled by the objectness as in `segment.py`.
  __device__ float coefficient(int image, int row, int index) const {
    const Element* at = row_of(image, row);
    return widen(at[5 + classes() + index]) * widen(at[4]);
  }
  __device__ Box box(int image, int row) const {
    const Element* at = row_of(image, row);
    float x = widen(at[0]), y = widen(at[1]), half_w = widen(at[2]) / 2, half_h = widen(at[3]) / 2;
    Box out = {x - half_w, y - half_h, x + half_w, y + half_h};
    return out;
  }
};
