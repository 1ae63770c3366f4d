"""Import paths that documents named before the layout changed."""

from __future__ import annotations

import importlib
import sys

import pytest

from cgd_wrap.moved import MOVED

NAMED = {
    "cgd_wrap.loss": ["CGDLoss", "clean_share"],
    "cgd_wrap.sampler": ["BalancedSampler", "EpochIndices"],
    "cgd_wrap.dataset": ["SampleTable", "GuardedDataset", "TAG"],
    "cgd_wrap.entropy": ["EntropyMap"],
    "cgd_wrap.cache": ["write_atomically", "write_json", "UnitStore"],
    "cgd_wrap.suspicious": ["seeded", "fresh_copy", "load_checkpoint"],
    "cgd_wrap.teachers": ["as_list", "CombinedLogits"],
    "cgd_wrap.demo.network": ["small_resnet"],
    "cgd_wrap.demo.experiment": ["Experiment", "Recipe", "transformed"],
    "cgd_wrap.views": ["find_layout", "RawImages"],
    "cgd_wrap.views.class_names": ["find_class_names"],
    "cgd_wrap.adapters.backdoorbench": ["splitting_loader", "read_attack_result"],
    "cgd_wrap.adapters.backdoorbench.networks": ["build_network"],
}


def test_every_moved_path_is_tried() -> None:
    assert NAMED.keys() == MOVED.keys()


@pytest.mark.parametrize("path", NAMED)
def test_an_old_path_warns_and_gives_the_same_objects(path: str) -> None:
    for name in [name for name in sys.modules if name.startswith(path)]:
        del sys.modules[name]
    with pytest.warns(DeprecationWarning, match=MOVED[path][0]):
        module = importlib.import_module(path)
    for name in NAMED[path]:
        places = [importlib.import_module(place) for place in MOVED[path]]
        new = next(getattr(place, name) for place in places if hasattr(place, name))
        assert getattr(module, name) is new


def test_a_name_that_never_was_is_an_ordinary_error() -> None:
    sys.modules.pop("cgd_wrap.views", None)
    with pytest.warns(DeprecationWarning, match="moved"), pytest.raises(ImportError):
        from cgd_wrap.views import nonsense  # noqa: F401
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("cgd_wrap.nonsense")


def test_a_star_import_brings_the_public_names() -> None:
    sys.modules.pop("cgd_wrap.cache", None)
    found: dict[str, object] = {}
    with pytest.warns(DeprecationWarning, match="moved"):
        exec("from cgd_wrap.cache import *", found)
    assert {"write_atomically", "UnitStore"} <= found.keys()
