"""From raw YOLOv5 head output to boxes in source-image pixels.

These are the exact semantics. Another implementation of them (a device program of a GPU runner) must
give the same detections; where it computes faster or on other hardware, only what is said here counts.

All values are float32, float16 input is widened first. `fl()` is one rounding to float32.

1. Candidates of one image. A row r is cx, cy, w, h, objectness, class scores. For each class c
   score(r, c) = fl(objectness * class score); corners x1 = fl(cx - fl(w / 2)), y1 = fl(cy - fl(h / 2)),
   x2 = fl(cx + fl(w / 2)), y2 = fl(cy + fl(h / 2)). No fused multiply-add: it skips a rounding.
   (r, c) is a candidate if objectness > conf, score > conf (`conf` rounded to float32, both strict),
   and the score and the four corners are finite. So a NaN or infinity takes out what it touches: one
   class, or the whole row if it is in the box or the objectness; nothing else.
2. One class or many. With `multi_label` every candidate counts. Without, a row keeps the candidate
   with its highest score, at a tie the lowest class id.
3. Class filter. With `classes`, candidates of other classes go. It comes after step 2: a row whose best
   class is not wanted gives nothing, rather than its second best.
4. Order. Score descending; at equal scores row ascending, then class ascending (candidate order).
5. Suppression, greedy in that order, within one image and class (`agnostic`: within one image): a
   candidate goes if its IoU with one kept before it is greater than `iou` (strict). IoU is taken from
   the float32 corners with float64 arithmetic: area = max(x2 - x1, 0) * max(y2 - y1, 0),
   inter = max(min x2 - max x1, 0) * max(min y2 - max y1, 0), IoU = inter / (area + area' - inter),
   compared with `iou` as a float64. Where the union is 0 the IoU is 0: boxes without area neither
   suppress nor are suppressed. No coordinate offset per class, no cap on candidates, no time limit.
6. `max_det`: the first `max_det` kept candidates in the order of step 4, over all classes, are the
   result; `truncated` is the number of the other kept ones.
7. Back to the source image: (x - pad) / scale in float32, pad and scale rounded to float32 first,
   then clipped to 0..width and 0..height (`yolotrt_core.letterbox.boxes_to_source`). Suppression is
   done before, in input pixels.

Float32 arithmetic may decide step 5 wherever its IoU is further from `iou` than its own rounding
(about 1e-6 relative); nearer pairs need float64.

Steps 1 to 4 and 6 to 7 follow ultralytics/yolov5 v7.0, utils/general.py, `non_max_suppression` and
`scale_boxes`. Step 5 differs on purpose: upstream separates classes by adding class * 7680 to the
coordinates in float32, which loses up to 16 bits of them, keeps at most 30000 candidates and stops
after a time limit.
"""
