"""Fixtures for all tests. Shape annotations are checked throughout (jaxtyping with beartype)."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from launching import warm_server
from typechecking import checking

if TYPE_CHECKING:
    from torch import Tensor

SHARED = Path(__file__).parents[2] / "shared"


def shared(path: str) -> Path:
    """A file of test data that lies beside the repository; the test is skipped where it isn't."""
    found = SHARED / path
    if not found.exists():
        pytest.skip(f"needs {path} beside the repository, which is not part of it")
    return found


def pytest_addoption(pluginmanager: pytest.PytestPluginManager) -> None:
    """Import the package with its checks, before another conftest does, where tests run.

    The controller of xdist's workers runs none, and they wait for it.
    """
    config = pluginmanager.getplugin("pytestconfig")
    assert config is not None
    is_controller = getattr(config.known_args_namespace, "numprocesses", None)
    if "PYTEST_XDIST_WORKER" in os.environ or not is_controller:
        gc.disable()  # what is imported stays, and to look it through meanwhile takes 2 s
        with checking("cgd_wrap"):
            import cgd_wrap  # noqa: F401
        from hypothesis import settings

        # A loaded machine is no failure, and each run tries other examples.
        settings.register_profile("unhurried", deadline=None, max_examples=50)
        settings.load_profile("unhurried")


def pytest_configure(config: pytest.Config) -> None:
    """One server of warm processes for all; workers of xdist find it by their environment.

    Large pages of memory save a fifth of the system's time where tests fork, which they do by the
    hundred.

    What the tests write need not outlive a power cut, and a disk takes its time to say that it
    would: nobody waits for it. The tests of just that put a function of theirs in its place.
    """
    os.fsync = lambda number: None
    if not hasattr(config, "workerinput"):
        os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
        server = warm_server()
        server.__enter__()
        config.add_cleanup(lambda: server.__exit__(None, None, None))


def pytest_collection_finish() -> None:
    """What was imported stays: to look it through at each garbage collection takes half a second.

    (Accelerate, for one, asks for a collection after each training.)
    """
    module = sys.modules.get("open_clip.tokenizer")
    if module is not None:
        module.SimpleTokenizer.__init__ = remembered(module.SimpleTokenizer.__init__)
    gc.collect()
    gc.freeze()
    gc.enable()


def remembered(init: Callable[..., None]) -> Callable[..., None]:
    """The same, but later objects share what the first one with the same arguments has.

    CLIP's tokenizer takes a tenth of a second to read its vocabulary, and is made a hundred times.
    """
    made: dict[str, dict[str, Any]] = {}

    def again(self: Any, *args: Any, **kwargs: Any) -> None:
        asked = repr((args, kwargs))
        if asked not in made:
            init(self, *args, **kwargs)
            made[asked] = dict(vars(self))
        vars(self).update(made[asked])

    return again


@pytest.fixture
def golden_split() -> dict[str, Tensor]:
    """Inputs and outputs of the authors' split, 5000 samples of 10 classes."""
    from safetensors.torch import load_file

    return load_file(shared("golden/split_10c.safetensors"))


@pytest.fixture
def golden_loss() -> dict[str, Tensor]:
    """Inputs and outputs of the authors' loss, a batch of 256."""
    from safetensors.torch import load_file

    return load_file(shared("golden/loss_10c.safetensors"))


@pytest.fixture
def unchecked() -> Iterator[None]:
    """As in production: values of a wrong type reach the code, and ``random`` is not drawn from.

    (beartype picks the items of a list that it checks by ``random``.)
    """
    import jaxtyping

    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def _own_log() -> Iterator[None]:
    """Handlers that a test puts on the root logger write to streams that end with the test."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:] = before[0]
    if root.level != before[1]:  # or all loggers of all packages would forget what they know
        root.setLevel(before[1])
