"""Models that can't be copied and trained as they are get one clear error, by the real packages."""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tiny_data import NAMES, Items, TintReader, pictures, stack, tensors, tiny_net
from torch import nn

from cgd_wrap import CGDConfig, CGDGuard
from cgd_wrap.models.supported import check_model, check_trainable
from cgd_wrap.models.weights import fresh_copy


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    """A group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/g", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def guard_of(model: nn.Module, data: object = None, **options: Any) -> CGDGuard:
    data = Items(tensors()) if data is None else data
    config = CGDConfig(suspicious_epochs=1, suspicious_side=16)
    return CGDGuard(model, data, NAMES, clip=TintReader(), config=config, progress=False, **options)


@pytest.mark.usefixtures("process_group")
def test_a_model_sharded_by_fsdp2_is_named_and_may_be_sharded_after_the_scan() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (1,))
    model = fully_shard(tiny_net(), mesh=mesh)
    for refuse in (check_model, check_trainable, lambda m: fresh_copy(m, 0)):
        with pytest.raises(
            ValueError, match=r"sharded by FSDP2 .*'0\.weight' .*shard the model after"
        ):
            refuse(model)
    with pytest.raises(ValueError, match="sharded by FSDP2"):
        guard_of(model).scan()


@pytest.mark.usefixtures("process_group")
def test_a_model_whose_weights_tensor_parallelism_divides_is_named() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    model = parallelize_module(tiny_net(), init_device_mesh("cpu", (1,)), {"5": ColwiseParallel()})
    with pytest.raises(ValueError, match=r"tensor parallelism: '5\.weight' holds a part"):
        check_model(model)


def test_a_model_partitioned_by_deepspeed_is_named() -> None:
    """ZeRO-3 marks each parameter; the package itself needs a GPU's compiler to be installed."""
    model = tiny_net()
    model[0].weight.ds_id = 0
    with pytest.raises(ValueError, match=r"sharded by DeepSpeed's ZeRO-3: '0\.weight'"):
        check_model(model)


def test_a_model_without_values_is_named() -> None:
    with torch.device("meta"):
        model = nn.Linear(192, 3)
    for refuse in (lambda: check_model(model), lambda: guard_of(model).scan()):
        with pytest.raises(ValueError, match="'weight' of the model is on the device 'meta'"):
            refuse()


def quantised_dynamically() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 3)), {nn.Linear})


def eight_bits() -> nn.Module:
    model = nn.Linear(4, 3)
    model.weight = nn.Parameter(torch.zeros(3, 4, dtype=torch.int8), requires_grad=False)
    return model


def eight_bit_floats() -> nn.Module:
    return nn.Linear(4, 3).to(torch.float8_e4m3fn)


@pytest.mark.parametrize("made", [quantised_dynamically, eight_bits, eight_bit_floats])
def test_a_quantised_model_is_named(made) -> None:
    with pytest.raises(ValueError, match=r"quantised: .*make the guard of the model as it was"):
        check_model(made())


def test_a_model_without_parameters_has_nothing_to_train() -> None:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for refuse in (
        lambda: check_trainable(model), lambda: fresh_copy(model, 0),
        lambda: guard_of(model, suspicious="copy").scan(),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"\(Sequential\) has no parameters"):
            refuse()


def test_parameters_made_in_inference_mode_can_be_scanned_and_not_fitted() -> None:
    with torch.inference_mode():
        model = tiny_net()
    guard = guard_of(model).scan()
    with pytest.raises(ValueError, match=r"'0\.weight'.* were made in torch\.inference_mode"):
        guard.fit()


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(3))


def test_lazy_layers_learn_their_shapes_from_the_datas_tensors() -> None:
    model = lazy()
    state = torch.get_rng_state()
    guard_of(model).scan()
    assert model[3].weight.shape == (3, 4 * 6 * 6)
    assert torch.equal(torch.get_rng_state(), state)


def test_lazy_layers_whose_images_have_no_size_yet_are_named() -> None:
    with pytest.raises(ValueError, match=r"shapes of \['0\.weight', .*Run a batch of your images"):
        guard_of(lazy(), Items(pictures())).scan()
    model = lazy()
    model(stack(pictures())[0])
    guard_of(model, Items(pictures())).scan()


def test_frozen_models_can_be_scanned_and_not_fitted() -> None:
    model = tiny_net().requires_grad_(False)
    guard = guard_of(model).scan()
    with pytest.raises(ValueError, match=r"frozen .*Unfreeze those"):
        guard.fit()
    model[-1].requires_grad_(True)
    guard.fit(epochs=1)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_a_compiled_script_is_named() -> None:
    with pytest.raises(ValueError, match=r"torch\.jit has compiled.*pass suspicious="):
        guard_of(torch.jit.script(tiny_net()), suspicious="copy").scan()


def test_a_model_that_can_not_be_copied_is_named() -> None:
    model = tiny_net()
    model.lock = threading.Lock()
    with pytest.raises(ValueError, match=r"\(Sequential\) can't be copied: .*lock"):
        guard_of(model, suspicious="copy").scan()


def test_models_that_hold_nan_are_named_before_samples_are_blamed() -> None:
    broken = tiny_net()
    with torch.no_grad():
        broken[0].weight[0] = math.nan
    with pytest.raises(ValueError, match=r"\['0\.weight'\] of the model hold NaN"):
        guard_of(tiny_net(), suspicious=broken).scan()
    guard = guard_of(broken).scan()  # its fresh copy is sound
    with pytest.raises(ValueError, match=r"\['0\.weight'\] of the model hold NaN"):
        guard.fit()
