import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kgraft.grafting import GraftRecord
from kgraft.grafting.ring import donors, ring_mix

pytestmark = pytest.mark.core


def test_ring_uses_the_weights_before_grafting():
    mixed = ring_mix(list(np.float32([1, 2, 3])), [0.5] * 3, donors([True] * 3))
    assert mixed == [2.0, 1.5, 2.5]  # in place would give 2.0, 2.0, 2.5


def test_a_single_peer_has_no_donor():
    assert donors([True]) == (None,)


def test_two_peers_are_equal_after_a_symmetric_grafting():
    first, second = ring_mix(list(np.float32([1, 3])), [0.3, 0.7], donors([True, True]))
    assert first == pytest.approx(second)


@given(st.lists(st.booleans(), min_size=1, max_size=8))
def test_a_sick_peer_neither_gives_nor_takes(healthy):
    ring = donors(healthy)
    for k, donor in enumerate(ring):
        if donor is None:
            assert not healthy[k] or sum(healthy) == 1
        else:
            assert healthy[k] and healthy[donor] and donor != k
    given_away = [donor for donor in ring if donor is not None]
    assert len(given_away) == len(set(given_away))


def test_a_record_becomes_json_rows_counted_from_one():
    record = GraftRecord(
        groups=("a", "b"),
        information=np.array([[1.0, 2.0], [np.nan, np.nan]]),
        coefficients=np.array([[0.25, 0.75], [1.0, 1.0]]),
        donors=(1, None),
    )
    rows = json.loads(json.dumps(record.to_rows(epoch=3)))
    assert rows[1] == {
        "epoch": 3,
        "peer": 1,
        "group": "b",
        "information": 2.0,
        "donor": 2,
        "donor_information": None,
        "coefficient": 0.75,
    }
    assert [row["donor"] for row in rows] == [2, 2, None, None]
    assert record.mean_coefficients.tolist() == [0.5, 1.0]
