// The device twin of `decode.py`: reads float (B, 4 + C, N), of which a runner passes N as rows and 4 + C as columns.
struct Head {
  const Element* raw; int rows, columns;
  __device__ float at(int image, int row, int column) const {
    return widen(raw[((u64)image * columns + column) * rows + row]);
  }
  __device__ int classes() const { return columns - 4; }
  __device__ float objectness(int image, int row) const {  // there is none: the highest finite score
    float highest = 0;
    for (int class_id = 0; class_id < classes(); class_id++) {
      float each = at(image, row, 4 + class_id);
      if (each > highest && each - each == 0) highest = each;
    }
    return highest;
  }
  __device__ float score(int image, int row, float, int class_id) const { return at(image, row, 4 + class_id); }
  __device__ Box box(int image, int row) const {
    float x = at(image, row, 0), y = at(image, row, 1), w = at(image, row, 2) / 2, h = at(image, row, 3) / 2;
    return {x - w, y - h, x + w, y + h};
  }
};
