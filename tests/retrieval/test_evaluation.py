import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kgraft.errors import UserError
from kgraft.retrieval import evaluate, ranked
from kgraft.retrieval import evaluation as module
from tests.reference.retrieval import of_query


def scene(seed, *, queries=20, gallery=120, width=6, identities=8, cameras=3, whole=False):
    """Features and who is on which image: with junk, distractors and identities of one camera."""
    rng = np.random.default_rng(seed)
    draw = (
        (lambda n: rng.integers(-2, 3, (n, width)))
        if whole
        else (lambda n: rng.standard_normal((n, width)))
    )
    q_ids, g_ids = rng.integers(1, identities, queries), rng.integers(-1, identities, gallery)
    q_cams, g_cams = rng.integers(0, cameras, queries), rng.integers(0, cameras, gallery)
    g_cams[g_ids == 3] = 0  # on one camera alone
    q_cams[q_ids == 3] = 0
    q, g = draw(queries).astype(np.float32), draw(gallery).astype(np.float32)
    return q, g, q_ids, g_ids, q_cams, g_cams


def expected(q, g, q_ids, g_ids, q_cams, g_cams, metric, ties):
    return [
        of_query(
            q[k], q_ids[k], None if q_cams is None else q_cams[k], g, g_ids, g_cams, metric, ties
        )
        for k in range(len(q))
    ]


def agree(found, oracle):
    for k, own in enumerate(oracle):
        if own is None:
            assert found.first[k] == found.found[k] == 0 and np.isnan(found.precision[k])
            continue
        first, precision, official, penalty, count = own
        assert (found.first[k], found.found[k]) == (first, count)
        np.testing.assert_allclose(found.precision[k], precision, rtol=1e-12)
        np.testing.assert_allclose(found.official_precision[k], official, rtol=1e-12)
        np.testing.assert_allclose(found.inverse_penalty[k], penalty, rtol=1e-12)
    counted = [own for own in oracle if own is not None]
    assert found.counted == len(counted) and found.unmatched == len(oracle) - len(counted)
    np.testing.assert_allclose(found.mean_precision, np.mean([own[1] for own in counted]))
    for k in (1, 5, 10):
        assert found.rank(k) == np.mean([own[0] <= k for own in counted])


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("ties", ["pessimistic", "optimistic", "stable"])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_every_figure_is_the_oracles(metric, ties, whole, seed):
    own = scene(seed, whole=whole)
    agree(evaluate(*own, metric=metric, ties=ties), expected(*own, metric, ties))


@pytest.mark.parametrize("chunk", [1, 7, 20])
def test_chunks_change_nothing(monkeypatch, chunk):
    own = scene(3, whole=True)
    whole = evaluate(*own)
    monkeypatch.setattr(module, "_CHUNK", chunk)
    agree(evaluate(*own), expected(*own, "cosine", "pessimistic"))
    assert whole.figures() == evaluate(*own).figures()


@pytest.mark.parametrize("at_once", [1, 200])
@pytest.mark.parametrize("ties", ["pessimistic", "stable"])
def test_hits_whose_rivals_are_looked_at_in_turns_rank_the_same(monkeypatch, at_once, ties):
    own = scene(3, whole=True)  # small whole numbers: many are as near as others
    monkeypatch.setattr(module, "_AT_ONCE", at_once)
    agree(evaluate(*own, ties=ties), expected(*own, "cosine", ties))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 4), st.booleans())
def test_the_oracle_agrees_whatever_the_scene(seed, gallery, width, cameras):
    own = scene(seed, queries=4, gallery=gallery, width=width, identities=4, whole=True)
    if not cameras:
        own = (*own[:4], None, None)
    oracle = expected(*own, "euclidean", "stable")
    if any(oracle):
        agree(evaluate(*own, metric="euclidean", ties="stable"), oracle)
    else:
        with pytest.raises(UserError, match="of no query is anything to be found"):
            evaluate(*own, metric="euclidean", ties="stable")


def test_ranks_are_counted_by_hand():
    q, g = np.array([[0.0]]), np.array([[3.0], [1.0], [2.0], [4.0], [1.0], [0.5]])
    ids, cams = np.array([7, 3, 7, 7, -1, 7]), np.array([2, 1, 2, 3, 2, 1])
    found = evaluate(q, g, np.array([7]), ids, np.array([1]), cams, metric="euclidean")
    # the nearest is on the query's own camera, junk is at 1; so 3 at 1, then 7 at 2, 3 and 4
    assert found.first.tolist() == [2] and found.found.tolist() == [3]
    np.testing.assert_allclose(found.precision, [(1 / 2 + 2 / 3 + 3 / 4) / 3])
    np.testing.assert_allclose(
        found.official_precision, [(1 / 2 + 0 + 2 / 3 + 1 / 2 + 3 / 4 + 2 / 3) / 6]
    )
    np.testing.assert_allclose(found.inverse_penalty, [3 / 4])
    assert [found.rank(k) for k in (1, 2)] == [0.0, 1.0] and found.unmatched == 0


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("width", [5, 128])
def test_features_that_are_all_alike_find_nothing(metric, width):
    """Also where a product adds the same numbers in another order, row by row."""
    own = np.random.default_rng(0).standard_normal(width).astype(np.float32)
    q, g = np.tile(own, (300, 1)), np.tile(own, (1001, 1))
    ids = np.arange(1001) % 77
    found = evaluate(q, g, np.arange(300) % 77, ids, metric=metric)
    assert (found.first == 1001 - found.found + 1).all() and found.mean_precision < 0.02
    found = evaluate(q, g, np.arange(300) % 77, ids, metric=metric, ties="optimistic")
    assert found.mean_precision == 1
    found = evaluate(q, g, np.arange(300) % 77, ids, metric=metric, ties="stable")
    assert (found.first == np.arange(300) % 77 + 1).all()


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_what_float32_cannot_tell_apart_is_told_apart(metric):
    """Features far from the origin, whose products in float32 are all alike."""
    rng = np.random.default_rng(1)
    q, g, *rest = scene(1, queries=30, gallery=200, width=16)
    far = 4096 * np.sign(rng.standard_normal(16))
    q, g = (q + far).astype(np.float32), (g + far).astype(np.float32)
    agree(evaluate(q, g, *rest, metric=metric), expected(q, g, *rest, metric, "pessimistic"))


def test_an_image_without_any_feature_is_as_far_as_one_at_a_right_angle():
    q, g = np.array([[1.0, 0.0], [0.0, 0.0]]), np.array([[0.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])
    found = evaluate(q, g, np.array([1, 2]), np.array([1, 2, 3]))
    assert found.first.tolist() == [2, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: np.zeros((20, 5))}, r"gallery: 6 numbers an image; expected 5"),
        ({0: np.full((20, 6), np.nan)}, r"queries: row 0 is not finite \(20 such rows\)"),
        ({1: np.zeros((0, 6))}, r"gallery: float64 of shape \(0, 6\)"),
        ({1: np.array([["a"]])}, r"gallery: <U1 of shape \(1, 1\); expected numbers"),
        ({2: np.zeros(3, int)}, r"query_identities: int64 of shape \(3,\).* of shape \(20,\)"),
        ({3: np.zeros(120)}, r"gallery_identities: float64 of shape \(120,\); expected integers"),
        ({4: None}, "only one of queries and gallery has any"),
        ({2: np.full(20, 99)}, "of no query is anything to be found"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    own = list(scene(0))
    for place, value in change.items():
        own[place] = value
    with pytest.raises(UserError, match=message):
        evaluate(*own)


@pytest.mark.parametrize(
    ("option", "message"),
    [({"metric": "l1"}, "metric"), ({"ties": "random"}, "ties")],
)
def test_options_are_checked(option, message):
    with pytest.raises(UserError, match=message):
        evaluate(*scene(0), **option)


@pytest.mark.parametrize("ties", ["pessimistic", "optimistic", "stable"])
def test_a_matrix_of_distances_is_taken_as_it_is(ties):
    q, g, *who = scene(3, whole=True)
    distances = np.square(q[:, None] - g[None]).sum(axis=2)
    given = evaluate(q, g, *who, metric="euclidean", ties=ties)
    for own in (distances, distances.astype(int), keras.ops.array(distances)):
        found = ranked(own, *who, ties=ties)
        np.testing.assert_array_equal(found.precision, given.precision)
        np.testing.assert_array_equal(found.first, given.first)
    with pytest.raises(UserError, match=r"distances: .*expected numbers of shape \(q, g\)"):
        ranked(distances[0], *who)


def test_tensors_that_are_trained_and_halves_are_numbers_too():
    q, g, *who = scene(4, whole=True)
    expected = evaluate(q, g, *who).precision
    for dtype in ("float16", "bfloat16"):
        tensors = [keras.ops.cast(own, dtype) for own in (q, g)]  # small whole numbers: exact
        np.testing.assert_array_equal(evaluate(*tensors, *who).precision, expected)
        arrays = [keras.ops.convert_to_numpy(own) for own in tensors]
        np.testing.assert_array_equal(evaluate(*arrays, *who).precision, expected)
    variables = [keras.Variable(own).value for own in (q, g)]
    np.testing.assert_array_equal(evaluate(*variables, *who).precision, expected)


@pytest.mark.parametrize("scale", [1e14, 1e-14])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_the_scale_of_features_changes_nothing(metric, scale):
    q, g, *who = scene(5)
    expected = evaluate(q, g, *who, metric=metric).precision
    found = evaluate(q * np.float32(scale), g * np.float32(scale), *who, metric=metric)
    np.testing.assert_array_equal(found.precision, expected)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_features_whose_squares_overflow_are_refused(metric):
    q, g, *who = scene(5)
    with pytest.raises(UserError, match="divide all features"):
        evaluate(q * np.float32(1e20), g * np.float32(1e20), *who, metric=metric)
