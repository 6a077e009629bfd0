import numpy as np
import pytest
from PIL import Image

from kgraft.data import Files, OpenSet, Photos
from kgraft.errors import UserError
from kgraft.retrieval import evaluate
from kgraft.retrieval.distances import FeatureDistances
from kgraft.retrieval.page import first_results, page, worst


@pytest.fixture
def scene(tmp_path):
    """Two queries and six gallery images on a line; every image has a colour of its own."""
    at = np.array([[0.0], [10.0], [0.5], [1.0], [2.0], [9.0], [10.5], [10.2]], np.float32)
    who = np.array([7, 8, 3, 7, 7, 3, -1, 8])
    cameras = np.array([1, 1, 2, 1, 2, 2, 2, 2])
    paths = []
    for k in range(8):
        Image.new("RGB", (16, 32), (20 * k + 40, 90, 200 - 20 * k)).save(tmp_path / f"{k}.png")
        paths.append(f"{k}.png")
    photos = Photos.of(Files(tmp_path, paths), (32, 16))
    open_set = OpenSet(who, cameras, 2)
    q, g = at[:2], at[2:]
    found = evaluate(q, g, who[:2], who[2:], cameras[:2], cameras[2:], metric="euclidean")
    return photos, FeatureDistances(q, g, "euclidean"), open_set, found


def test_the_first_results_are_those_that_count(scene):
    _, distances, open_set, found = scene
    nearest, right = first_results(distances, open_set, 0, 10)
    assert nearest.tolist() == [0, 2, 3, 5]  # 1 is on the query's own camera, 4 is junk
    assert right.tolist() == [False, True, False, False]
    assert found.first.tolist() == [2, 1]
    assert first_results(distances, open_set, 1, 2)[0].tolist() == [5, 3]


def test_the_worst_come_first(scene):
    *_, found = scene
    assert worst(found, 5).tolist() == [0, 1] and worst(found, 1).tolist() == [0]
    with pytest.raises(UserError, match="count"):
        worst(found, 0)


def test_a_page_shows_queries_and_results_and_frames_the_right_ones(scene):
    photos, distances, open_set, found = scene
    pixels = np.asarray(page(photos, distances, open_set, found, [0, 1], results=4))
    frame = (pixels == (0, 114, 178)).all(axis=2)
    for k, times in enumerate([1, 1, 1, 1, 2, 2, 0, 2]):  # 96 x 192 pixels each time, whole
        shown = (pixels == (20 * k + 40, 90, 200 - 20 * k)).all(axis=2)
        assert shown.sum() == times * 96 * 192, k
    assert frame.any() and frame[:, :110].sum() == 0
