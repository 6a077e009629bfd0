"""Run files from before every method had a table of its own."""

import pytest

from kgraft.errors import UserError
from kgraft.grafting import FilterGraft, FixedGraft, Graft, Internal, Noise, Papa, Rotation
from kgraft.grafting.criteria import Entropy
from kgraft.runs import config as configs
from kgraft.runs.config import Config
from kgraft.runs.methods import PapaAll, mixer_of, settled


def mixer(text):
    return mixer_of(settled(configs.parse(text, "old.toml")))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            '[run]\nmethod = "graft"\n[graft]\nlevel = "layer"\nfrozen = true\nevery = 2',
            Graft(criterion=Entropy(), blend_frozen=True, every=2),
        ),
        (
            '[run]\nmethod = "graft"\n[graft]\nlevel = "filter"\ngrouping = "authors"\nepochs = 3',
            FilterGraft(biases=False, epochs=3),
        ),
        ('[run]\nmethod = "fixed"\n[graft]\nalpha = 0.3\nevery = 2', FixedGraft(0.3, every=2)),
        ('[run]\nmethod = "rotation"\n[graft]\nevaluate = "before"', Rotation(evaluate="before")),
        (
            '[run]\nmethod = "noise"\n[scion]\ndecay = 0.5\nthreshold = 0.2\n[graft]\nepochs = 4',
            Noise(0.5, 0.2, epochs=4),
        ),
        ('[run]\nmethod = "internal"\n[scion]\nthreshold = 0.2', Internal(0.2)),
        ('[run]\nmethod = "papa"\n[papa]\nvariant = "gradual"\nrate = 0.9', Papa(0.9)),
        (
            '[run]\nmethod = "papa"\n[papa]\nvariant = "all"\nevery_epochs = 3\n'
            "[graft]\nepochs = 6",
            PapaAll(every=3, epochs=6),
        ),
        ('[run]\nmethod = "papa"\n[papa]\nvariant = "all"', PapaAll(every=5)),
    ],
)
def test_they_mean_what_they_meant(text, expected):
    assert mixer(text) == expected


@pytest.mark.parametrize(
    ("text", "method"),
    [
        ('[graft]\nlevel = "filter"', "filter-graft+"),
        ('[teachers]\ncount = 0\n[graft]\nlevel = "filter"', "filter-graft"),
        ('[run]\nmethod = "graft+"\n[graft]\nlevel = "filter"', "filter-graft+"),
    ],
)
def test_filter_level_is_a_method_of_its_own(text, method):
    assert settled(configs.parse(text, "old.toml")).run.method == method


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[scion]\ndecay = 0.5",
            'old.toml: scion.decay is gone: write method = "noise" under [run], and [noise] decay.',
        ),
        (
            "[scion]\nthreshold = 0.5",
            'old.toml: scion.threshold is gone: write method = "noise" or method = "internal" '
            "under [run], and [noise] threshold or [internal] threshold.",
        ),
        (
            '[run]\nmethod = "noise"\n[scion]\nkind = "noise"',
            'old.toml: [scion] is gone: write method = "noise" or method = "internal" '
            "under [run], and [noise] threshold or [internal] threshold.",
        ),
        ("[graft]\nalpha = 0.5", "old.toml: graft.alpha is gone: write [fixed] alpha."),
        (
            '[run]\nmethod = "graft"\n[graft]\nlevel = "filters"',
            'old.toml: graft.level is gone: write method = "filter-graft".',
        ),
        (
            '[run]\nmethod = "noise"\n[graft]\nlevel = "filter"',
            'old.toml: graft.level is gone: write method = "filter-graft".',
        ),
        (
            '[papa]\nvariant = "all"',
            'old.toml: papa.variant is gone: write method = "papa-all".',
        ),
        (
            '[run]\nmethod = "papa"\n[papa]\nvariant = "al"',
            'old.toml: papa.variant is gone: write method = "papa-all".',
        ),
    ],
)
def test_what_cannot_be_told_says_what_to_write(text, message):
    with pytest.raises(UserError) as error:
        configs.parse(text, "old.toml")
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("text", "old", "new"),
    [
        ("[graft]\nfrozen = true\nblend_frozen = false", "graft.frozen", "graft.blend_frozen"),
        (
            '[graft]\nlevel = "filter"\nevery = 2\n[filter-graft]\nevery = 3',
            *("graft.every", "filter-graft.every"),
        ),
        (
            '[graft]\nlevel = "filter"\ngrouping = "authors"\n[filter-graft]\nbiases = true',
            *("graft.grouping", "filter-graft.biases"),
        ),
        (
            '[run]\nmethod = "papa"\n[papa]\nvariant = "all"\nevery_epochs = 3\nevery = 4',
            *("papa.every", "papa-all.every"),
        ),
        (
            '[run]\nmethod = "papa"\n[papa]\nvariant = "all"\nevery_epochs = 3\n'
            "[papa-all]\nevery = 4",
            *("papa.every_epochs", "papa-all.every"),
        ),
        (
            '[run]\nmethod = "noise"\n[scion]\ndecay = 0.5\n[noise]\ndecay = 0.6',
            *("scion.decay", "noise.decay"),
        ),
        (
            '[run]\nmethod = "fixed"\n[graft]\nalpha = 0.5\n[fixed]\nalpha = 0.6',
            *("graft.alpha", "fixed.alpha"),
        ),
    ],
)
def test_an_old_word_beside_its_new_one_is_refused(text, old, new):
    with pytest.raises(UserError) as error:
        configs.parse(text, "old.toml")
    assert str(error.value) == f"old.toml: {old} and {new} say the same: take {old} out."


def test_flags_say_it_too():
    with pytest.raises(UserError, match=r'--set: graft.level is gone: write method = "filter-g'):
        Config().changed("graft.level", "filter", "--set")
