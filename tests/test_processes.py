"""However a scan is launched: the same bits, no duplicates, and no process waits for ever."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from guarded_run import ByColour, Pictures, network
from launching import TESTS, call_in_two, free_port, run_python, start_python
from torch import Tensor, nn

from cgd_wrap import CGDConfig, CGDGuard
from cgd_wrap.config.settings import REPAIRED
from cgd_wrap.scan import store

SCRIPT = str(TESTS / "guarded_run.py")
THREE_UNITS = ["--demo-clip", "--size", "32", "--unit", "256", "--rows", "525"]


def launch(processes: int, cache: Path, *options: str, fresh: bool = False) -> None:
    """Run to the end, under torchrun and Accelerate unless ``processes`` is 0."""
    accelerate = ["--accelerate"] if processes else []
    run_python(SCRIPT, str(cache), *options, *accelerate, processes=processes, fresh=fresh)


def units(cache: Path) -> dict[str, bytes]:
    """Every stored file but the ranks' outcomes."""
    found = {
        str(p.relative_to(cache)): p.read_bytes()
        for p in cache.rglob("*")
        if p.is_file() and not p.name.startswith("outcome")
    }
    assert len([name for name in found if name.endswith(".safetensors")]) >= 2
    return found


def outcomes(cache: Path) -> list[bytes]:
    return [p.read_bytes() for p in sorted(cache.glob("outcome*"))]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("alone")
    launch(0, cache, *THREE_UNITS)
    return cache


@pytest.mark.parametrize(
    "processes",
    [pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow), 3],
)
def test_any_number_of_processes_gives_the_same_bits(
    tmp_path: Path, alone: Path, processes: int
) -> None:
    launch(processes, tmp_path, *THREE_UNITS)
    assert units(tmp_path) == units(alone)
    assert outcomes(tmp_path) == outcomes(alone) * processes


@pytest.mark.parametrize("fresh", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_fresh_training_by_two_processes_is_reproducible(tmp_path: Path, fresh: bool) -> None:
    for name, afresh in (("a", False), ("b", fresh)):
        launch(2, tmp_path / name, "--train", "--rows", "130", fresh=afresh)
    assert "suspicious/run-0.safetensors" in units(tmp_path / "a")
    assert units(tmp_path / "a") == units(tmp_path / "b")
    both = outcomes(tmp_path / "a") + outcomes(tmp_path / "b")
    assert len(both) == 4
    assert len(set(both)) == 1


def test_when_a_process_dies_the_others_finish_and_name_its_units(tmp_path: Path) -> None:
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    # 4 batches a unit: the process dies in its second one. No launcher, which would stop both.
    options = ["--accelerate", "--rows", str(6 * 512), "--unit", "512", "--timeout", "3"]
    options += ["--dying-rank", "1", "--calls-until-death", "6"]
    ranks = [
        start_python(SCRIPT, str(tmp_path), *options, RANK=str(rank), LOCAL_RANK=str(rank), **world)
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in ranks]
    assert ranks[1].returncode == 9
    assert ranks[0].returncode not in (0, None)
    assert "ScanIncompleteError" in errors[0]
    assert "units [3, 5] of 6 are missing" in errors[0]
    done = {p.name for p in (tmp_path / "clip").glob("0*")}
    assert done == {f"0000{unit}.safetensors" for unit in (0, 1, 2, 4)}


class ReadsColour(nn.Module):
    """The brightest channel, or nothing."""

    def __init__(self, *, knows: bool) -> None:
        super().__init__()
        self.read = nn.Linear(3, 3, bias=False)
        nn.init.eye_(self.read.weight).data.mul_(knows)

    def forward(self, images: Tensor) -> Tensor:
        return self.read(images.mean(dim=(2, 3)))


def one_of_two(folder: str) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    # As in scripts that load a checkpoint on the main process, for DDP to hand on.
    model = ReadsColour(knows=accelerator.is_main_process)
    store.UNIT_SIZE = 128
    guard = CGDGuard(
        model, Pictures(200, 8), clip=ByColour(), suspicious=network(),
        config=CGDConfig(allow_missing_classes=True), accelerator=accelerator, progress=False,
    ).scan()  # fmt: skip
    map_ = torch.stack([guard.entropy_map.clip_rank, guard.entropy_map.suspicious_rank])
    found = {"map": map_, "guidance": guard.loss().config.guidance_weight}
    torch.save(found, f"{folder}/{accelerator.process_index}")


def test_two_processes_share_a_temporary_cache_and_what_the_main_ones_model_knows(
    tmp_path: Path,
) -> None:
    call_in_two(one_of_two, tmp_path)
    first, second = (torch.load(tmp_path / str(rank)) for rank in range(2))
    assert first["map"].shape == (2, 200)
    assert torch.equal(first["map"], second["map"])
    assert not bool(first["map"].isnan().any())
    assert first["guidance"] == second["guidance"] == REPAIRED["guidance_weight"]
