"""What training has left in networks, over any Keras model; runs' records; statistics over seeds.

Example:
    >>> import keras
    >>> from kgraft.analysis import invalid_ratio, layer_filters
    >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)])
    >>> invalid_ratio(layer_filters(model), [1e-9, 1e9])
    array([0., 1.])
"""

from kgraft.analysis.activations import Rectified, dead_share, has_rectifiers, rectified
from kgraft.analysis.answers import calibration_error, class_accuracies, disagreement
from kgraft.analysis.filters import (
    LayerFilters,
    SplitNorms,
    invalid_ratio,
    layer_filters,
    overlap,
    split_norms,
)
from kgraft.analysis.places import Part, SharedPlaces, by_depth, shared_places
from kgraft.analysis.records import Grafts, Metrics, read_grafts, read_metrics
from kgraft.analysis.statistics import Difference, Spread, paired_difference

__all__ = [
    "Difference",
    "Grafts",
    "LayerFilters",
    "Metrics",
    "Part",
    "Rectified",
    "SharedPlaces",
    "SplitNorms",
    "Spread",
    "by_depth",
    "calibration_error",
    "class_accuracies",
    "dead_share",
    "disagreement",
    "has_rectifiers",
    "invalid_ratio",
    "layer_filters",
    "overlap",
    "paired_difference",
    "read_grafts",
    "read_metrics",
    "rectified",
    "shared_places",
    "split_norms",
]
