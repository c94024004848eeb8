"""Draw images of machine parts on a table, with the box of each: what the default model learns from.

A scene is a function of a seed and an index alone, so that a split is a range of indices and nothing
needs to be stored. Parts are height fields lit from one side; tables, light, shadows, clutter, blur,
noise and JPEG losses vary from scene to scene.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Plane = NDArray[np.float32]
Random = np.random.Generator

NAMES = ("washer", "nut", "bolt", "gear", "bracket", "spring")
CANVAS = 192  # side of the square on which a part is drawn before it is turned, scaled and placed
_MIDDLE = CANVAS / 2


@dataclass(frozen=True)
class Scene:
    """An image, uint8 (H, W, 3) BGR, and its parts: float32 (M, 4) xyxy in pixels, int64 (M,)."""

    image: Image
    boxes: NDArray[np.float32]
    classes: NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """A part lying flat on its canvas: coverage and height in 0..1, tint in 0..1 (1: not darkened)."""

    cover: Plane
    height: Plane
    tint: Plane


def _part(mask: Image, bevel: float, tint: Plane | None = None, relief: Plane | None = None) -> Part:
    """Raise a flat mask: its edge slopes over `bevel` canvas pixels; `relief` is added to the height."""
    distance = cv2.distanceTransform((mask > 127).astype(np.uint8), cv2.DIST_L2, 5)
    slope = np.clip(distance / bevel, 0, 1)
    height = np.sqrt(np.clip(1 - (1 - slope) ** 2, 0, 1))
    if relief is not None:
        height = height + relief * (mask > 127)
    height = cv2.GaussianBlur(height, (0, 0), 1.2)
    return Part(
        (mask / 255).astype(np.float32), height.astype(np.float32), np.ones_like(height) if tint is None else tint
    )


def _blank() -> Image:
    return np.zeros((CANVAS, CANVAS), np.uint8)


def _disc(mask: Image, radius: float, value: int, center: tuple[float, float] = (_MIDDLE, _MIDDLE)) -> None:
    at = (round(center[0] * 16), round(center[1] * 16))
    cv2.circle(mask, at, round(radius * 16), value, cv2.FILLED, cv2.LINE_AA, shift=4)


def _polygon(mask: Image, points: NDArray[Any], value: int = 255) -> None:
    cv2.fillPoly(mask, [np.round(np.asarray(points) * 16).astype(np.int32)], value, cv2.LINE_AA, shift=4)


def _ring_of_points(radius: NDArray[np.float64], angle: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack([_MIDDLE + radius * np.cos(angle), _MIDDLE + radius * np.sin(angle)], axis=1)


def _washer(rng: Random) -> Part:
    mask = _blank()
    _disc(mask, 88, 255)
    _disc(mask, 88 * rng.uniform(0.42, 0.66), 0)
    return _part(mask, bevel=rng.uniform(5, 9))


def _nut(rng: Random) -> Part:
    mask = _blank()
    _polygon(mask, _ring_of_points(np.full(6, 90.0), np.arange(6) * np.pi / 3))
    hole = rng.uniform(40, 50)
    _disc(mask, hole, 0)
    collar = _blank()
    _disc(collar, hole + rng.uniform(8, 14), 255)
    return _part(mask, bevel=rng.uniform(10, 18), relief=(collar / 255 * 0.4).astype(np.float32))


def _bolt(rng: Random) -> Part:
    mask = _blank()
    half_head, half_shaft = rng.uniform(26, 34), rng.uniform(13, 19)
    end_of_head = 8 + rng.uniform(24, 36)
    tip = 184 - rng.uniform(0, 40)
    _polygon(
        mask,
        np.array(
            [[8, 96 - half_head], [end_of_head, 96 - half_head], [end_of_head, 96 + half_head], [8, 96 + half_head]]
        ),
    )
    shaft = [[end_of_head - 2, 96 - half_shaft], [tip - 5, 96 - half_shaft], [tip, 96 - half_shaft + 6],
             [tip, 96 + half_shaft - 6], [tip - 5, 96 + half_shaft], [end_of_head - 2, 96 + half_shaft]]  # fmt: skip
    _polygon(mask, np.array(shaft))
    x, y = np.meshgrid(np.arange(CANVAS, dtype=np.float32), np.arange(CANVAS, dtype=np.float32))
    threaded = x > end_of_head + rng.uniform(4, 40)
    wave = 0.5 + 0.5 * np.sin(2 * np.pi * (x + 0.25 * y) / rng.uniform(7, 11))
    tint = np.where(threaded, 0.55 + 0.45 * wave, 1).astype(np.float32)
    relief = np.where(threaded, 0.25 * wave, 0).astype(np.float32)
    return _part(mask, bevel=half_shaft, tint=tint, relief=relief)


def _gear(rng: Random) -> Part:
    mask = _blank()
    teeth = int(rng.integers(9, 17))
    steps = np.arange(teeth * 4)
    tooth = np.where(steps % 4 < 2, 91.0, 91.0 * rng.uniform(0.74, 0.82))
    angle = (
        (steps + np.where(steps % 4 < 2, 0.15 - 0.3 * (steps % 4), -0.15 + 0.3 * (steps % 4 - 2))) * np.pi / (2 * teeth)
    )
    _polygon(mask, _ring_of_points(tooth, angle))
    _disc(mask, rng.uniform(14, 26), 0)
    if rng.random() < 0.5:
        spokes = int(rng.integers(3, 6))
        for turn in np.arange(spokes) * 2 * np.pi / spokes:
            _disc(mask, 11, 0, (_MIDDLE + 45 * np.cos(turn), _MIDDLE + 45 * np.sin(turn)))
    return _part(mask, bevel=rng.uniform(5, 9))


def _bracket(rng: Random) -> Part:
    mask = _blank()
    width, arm = rng.uniform(44, 60), rng.uniform(120, 172)
    corner = np.array(
        [[12, 12], [12 + arm, 12], [12 + arm, 12 + width], [12 + width, 12 + width], [12 + width, 180], [12, 180]]
    )
    _polygon(mask, corner)
    radius = width * rng.uniform(0.18, 0.26)
    _disc(mask, radius, 0, (12 + arm - width / 2, 12 + width / 2))
    _disc(mask, radius, 0, (12 + width / 2, 180 - width / 2))
    if rng.random() < 0.5:
        _disc(mask, radius, 0, (12 + width / 2, 12 + width / 2))
    return _part(mask, bevel=rng.uniform(4, 7))


def _spring(rng: Random) -> Part:
    mask = _blank()
    turns, half = int(rng.integers(5, 10)), rng.uniform(24, 36)
    t = np.linspace(0, 1, 60 * turns)
    points = np.stack([14 + 164 * t, 96 + half * np.sin(2 * np.pi * turns * t)], axis=1)
    thickness = round(rng.uniform(6, 9))
    cv2.polylines(mask, [np.round(points * 16).astype(np.int32)], False, 255, thickness, cv2.LINE_AA, shift=4)
    return _part(mask, bevel=thickness / 2)


_DRAW: tuple[Callable[[Random], Part], ...] = (_washer, _nut, _bolt, _gear, _bracket, _spring)
# BGR of steel, zinc, black oxide, brass, copper, and four paints.
_METALS = np.array([[190, 186, 180], [208, 210, 205], [70, 66, 64], [92, 170, 205], [88, 124, 196]], np.float32)
_PAINTS = np.array([[60, 60, 200], [190, 120, 50], [80, 150, 60], [40, 160, 230]], np.float32)


def _smooth_noise(rng: Random, shape: tuple[int, int], cell: tuple[int, int]) -> Plane:
    """Return noise in about -1..1 whose grains are `cell` (height, width) pixels large."""
    grid = rng.standard_normal((max(2, shape[0] // cell[0]), max(2, shape[1] // cell[1]))).astype(np.float32)
    return np.asarray(cv2.resize(grid, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC), np.float32)


def _table(rng: Random, shape: tuple[int, int]) -> Plane:
    """Return an empty table, float32 (H, W, 3): brushed metal, wood, rubber, mat, stone or paper."""
    kind = int(rng.integers(6))
    base = (
        rng.uniform(90, 190) + rng.uniform(-8, 8, 3),
        np.array([95, 140, 180]) * rng.uniform(0.6, 1.15),
        rng.uniform(30, 80) + rng.uniform(-6, 6, 3),
        np.array([[70, 110, 60], [110, 80, 50], [60, 60, 70]])[rng.integers(3)] * rng.uniform(0.8, 1.3),
        rng.uniform(80, 200) + rng.uniform(-15, 15, 3),
        rng.uniform(170, 235) + rng.uniform(-12, 12, 3),
    )[kind]
    grain = (
        9 * _smooth_noise(rng, shape, (1, 90)),
        9 * _smooth_noise(rng, shape, (3, 200)) + 12 * _smooth_noise(rng, shape, (18, 400)),
        7 * _smooth_noise(rng, shape, (2, 2)),
        3 * _smooth_noise(rng, shape, (2, 2)),
        14 * _smooth_noise(rng, shape, (4, 4)) + 10 * _smooth_noise(rng, shape, (30, 30)),
        4 * _smooth_noise(rng, shape, (3, 3)) + 5 * _smooth_noise(rng, shape, (60, 60)),
    )[kind]
    table = np.asarray(base, np.float32) + grain[:, :, None] * rng.uniform(0.5, 1.2)
    if kind == 3:
        pitch, offset = int(rng.integers(28, 60)), rng.integers(0, 28, 2)
        table[offset[0] :: pitch] += 22
        table[:, offset[1] :: pitch] += 22
    if kind == 1:
        for row in range(int(rng.integers(20, 120)), shape[0], int(rng.integers(90, 200))):
            table[row : row + 2] *= 0.6
    return np.ascontiguousarray(table, np.float32)


def _clutter(rng: Random, table: Plane) -> None:
    """Put on the table what is no part: scratches, stains, labels."""
    height, width = table.shape[:2]
    for _ in range(int(rng.integers(0, 6))):
        at, to = rng.uniform(0, [width, height], (2, 2)).astype(int)
        shade = float(rng.uniform(-45, 45))
        color = tuple(float(c) + shade for c in table[min(at[1], height - 1), min(at[0], width - 1)])
        cv2.line(table, tuple(map(int, at)), tuple(map(int, to)), color, int(rng.integers(1, 3)), cv2.LINE_AA)
    for _ in range(int(rng.integers(0, 3))):
        stain = np.zeros((height, width), np.float32)
        at = tuple(map(int, rng.uniform(0, [width, height])))
        cv2.ellipse(stain, at, tuple(map(int, rng.uniform(10, 70, 2))), float(rng.uniform(0, 180)), 0, 360, 1.0, -1)
        table *= 1 + cv2.GaussianBlur(stain, (0, 0), 5)[:, :, None] * np.float32(rng.uniform(-0.25, 0.15))
    if rng.random() < 0.35:
        x, y = map(int, rng.uniform(0, [width * 0.8, height * 0.9]))
        paper = tuple(map(float, rng.uniform(170, 240) + rng.uniform(-20, 20, 3)))
        cv2.rectangle(table, (x, y), (x + int(rng.integers(60, 150)), y + int(rng.integers(24, 60))), paper, -1)
        text = "".join(rng.choice(list("ABCDEFGHKLMNPRSTXZ0123456789-"), 7))
        ink = np.zeros((height, width), np.uint8)
        cv2.putText(ink, text, (x + 6, y + 20), cv2.FONT_HERSHEY_SIMPLEX, 0.5, 255, 1, cv2.LINE_AA)
        table *= 1 - 0.8 * (ink / 255).astype(np.float32)[:, :, None]


def _pose(rng: Random, center: tuple[float, float], size: float) -> NDArray[np.float64]:
    """Return the 2x3 matrix from canvas to image: turned freely, `size` pixels long, a little tilted."""
    turn, tilt = rng.uniform(0, 2 * np.pi, 2)
    squeeze = rng.uniform(0.8, 1)
    turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    tilted = np.array([[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]])
    linear = tilted @ np.diag([1, squeeze]) @ tilted.T @ turned * (size / CANVAS)
    return np.hstack([linear, (np.array(center) - linear @ [_MIDDLE, _MIDDLE])[:, None]])


def _lay(rng: Random, canvas: Plane, part: Part, pose: NDArray[np.float64], light: NDArray[np.float32]) -> None:
    """Draw a part with its shadow into the image; `light` is the direction it comes from, (x, y, z)."""
    height, width = canvas.shape[:2]
    scale = float(np.sqrt(abs(np.linalg.det(pose[:, :2]))))
    center = pose @ [_MIDDLE, _MIDDLE, 1]
    reach = round(CANVAS * scale * 0.75) + 14
    x0, y0 = max(0, int(center[0]) - reach), max(0, int(center[1]) - reach)
    x1, y1 = min(width, int(center[0]) + reach), min(height, int(center[1]) + reach)
    if x1 - x0 < 2 or y1 - y0 < 2:
        return
    local = pose - np.array([[0, 0, x0], [0, 0, y0]])
    flags = cv2.INTER_AREA if scale < 0.5 else cv2.INTER_LINEAR
    sigma = max(0.0, 0.4 / scale - 0.4)

    def placed(plane: Plane) -> Plane:
        smooth = cv2.GaussianBlur(plane, (0, 0), sigma) if sigma > 0.1 else plane
        return np.asarray(cv2.warpAffine(smooth, local, (x1 - x0, y1 - y0), flags=flags), np.float32)

    cover = np.clip(placed(part.cover), 0, 1)
    raised = placed(part.height)
    drop = rng.uniform(2, 5) * (0.5 + scale)
    shift = np.array([[1, 0, -light[0] * drop], [0, 1, -light[1] * drop]])
    shadow = cv2.warpAffine(cover, shift, (x1 - x0, y1 - y0))
    shadow = cv2.GaussianBlur(shadow, (0, 0), drop * 0.6 + 0.5) * rng.uniform(0.3, 0.6)
    region = canvas[y0:y1, x0:x1]
    region *= 1 - shadow[:, :, None]
    along_x, along_y = (cv2.Sobel(raised, cv2.CV_32F, *axis, scale=14 * scale / 8) for axis in ((1, 0), (0, 1)))
    lit = np.clip(0.35 + 0.75 * (light[2] - light[0] * along_x - light[1] * along_y), 0.12, 1.6)
    color = _PAINTS[rng.integers(len(_PAINTS))] if rng.random() < 0.2 else _METALS[rng.integers(len(_METALS))]
    color = color * rng.uniform(0.85, 1.1) + rng.uniform(-10, 10, 3)
    grain = 1 + 0.05 * _smooth_noise(rng, cover.shape, (1, 12))
    shine = 90 * np.clip(lit - 1.05, 0, 1)
    surface = (color * (lit * grain * placed(part.tint))[:, :, None] + shine[:, :, None]).astype(np.float32)
    region += (surface - region) * cover[:, :, None]


def _outline(part: Part) -> NDArray[np.float64]:
    """Return the convex hull of a part as (3, K) homogeneous canvas coordinates."""
    rows, columns = np.nonzero(part.cover > 0.5)
    hull = cv2.convexHull(np.stack([columns, rows], axis=1).astype(np.float32))[:, 0]
    return np.vstack([hull.T.astype(np.float64), np.ones(len(hull))])


def _box(
    outline: NDArray[np.float64], pose: NDArray[np.float64], shape: tuple[int, int]
) -> tuple[NDArray[np.float32], float]:
    """Return the box of a placed part, clipped to the image, and the share of it inside the image."""
    x, y = pose @ outline
    half = 0.5 * np.sqrt(abs(np.linalg.det(pose[:, :2])))  # a canvas pixel is an area, not a point
    whole = np.array([x.min() - half, y.min() - half, x.max() + half, y.max() + half])
    clipped = np.clip(whole, 0, [shape[1], shape[0]] * 2)
    inside = np.prod(clipped[2:] - clipped[:2]) / np.prod(whole[2:] - whole[:2])
    return clipped.astype(np.float32), float(inside)


def _overlap(box: NDArray[np.float32], others: list[NDArray[np.float32]]) -> float:
    """Return the largest share of the smaller box that any other box covers."""
    worst = 0.0
    for other in others:
        low, high = np.maximum(box[:2], other[:2]), np.minimum(box[2:], other[2:])
        shared = float(np.prod(np.clip(high - low, 0, None)))
        worst = max(worst, shared / float(min(np.prod(box[2:] - box[:2]), np.prod(other[2:] - other[:2]))))
    return worst


def _cable(rng: Random, canvas: Plane) -> None:
    """Draw a cable over everything."""
    height, width = canvas.shape[:2]
    ends = rng.uniform(-0.1, 1.1, (4, 2)) * [width, height]
    t = np.linspace(0, 1, 60)[:, None]
    curve = (1 - t) ** 3 * ends[0] + 3 * (1 - t) ** 2 * t * ends[1] + 3 * (1 - t) * t**2 * ends[2] + t**3 * ends[3]
    points = [np.round(curve * 16).astype(np.int32)]
    color = rng.uniform(20, 200, 3)
    thickness = int(rng.integers(4, 9))
    cv2.polylines(canvas, points, False, tuple(map(float, color * 0.6)), thickness, cv2.LINE_AA, shift=4)
    cv2.polylines(canvas, points, False, tuple(map(float, color)), max(1, thickness // 2), cv2.LINE_AA, shift=4)


def _camera(rng: Random, canvas: Plane) -> Image:
    """Photograph the scene: uneven light, exposure, colour cast, blur, noise, JPEG."""
    shape = canvas.shape[:2]
    canvas = canvas * (1 + 0.12 * _smooth_noise(rng, shape, (shape[0], shape[1])))[:, :, None]
    canvas = canvas * (rng.uniform(0.65, 1.25) * rng.uniform(0.93, 1.07, 3)).astype(np.float32) + np.float32(
        rng.uniform(-15, 15)
    )
    if rng.random() < 0.6:
        canvas = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.4, 1.8))
    canvas = canvas + rng.standard_normal(canvas.shape, np.float32) * np.float32(rng.uniform(1, 11))
    image = np.clip(canvas, 0, 255).astype(np.uint8)
    _, coded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(55, 97))])
    return np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), np.uint8)


_SHAPES = ((480, 640), (480, 640), (640, 480), (640, 640), (360, 640))


def scene(seed: int, index: int, shape: tuple[int, int] | None = None) -> Scene:
    """Draw one scene.

    Args:
        seed, index: name the scene; the same pair draws the same one.
        shape: (height, width) in pixels, or None for one of several.
    """
    rng = np.random.default_rng([seed, index])
    height, width = shape or _SHAPES[rng.integers(len(_SHAPES))]
    canvas = _table(rng, (height, width))
    _clutter(rng, canvas)
    toward = rng.uniform(0, 2 * np.pi)
    light = np.array([0.75 * np.cos(toward), 0.75 * np.sin(toward), 0.66], np.float32)
    boxes: list[NDArray[np.float32]] = []
    classes: list[int] = []
    crowd = rng.uniform(0, 0.3)
    for _ in range(int(rng.integers(1, 15))):
        kind = int(rng.integers(len(NAMES)))
        part = _DRAW[kind](rng)
        outline = _outline(part)
        for _ in range(12):
            size = float(np.exp(rng.uniform(np.log(44), np.log(210))))
            pose = _pose(rng, tuple(rng.uniform(0, [width, height])), size)
            box, inside = _box(outline, pose, (height, width))
            if inside > 0.6 and _overlap(box, boxes) <= crowd:
                _lay(rng, canvas, part, pose, light)
                boxes.append(box)
                classes.append(kind)
                break
    for _ in range(int(rng.integers(0, 3))):
        _cable(rng, canvas)
    image = _camera(rng, canvas)
    return Scene(image, np.array(boxes, np.float32).reshape(-1, 4), np.array(classes, np.int64))
