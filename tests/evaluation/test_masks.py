import json
import math
import os
import subprocess

import cv2
import numpy as np
import pytest
from scipy.ndimage import binary_erosion, distance_transform_edt
from scipy.spatial import KDTree

from tools.benchmarks import metrics as benchmark
from usfm.evaluation.masks import NSD_TOLERANCE, compare

# HD95 and the surface distances that NSD follows from are medpy's, HD is SimpleITK's.
PEER = """
import json, sys
import numpy as np, SimpleITK
from medpy.metric import binary
between, found = getattr(binary, "__surface_distances"), []
for a, b in np.load(sys.argv[1]):
    far = SimpleITK.HausdorffDistanceImageFilter()
    far.Execute(*(SimpleITK.GetImageFromArray(mask.astype(np.uint8)) for mask in (a, b)))
    near = np.concatenate([between(a, b, None, 1), between(b, a, None, 1)])
    within = np.mean(near <= float(sys.argv[2]))
    found.append([binary.dc(a, b), far.GetHausdorffDistance(), binary.hd95(a, b), within])
print(json.dumps(found))
"""


def brute(a, b):
    """DSC, HD, HD95 and NSD of two boolean masks, from lists of their pixels."""
    if not a.any() or not b.any():
        one = a.any() or b.any()
        diagonal = math.hypot(*a.shape)
        return (0, diagonal, diagonal, 0) if one else (1, 0, 0, 1)
    pixels = [np.argwhere(mask) for mask in (a, b)]
    surfaces = [np.argwhere(mask & ~binary_erosion(mask)) for mask in (a, b)]

    def nearest(points, others):
        return KDTree(others).query(points)[0]

    far = max(nearest(*pixels).max(), nearest(*pixels[::-1]).max())
    between = np.concatenate([nearest(*surfaces), nearest(*surfaces[::-1])])
    shared = len({*map(tuple, pixels[0])} & {*map(tuple, pixels[1])})
    return (
        2 * shared / sum(map(len, pixels)),
        far,
        np.percentile(between, 95),
        np.mean(between <= NSD_TOLERANCE),
    )


def random_mask(generator, shape):
    """Empty, full, of a single pixel, of specks or of blobs, which may touch the edge."""
    kind = generator.integers(10)
    if kind < 2:
        return np.full(shape, kind, bool)
    mask = np.zeros(shape, np.uint8)
    if kind == 2:
        mask.flat[generator.integers(mask.size)] = 1
    elif kind == 3:
        mask = generator.random(shape) < generator.random() ** 3
    else:
        for _ in range(generator.integers(1, 4)):
            middle, axes = (generator.integers(max(shape), size=2).tolist() for _ in range(2))
            cv2.ellipse(mask, middle, [1 + n // 3 for n in axes], 0, 0, 360, 1, -1)
    return mask.astype(bool)


def test_1000_random_pairs_agree_with_lists_of_pixels():
    generator = np.random.default_rng(0)
    seen = set()
    for _ in range(1000):
        shape = tuple(generator.integers(1, 28, 2))
        a = random_mask(generator, shape)
        touching = generator.random() < 0.2  # side by side, or one beside the same moved
        b = np.roll(a, 3, 1) & ~a if touching else random_mask(generator, shape)
        # The second class is where neither is, or the second mask alone.
        ours = np.where(a, 1, 2 * generator.integers(2)).astype(np.uint8)
        theirs = np.where(b, 1, 2 * generator.integers(2)).astype(np.uint8)
        scores = compare(ours, theirs, 3)
        for c in range(3):
            expected = brute(ours == c, theirs == c)
            names = ("dsc", "hd", "hd95", "nsd")[: 4 if c else 2]
            found = [scores[f"{name}_{c}"] for name in names]
            assert found == pytest.approx(expected[: len(names)], rel=1e-9, abs=1e-9)
        assert (scores["true_1"], scores["true_2"]) == (b.any(), (theirs == 2).any())
        for name in ("dsc", "hd", "hd95", "nsd"):
            mean = (scores[f"{name}_1"] + scores[f"{name}_2"]) / 2
            assert scores[name] == pytest.approx(mean)
        seen.add((a.any(), a.all(), b.any(), b.all(), touching))
    assert len(seen) > 12  # empty, full and neither met each other


def test_1000_random_pairs_agree_with_medpy_and_simpleitk(tmp_path):
    python = os.environ.get("PEER_PY", "")
    if why := benchmark.lacks(python):
        pytest.skip(f"PEER_PY names no Python with SimpleITK and medpy: {why}")
    generator = np.random.default_rng(1)
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    while len(pairs) < 1000:
        a, b = (random_mask(generator, (27, 19)) for _ in range(2))
        if generator.random() < 0.2:  # side by side, or one beside the same moved
            b = np.roll(a, 3, 1) & ~a
        if a.any() and b.any():  # of empty ones the two say nothing
            pairs.append((a, b))
    np.save(tmp_path / "pairs.npy", pairs)
    command = [python, "-c", PEER, str(tmp_path / "pairs.npy"), str(NSD_TOLERANCE)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for (a, b), expected in zip(pairs, json.loads(done.stdout), strict=True):
        scores = compare(a.astype(np.uint8), b.astype(np.uint8), 2)
        found = [scores[name] for name in ("dsc", "hd", "hd95", "nsd")]
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_distances_are_exact_at_full_size():
    """Their squares are whole numbers, which float32 distances of OpenCV must not lose."""
    ours, theirs = np.zeros((2, 700, 900), np.uint8)
    cv2.ellipse(ours, (300, 300), (290, 120), 30, 0, 360, 1, -1)
    cv2.ellipse(theirs, (610, 420), (250, 200), -10, 0, 360, 1, -1)
    to = [np.asarray(distance_transform_edt(mask == 0)) for mask in (ours, theirs)]
    expected = max(to[1][ours > 0].max(), to[0][theirs > 0].max())
    assert compare(ours, theirs, 2)["hd"] == expected
    assert round(expected**2) == pytest.approx(expected**2, abs=1e-9)


def test_the_surface_of_a_mask_that_fills_the_image_is_the_image_s_edge():
    """As medpy has it: so a hole in the middle is far from any surface."""
    whole, holed = np.ones((2, 21, 21), np.uint8)
    holed[10, 10] = 0
    scores = compare(holed, whole, 2)
    assert scores["hd"] == 1  # a pixel of the whole is one away from the holed mask
    # 80 pixels of the edge on both sides, and 4 round the hole, 9 from the edge.
    assert scores["nsd"] == pytest.approx(160 / 164)
