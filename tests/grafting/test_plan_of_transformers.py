"""GraftPlan outside CNNs: attention, dense and recurrent kernels, and what rides with them."""

import keras
import pytest
from keras import layers

from kgraft.grafting import GraftPlan


def owners(model, **options):
    """The kernels that own a coefficient, by the last two parts of their paths."""
    return ["/".join(g.name.split("/")[-2:]) for g in GraftPlan.of(model, **options).groups]


def carrier(model, end):
    """The kernel that the only weight whose path ends so rides with."""
    plan = GraftPlan.of(model)
    (found,) = (
        "/".join(group.name.split("/")[-2:])
        for group in plan.groups
        for index in group.members
        if plan.weights[index][0].endswith(end)
    )
    return found


class Positions(layers.Layer):
    def build(self, shape):
        self.positions = self.add_weight(shape=(1, *shape[1:]), name="positions")

    def call(self, x):
        return x + self.positions


def vit(blocks=2):
    """Patches by a convolution, positions, pre-norm blocks, a head."""
    images = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 4, strides=4, name="patches")(images)
    x = Positions(name="where")(layers.Reshape((4, 6))(x))
    for b in range(blocks):
        h = layers.LayerNormalization(name=f"norm{b}a")(x)
        x = x + layers.MultiHeadAttention(2, 3, name=f"attention{b}")(h, h)
        h = layers.LayerNormalization(name=f"norm{b}b")(x)
        h = layers.Dense(12, activation="gelu", name=f"up{b}")(h)
        x = layers.Add()([x, layers.Dense(6, name=f"down{b}")(h)])
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization(name="last")(x))
    return keras.Model(images, layers.Dense(3, name="head")(x), name="vit")


def expected(blocks=2):
    inner = ("query", "key", "value", "attention_output", "up{b}", "down{b}")
    kernels = [f"{name.format(b=b)}/kernel" for b in range(blocks) for name in inner]
    return ["patches/kernel", *kernels, "head/kernel"]


@pytest.mark.core
def test_a_vit_with_a_convolutional_stem_has_a_group_for_each_kernel():
    assert owners(vit()) == expected()


def test_its_biases_norms_and_positions_ride():
    model = vit()
    plan = GraftPlan.of(model)
    assert sum(len(group.members) for group in plan.groups) == len(model.weights)
    assert carrier(model, "attention1/query/bias") == "query/kernel"
    assert carrier(model, "up0/bias") == "up0/kernel"
    assert carrier(model, "where/positions") == "patches/kernel"
    assert carrier(model, "norm0a/gamma") == "patches/kernel"
    assert carrier(model, "norm1a/beta") == "down0/kernel"
    assert carrier(model, "last/gamma") == "down1/kernel"


def test_attention_and_parallel_mlp_off_one_norm_are_both_branches():
    images = keras.Input((8, 8, 3))
    x = layers.Reshape((4, 6))(layers.Conv2D(6, 4, strides=4, name="patches")(images))
    h = layers.LayerNormalization()(x)
    x = x + layers.MultiHeadAttention(2, 3)(h, h) + layers.Dense(6, name="mlp")(h)
    names = owners(keras.Model(images, layers.Dense(3, name="head")(x)))
    assert names[0] == "patches/kernel"
    assert "mlp/kernel" in names
    assert names[-1] == "head/kernel"


def test_attention_after_a_convolution_in_its_own_branch_rides():
    x = keras.Input((4, 6))
    h = layers.Conv1D(6, 1, name="in")(x)
    h = layers.MultiHeadAttention(2, 3)(h, h)
    h = layers.Add()([x, layers.Conv1D(6, 1, name="out")(h)])
    assert owners(keras.Model(x, layers.Dense(2)(h))) == ["in/kernel", "out/kernel"]


def test_squeeze_excitation_rides_whatever_is_added_in_it():
    """A gate multiplies, and the sum of its two ways (CBAM) is none of a branch with its trunk."""
    x = keras.Input((8, 8, 4))
    h = layers.Conv2D(4, 3, padding="same", name="conv")(x)
    shrink, grow = layers.Dense(2, name="shrink"), layers.Dense(4, name="grow")
    ways = [layers.GlobalAveragePooling2D()(h), layers.GlobalMaxPooling2D()(h)]
    gate = layers.Add()([grow(shrink(way)) for way in ways])
    h = layers.Add()([x, layers.Multiply()([h, layers.Reshape((1, 1, 4))(gate)])])
    model = keras.Model(x, layers.Dense(2, name="head")(layers.Flatten()(h)))
    assert owners(model) == ["conv/kernel"]


class Excite(layers.Layer):
    def __init__(self):
        super().__init__(name="excite")
        self.shrink, self.grow = layers.Dense(2, name="shrink"), layers.Dense(4, name="grow")

    def call(self, x):
        return x * self.grow(self.shrink(keras.ops.mean(x, (1, 2), keepdims=True)))


class Block(layers.Layer):
    def __init__(self, name):
        super().__init__(name=name)
        self.before, self.between = layers.LayerNormalization(), layers.LayerNormalization()
        self.attention = layers.MultiHeadAttention(2, 3)
        self.mlp = keras.Sequential([layers.Dense(8, name="up"), layers.Dense(6, name="down")])

    def call(self, x):
        h = self.before(x)
        x = x + self.attention(h, h)
        return x + self.mlp(self.between(x))


def test_blocks_that_are_layers_own_their_kernels():
    images = keras.Input((8, 8, 3))
    x = layers.Reshape((4, 6))(layers.Conv2D(6, 4, strides=4, name="patches")(images))
    model = keras.Model(images, layers.Dense(3, name="head")(Block("b")(x)))
    inner = ["query", "key", "value", "attention_output", "up", "down"]
    assert owners(model) == [f"{name}/kernel" for name in ("patches", *inner, "head")]


def test_a_squeeze_excitation_that_is_a_layer_rides():
    x = keras.Input((8, 8, 3))
    h = Excite()(layers.Conv2D(4, 3, name="conv")(x))
    model = keras.Model(x, layers.Dense(2)(layers.GlobalAveragePooling2D()(h)))
    assert owners(model) == ["conv/kernel"]


class SubclassedViT(keras.Model):
    def __init__(self):
        super().__init__()
        self.patches = layers.Conv2D(6, 4, strides=4, name="patches")
        self.blocks = [Block("b0"), Block("b1")]
        self.head = layers.Dense(3, name="head")

    def call(self, x):
        x = keras.ops.reshape(self.patches(x), (-1, 4, 6))
        for block in self.blocks:
            x = block(x)
        return self.head(keras.ops.mean(x, axis=1))


@pytest.mark.core
def test_a_subclassed_vit_has_a_group_for_each_kernel():
    model = SubclassedViT()
    model(keras.ops.zeros((1, 8, 8, 3)))
    inner = ["query", "key", "value", "attention_output", "up", "down"] * 2
    assert owners(model) == [f"{name}/kernel" for name in ("patches", *inner, "head")]


@pytest.mark.core
def test_embeddings_and_wide_biases_ride_in_a_model_of_words():
    words = keras.Input((5,), dtype="int32")
    x = layers.Embedding(11, 6, name="words")(words)
    x = layers.Bidirectional(layers.GRU(4, name="gru"), name="both")(x)
    model = keras.Model(words, layers.Dense(2, name="head")(x))
    names = owners(model)
    assert [name.split("/")[-1] for name in names] == ["kernel", "recurrent_kernel"] * 2 + [
        "kernel"
    ]
    plan = GraftPlan.of(model)
    assert next(plan.weights[i][0] for i in plan.groups[0].members) == "words/embeddings"


def test_grouped_query_attention_owns_its_kernels_and_not_its_biases():
    x = keras.Input((4, 6))
    model = keras.Model(x, layers.GroupQueryAttention(3, 4, 2)(x, x))
    assert [name.split("/")[-1] for name in owners(model)] == ["kernel"] * 4


def test_filters_of_an_attention_kernel_are_its_outputs():
    x = keras.Input((4, 6))
    model = keras.Model(x, layers.MultiHeadAttention(2, 3)(x, x))
    query, *_, output = GraftPlan.of(model).groups
    assert (query.kernel_shape, query.filter_axes) == ((6, 2, 3), (1, 2))
    assert (output.kernel_shape, output.filter_axes) == ((2, 3, 6), (2,))


def test_a_dense_kernel_before_any_convolution_owns():
    seeds = keras.Input((5,))
    x = layers.Reshape((4, 4, 2))(layers.Dense(32, name="seed")(seeds))
    model = keras.Model(seeds, layers.Conv2DTranspose(3, 3, name="paint")(x))
    assert owners(model) == ["seed/kernel", "paint/kernel"]


class Linear(layers.Layer):
    def build(self, shape):
        self.matrix = self.add_weight(shape=(shape[-1], 7), name="matrix")
        self.table = self.add_weight(shape=(9, 7), name="table")

    def call(self, x):
        return keras.ops.matmul(x, self.matrix) + self.table[0]


def test_a_custom_layers_matrix_owns_where_it_multiplies_what_comes_in():
    model = keras.Sequential([keras.Input((4,)), Linear(), layers.Dense(2, name="head")])
    assert [name.split("/")[-1] for name in owners(model)] == ["matrix", "kernel"]


def test_a_recurrent_convolution_over_time_owns():
    x = keras.Input((4, 6, 3))
    h = layers.Flatten()(layers.ConvLSTM1D(5, 2)(x))
    assert owners(keras.Model(x, layers.Dense(2)(h)))[0].endswith("kernel")
    assert len(owners(keras.Model(x, layers.Dense(2, name="head")(h)))) == 1  # the head rides


@pytest.mark.skipif(keras.config.backend() != "torch", reason="torch's modules need torch")
def test_matrices_of_a_torch_module_own_and_its_filters_come_first():
    import torch

    module = torch.nn.Sequential(torch.nn.Linear(4, 7), torch.nn.ReLU(), torch.nn.Linear(7, 5))
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.TorchModuleWrapper(module), layers.Dense(2)]
    )
    model(keras.ops.zeros((1, 4)))  # builds the head, which cannot know the module's output before
    assert [group.filters for group in GraftPlan.of(model).groups] == [7, 5, 2]


def test_where_all_layers_are_unknown_every_matrix_owns():
    class Table(layers.Layer):
        def __init__(self):
            super().__init__()
            self.table = self.add_weight(shape=(9, 7), name="table")

        def call(self, x):
            return x @ self.table

    model = keras.Sequential([keras.Input((9,)), Table()])
    model.build((None, 9))
    assert [name.split("/")[-1] for name in owners(model)] == ["table"]


def with_activations(shared):
    """Three convolutions with batch normalisation, a ReLU after each, a head."""
    relu = layers.ReLU()
    x = h = keras.Input((9, 9, 2))
    for n in range(3):
        h = layers.Conv2D(3, 3, name=f"conv{n}")(h)
        h = layers.BatchNormalization(name=f"norm{n}")(h)
        h = relu(h) if shared else layers.ReLU()(h)
    return keras.Model(x, layers.Dense(2, name="head")(layers.Flatten()(h)))


@pytest.mark.core
def test_one_activation_for_all_layers_changes_no_plan():
    own, theirs = (GraftPlan.of(with_activations(shared)) for shared in (False, True))
    assert [g.members for g in own.groups] == [g.members for g in theirs.groups]
    assert carrier(with_activations(True), "head/kernel") == "conv2/kernel"


def test_a_shared_layer_with_weights_keeps_its_first_place_and_passes_on_what_came_in():
    norm, conv = layers.BatchNormalization(name="norm"), layers.Conv2D(2, 3, name="twice")
    x = keras.Input((12, 12, 2))
    h = norm(layers.Conv2D(2, 3, name="first")(x))
    h = conv(norm(layers.Conv2D(2, 3, name="second")(conv(h))))
    model = keras.Model(x, layers.Dense(2, name="head")(layers.Flatten()(h)))
    assert owners(model) == ["first/kernel", "twice/kernel", "second/kernel"]
    assert carrier(model, "norm/gamma") == "first/kernel"
    assert carrier(model, "head/kernel") == "twice/kernel"


def test_a_shared_model_is_walked_at_every_call():
    inner = keras.Sequential([keras.Input((8, 8, 2)), layers.ReLU()], name="inner")
    x = keras.Input((8, 8, 2))
    h = inner(layers.Conv2D(2, 3, padding="same", name="a")(x))
    h = inner(layers.Conv2D(2, 3, padding="same", name="b")(h))
    model = keras.Model(x, layers.BatchNormalization(name="norm")(h))
    assert carrier(model, "norm/gamma") == "b/kernel"
