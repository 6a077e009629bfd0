"""Settings of dataclasses that kgraft has not written."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pytest

from kgraft import settings
from kgraft.errors import UserError
from kgraft.settings import setting


@dataclass(frozen=True)
class Own:
    share: float
    times: int | None = setting(None, low=1)
    mode: Literal["in", "out"] = "in"
    measure: Callable[[float], float] = abs
    seen: list[int] = field(default_factory=list)
    seed: int = setting(0, low=0, key=False)

    def __post_init__(self):
        settings.check(self)


def test_plain_fields_are_settings_as_far_as_their_kinds_are_known():
    assert list(settings.keys_of(Own)) == ["share", "times", "mode", "measure"]
    assert Own(np.float32(0.5), times=np.int64(2), measure=len, seen=[3]).times == 2
    assert settings.described(Own(0.5)) == {
        **{"share": 0.5, "times": None, "mode": "in", "measure": "abs", "seen": "list"},
        "seed": 0,
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"share": "1"}, "Own(share='1'): expected a number."),
        ({"share": True}, "Own(share=True): expected a number."),
        ({"share": 1.0, "times": 0}, "Own(times=0): expected 1 or more."),
        ({"share": 1.0, "times": 1.5}, "Own(times=1.5): expected a whole number."),
        ({"share": 1.0, "mode": "inn"}, "Own(mode='inn'). Did you mean 'in'?"),
        ({"share": float("nan")}, "Own(share=nan): expected a finite number."),
    ],
)
def test_each_mistake_is_one_line(given, message):
    with pytest.raises(UserError) as error:
        Own(**given)
    assert str(error.value) == message


def test_a_setting_without_a_default_must_be_set():
    with pytest.raises(UserError, match="Own needs a share: set it in its table"):
        settings.made(Own, {"times": 2})
    assert settings.made(Own, {"share": 0.5, "times": 2}, seed=3) == Own(0.5, 2, seed=3)
