import numpy as np
import pytest

from kgraft.errors import UserError
from kgraft.retrieval import evaluate, ranked
from kgraft.retrieval import reranking as module
from kgraft.retrieval.reranking import Reranked
from tests.reference.retrieval import reranked


def people(seed, *, identities=8, each=9, width=12, spread=0.8):
    """Features of some identities, and which rows are queries."""
    rng = np.random.default_rng(seed)
    ids = np.repeat(np.arange(identities), each)
    features = rng.standard_normal((identities, width))[ids]
    features = features + spread * rng.standard_normal((len(ids), width))
    query = np.arange(len(ids)) % each == 0
    return features[query], features[~query], ids[query], ids[~query]


@pytest.mark.parametrize("options", [(20, 6, 0.3), (5, 1, 0.0), (7, 3, 0.8), (100, 90, 0.3)])
@pytest.mark.parametrize("chunk", [256, 5])
def test_distances_are_the_papers(options, chunk, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", chunk)
    q, g, *_ = people(0)
    k1, k2, share = options
    found = Reranked(q, g, k1=k1, k2=k2, share=share)
    k1, k2 = min(k1, len(q) + len(g)), min(k2, len(q) + len(g))
    expected = reranked(q, g, k1, k2, share)
    np.testing.assert_allclose(found.chunk(0, len(q)), expected, atol=2e-5)
    np.testing.assert_allclose(found.chunk(3, 5), expected[3:5], atol=2e-5)
    np.testing.assert_allclose(found.exact(2, np.array([4, 1])), expected[2, [4, 1]], atol=2e-5)


@pytest.mark.parametrize("seed", range(4))
def test_it_finds_more_where_identities_are_clouds(seed):
    q, g, q_ids, g_ids = people(seed, identities=12, width=32, spread=1.2)
    plain = evaluate(q, g, q_ids, g_ids).mean_precision
    assert ranked(Reranked(q, g, k1=8, k2=3), q_ids, g_ids).mean_precision > plain + 0.05


def test_with_the_squared_distance_alone_it_is_the_cosine():
    q, g, q_ids, g_ids = people(2)
    found = ranked(Reranked(q, g, share=1.0), q_ids, g_ids)
    np.testing.assert_allclose(found.precision, evaluate(q, g, q_ids, g_ids).precision)


@pytest.mark.parametrize("option", [{"k1": 0}, {"k2": 0}, {"share": 1.5}])
def test_options_are_checked(option):
    q, g, *_ = people(3)
    with pytest.raises(UserError, match=next(iter(option))):
        Reranked(q, g, **option)


def test_images_that_are_alike_are_equally_near():
    q, g, q_ids, g_ids = people(4, width=64)
    twice, ids = np.concatenate([g, g[::-1]]), np.concatenate([g_ids, 100 + g_ids[::-1]])
    found = ranked(Reranked(q, twice), q_ids, ids)
    hopeful = ranked(Reranked(q, twice), q_ids, ids, ties="optimistic")
    # every image has a twin that is nobody's: it comes before it, or behind it
    assert (found.first >= 2).all() and (hopeful.first % 2 == 1).all()
    assert (found.first == hopeful.first + 1).all()
