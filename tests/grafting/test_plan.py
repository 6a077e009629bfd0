import keras
import pytest
from keras import layers

from kgraft.errors import UserError
from kgraft.grafting import GraftPlan

pytestmark = pytest.mark.core


def riders(plan):
    """Kernel's layer -> the layers that ride with it, by name."""
    return {
        plan.weights[group.kernel][0].split("/")[-2]: sorted(
            {plan.weights[m][0].split("/")[-2] for m in group.members if m != group.kernel}
        )
        for group in plan.groups
    }


def residual():
    """stem -> (c1 -> c2 depthwise | projection) -> add -> pre-activation norm -> dense."""
    x = keras.Input((8, 8, 3))
    h = layers.Conv2D(4, 3, padding="same", use_bias=False, name="stem")(x)
    h = layers.BatchNormalization(name="stem_norm")(h)
    main = layers.Conv2D(8, 3, padding="same", use_bias=False, name="c1")(h)
    main = layers.BatchNormalization(name="n1")(main)
    main = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="c2")(main)
    main = layers.BatchNormalization(name="n2")(main)
    shortcut = layers.Conv2D(8, 1, use_bias=False, name="projection")(h)
    shortcut = layers.BatchNormalization(name="projection_norm")(shortcut)
    h = layers.Add()([main, shortcut])
    h = keras.ops.relu(layers.BatchNormalization(name="last_norm")(h))
    h = layers.Dropout(0.1)(h)
    return keras.Model(x, layers.Dense(3, name="head")(layers.GlobalAveragePooling2D()(h)))


def test_normalisation_rides_with_the_convolution_that_feeds_it():
    plan = riders(GraftPlan.of(residual()))
    assert plan["stem"] == ["stem_norm"]
    assert plan["c1"] == ["n1"]
    assert plan["projection"] == ["projection_norm"]
    assert "n2" in plan["c2"]


def test_every_float_weight_is_in_exactly_one_group():
    model = residual()
    members = [m for group in GraftPlan.of(model).groups for m in group.members]
    assert sorted(members) == list(range(len(model.weights)))


def test_what_has_no_kernel_before_it_rides_with_the_models_first():
    x = keras.Input((6,))
    h = layers.LayerNormalization(name="norm")(layers.Embedding(7, 4, name="embedding")(x))
    h = layers.Conv1D(3, 2, name="conv")(layers.BatchNormalization(name="batch_norm")(h))
    plan = riders(GraftPlan.of(keras.Model(x, layers.Conv1D(3, 2, name="last")(h))))
    assert plan == {"conv": ["batch_norm", "conv", "embedding", "norm"], "last": ["last"]}


@pytest.mark.parametrize("latest", ["conv", "dense"])
def test_a_head_behind_two_branches_goes_by_the_kernel_nearest_to_the_outputs(latest):
    image, vector = keras.Input((6, 6, 1)), keras.Input((4,))
    branches = [
        layers.GlobalAveragePooling2D()(layers.Conv2D(3, 3, name="conv")(image)),
        layers.Dense(3, name="dense")(vector),
    ]
    if latest == "conv":
        branches[1] = layers.Dropout(0.1)(layers.ReLU()(branches[1]))
    head = layers.Dense(2, name="head")(layers.Concatenate()(branches))
    plan = riders(GraftPlan.of(keras.Model([image, vector], head)))
    own = {"head": ["head"]} if latest == "dense" else {}
    assert plan == {"conv": ["conv"] + ["head"] * (not own), "dense": ["dense"], **own}


def test_authors_grouping_lets_projection_shortcuts_ride():
    plan = riders(GraftPlan.of(residual(), "authors"))
    assert list(plan) == ["stem", "c1", "c2"]
    assert plan["c2"] == ["c2", "head", "last_norm", "n2", "projection", "projection_norm"][1:]


def test_authors_grouping_needs_a_graph():
    model = Subclassed()
    model(keras.ops.zeros((1, 8, 8, 1)))
    with pytest.raises(UserError, match="subclassed"):
        GraftPlan.of(model, "authors")


def test_depthwise_filters_lie_on_axes_two_and_three():
    groups = {g.name.split("/")[-2]: g for g in GraftPlan.of(residual()).groups}
    assert groups["c2"].filter_axes == (2, 3)
    assert groups["c2"].filters == 8
    assert groups["c1"].filter_axes == (3,)


def test_each_kernel_of_a_separable_convolution_owns_a_coefficient():
    model = keras.Sequential([keras.Input((8, 8, 3)), layers.SeparableConv2D(5, 3)])
    depthwise, pointwise = GraftPlan.of(model).groups
    assert (depthwise.filter_axes, depthwise.filters) == ((2, 3), 3)
    assert (pointwise.filter_axes, pointwise.filters) == ((3,), 5)
    assert len(pointwise.members) == 2  # the bias


def test_transposed_convolution_counts_its_output_channels():
    model = keras.Sequential([keras.Input((4, 4, 3)), layers.Conv2DTranspose(5, 3)])
    assert GraftPlan.of(model).groups[0].filters == 5


def test_without_convolutions_every_kernel_owns_a_coefficient():
    model = keras.Sequential(
        [
            keras.Input((5,)),
            layers.Normalization(mean=[0.0] * 5, variance=[1.0] * 5),
            layers.Dense(4, name="d1"),
            layers.BatchNormalization(name="norm"),
            layers.Dense(2, name="d2"),
        ]
    )
    assert riders(GraftPlan.of(model)) == {"d1": ["d1", "norm"], "d2": ["d2"]}


@keras.saving.register_keras_serializable("tests")
class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.first = layers.Conv2D(4, 3, name="first")
        self.norm = layers.BatchNormalization(name="norm")
        self.body = keras.Sequential([layers.Conv2D(4, 3, name="inner")], name="body")
        self.head = layers.Dense(2, name="head")

    def call(self, x):
        return self.head(keras.ops.mean(self.body(self.norm(self.first(x))), axis=(1, 2)))


def test_subclassed_models_follow_the_order_of_their_layers():
    model = Subclassed()
    model(keras.ops.zeros((1, 8, 8, 1)))
    assert riders(GraftPlan.of(model)) == {
        "first": ["first", "norm"],
        "inner": ["head", "inner"],
    }


def test_nested_models_are_read_through():
    inner = keras.Sequential(
        [keras.Input((8, 8, 1)), layers.Conv2D(2, 3, name="deep"), layers.Flatten()], name="inner"
    )
    x = keras.Input((8, 8, 1))
    model = keras.Model(x, layers.Dense(2, name="head")(inner(x)))
    assert riders(GraftPlan.of(model)) == {"deep": ["deep", "head"]}


def test_a_layer_used_twice_is_counted_once():
    conv = layers.Conv2D(3, 3, padding="same", name="twice")
    x = keras.Input((8, 8, 3))
    plan = GraftPlan.of(keras.Model(x, conv(conv(x))))
    assert [len(group.members) for group in plan.groups] == [2]


def test_a_custom_layers_kernel_of_rank_four_is_a_convolution():
    class Custom(layers.Layer):
        def build(self, shape):
            self.filters = self.add_weight(shape=(3, 3, shape[-1], 4), name="filters")
            self.centre = self.add_weight(shape=(1, 1, 1, 4), trainable=False, name="centre")

        def call(self, x):
            return keras.ops.conv(x, self.filters, padding="same") - self.centre

    model = keras.Sequential([keras.Input((8, 8, 2)), Custom(), layers.Dense(2)])
    plan = GraftPlan.of(model)
    assert [group.name.split("/")[-1] for group in plan.groups] == ["filters"]
    assert len(plan.groups[0].members) == 4


def test_seeds_and_integers_are_never_blended():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(2, 3),
            layers.Dropout(0.5),
            layers.Flatten(),
            layers.Normalization(),
            layers.Dense(2),
        ]
    )
    plan = GraftPlan.of(model)
    blended = [plan.weights[m] for group in plan.groups for m in group.members]
    assert all(dtype == "float32" for _, _, dtype in blended)
    assert len(blended) == len(model.weights) - 1  # the Normalization's count


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ([layers.Conv2D(5, 3)], r"conv2d.*/kernel is float32 \(3, 3, 1, 4\).*\(3, 3, 1, 5\)"),
        ([layers.Conv2D(4, 3), layers.Conv2D(4, 3)], "peer 1 has 2 weights, peer 2 has 4.*peer 2"),
        ([layers.Conv2D(4, 3, dtype="float16")], r"float16 \(3, 3, 1, 4\)"),
    ],
)
def test_the_first_difference_between_peers_is_named(other, message):
    own = GraftPlan.of(keras.Sequential([keras.Input((8, 8, 1)), layers.Conv2D(4, 3)]))
    theirs = GraftPlan.of(keras.Sequential([keras.Input((8, 8, 1)), *other]))
    with pytest.raises(UserError, match=message):
        own.check_matches(theirs, "peer 1", "peer 2")


def test_peers_with_the_same_weights_but_another_wiring_are_refused():
    def plan(norm_on_second):
        x = keras.Input((8, 8, 2))
        a = layers.Conv2D(2, 3, name="a")(x)
        b = layers.Conv2D(2, 3, name="b")(a)
        norm = layers.BatchNormalization(name="norm")(b if norm_on_second else a)
        return GraftPlan.of(keras.Model(x, [b, norm]))

    assert plan(True).weights == plan(False).weights
    with pytest.raises(UserError, match="wired differently: a/kernel"):
        plan(True).check_matches(plan(False), "peer 1", "peer 2")


def test_a_model_without_weights_is_refused():
    with pytest.raises(UserError, match="no weights yet"):
        GraftPlan.of(keras.Sequential([layers.Dense(2)]))
    with pytest.raises(UserError, match="no kernel"):
        GraftPlan.of(keras.Sequential([keras.Input((3,)), layers.BatchNormalization()]))


def test_an_unknown_grouping_is_refused():
    with pytest.raises(UserError, match="authors"):
        GraftPlan.of(residual(), "author")
