from __future__ import annotations

import pytest

from cgd_wrap.clip.prompts import resolve_prompts
from cgd_wrap.data.class_names import check_class_names
from cgd_wrap.data.known_classes import known_classes, known_data_sets

SIZES = {"cifar10": 10, "cifar100": 100, "gtsrb": 43, "tiny": 200}


@pytest.mark.parametrize(("data_set", "size"), SIZES.items())
def test_every_class_has_a_name_of_its_own_and_the_prompt_takes_it(data_set, size):
    found = known_classes(data_set)
    assert len(found.names) == size
    check_class_names(found.names)
    assert resolve_prompts(found.prompt) == (found.prompt,)
    assert not any("_" in name for name in found.names)


def test_spot_checks_of_the_order():
    assert known_classes("cifar10").names[3:6] == ("cat", "deer", "dog")
    hundred = known_classes("cifar100").names
    assert (hundred[0], hundred[52], hundred[99]) == ("apple", "oak tree", "worm")
    assert list(hundred) == sorted(hundred)
    signs = known_classes("gtsrb")
    assert signs.names[14] == "stop"
    assert "120" in signs.names[8]
    assert "left" in signs.names[34]
    assert signs.prompt == "a centered photo of a {} traffic sign"
    tiny = known_classes("tiny")
    assert list(tiny.keys) == sorted(tiny.keys)
    names = dict(zip(tiny.keys, tiny.names, strict=True))
    assert (names["n01443537"], names["n07873807"]) == ("goldfish", "pizza")


def test_other_data_sets_are_refused():
    assert known_data_sets() == sorted(SIZES)
    with pytest.raises(ValueError, match="no class names are known for 'mnist'"):
        known_classes("mnist")
