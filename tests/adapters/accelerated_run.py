"""A user's Accelerate script, guarded, on one process or several; it checks itself.

torchrun --nproc_per_node 3 accelerated_run.py
python accelerated_run.py 2     (by accelerate.debug_launcher)

Apart from the tests, as each new process imports it.
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, DataLoaderConfiguration
from launching import leave
from tiny_data import NAMES, TintReader, quick_config, tensors
from torch import Tensor, nn
from torch.distributed.algorithms.join import Join
from torch.utils.data import DataLoader
from user_loop import tags_of

from cgd_wrap import CGDGuard

BATCH, EPOCHS = 6, 2  # 6 can be split over 1, 2 and 3 processes


@dataclass(frozen=True)
class Case:
    """One way to run it: options of Accelerate's loaders, accumulation, and the user's loader."""

    loaders: dict[str, bool] = field(default_factory=dict)
    accumulate: int = 1
    drop_last: bool = False
    workers: int = 0


CASES = {
    "default": Case(),
    "workers": Case(workers=1),
    "drop last": Case(drop_last=True),
    "accumulation": Case(accumulate=2, drop_last=True),
    "split batches": Case({"split_batches": True}),
    "split batches, accumulation": Case({"split_batches": True}, accumulate=3, drop_last=True),
    "dispatch batches": Case({"dispatch_batches": True}, drop_last=True),
    "dispatch and split": Case({"dispatch_batches": True, "split_batches": True}, drop_last=True),
    "uneven": Case({"even_batches": False}),
    "uneven, split": Case({"even_batches": False, "split_batches": True}),
}


def network() -> nn.Module:
    """Without BatchNorm, whose statistics are each process' own."""
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
            nn.Linear(32, 3),
        )  # fmt: skip


def gathered(value: Any, accelerator: Accelerator) -> list[Any]:
    """The value of every process, in their order."""
    if accelerator.num_processes == 1:
        return [value]
    values = [None] * accelerator.num_processes
    dist.all_gather_object(values, value)
    return values


def scan() -> CGDGuard:
    """Every process scans its share; all come to the same split."""
    accelerator = Accelerator(cpu=True)
    state = torch.get_rng_state()
    guard = CGDGuard(
        network(), tensors(), NAMES, clip=TintReader(), config=quick_config(),
        accelerator=accelerator, progress=False,
    ).scan()  # fmt: skip
    assert torch.equal(torch.get_rng_state(), state), "the scan drew from the user's stream"
    splits = gathered([part.tolist() for part in vars(guard.split).values()], accelerator)
    assert all(split == splits[0] for split in splits)
    assert guard.split.triggered.any()
    return guard


Step = tuple[list[int], Tensor]  # tags of a batch, and its images


def train(guard: CGDGuard, case: Case) -> tuple[nn.Module, list[list[Step]], Accelerator]:
    """The user's loop; the weights, and what this process saw in each epoch."""
    accelerator = Accelerator(
        cpu=True, gradient_accumulation_steps=case.accumulate,
        dataloader_config=DataLoaderConfiguration(**case.loaders),
    )  # fmt: skip
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(
        guard.base, BATCH, shuffle=True, drop_last=case.drop_last, num_workers=case.workers
    )
    loader, criterion = guard.protect(loader, nn.CrossEntropyLoss(label_smoothing=0.1))
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    uneven = accelerator.num_processes > 1 and not case.loaders.get("even_batches", True)
    seen: list[list[Step]] = []
    for _ in range(EPOCHS):
        seen.append([])
        # accelerator.join_uneven_inputs, which does this, has no effect on CPUs: it would hang.
        with Join([model]) if uneven else contextlib.nullcontext():
            for images, targets in loader:
                with accelerator.accumulate(model):
                    loss = criterion(model(images), targets)
                    accelerator.backward(loss)
                    optimizer.step()
                    optimizer.zero_grad()
                seen[-1].append((targets.tolist(), images))
    assert criterion.untagged_batches == 0
    return accelerator.unwrap_model(model), seen, accelerator


def check_draws(guard: CGDGuard, case: Case, epochs: list[list[list[Step]]]) -> None:
    """Each sample is drawn as often as the index map says, whichever process draws it."""
    for epoch, processes in enumerate(epochs):
        expected = tags_of(guard, epoch)
        steps = max(map(len, processes))
        served = [
            tag for k in range(steps) for steps_of in processes if k < len(steps_of)
            for tag in steps_of[k][0]
        ]  # fmt: skip
        assert served[: len(expected)] == expected[: len(served)]
        if case.drop_last:
            whole = BATCH * (1 if case.loaders.get("split_batches") else len(processes))
            assert len(served) == len(expected) // whole * whole
        elif case.loaders.get("even_batches", True):  # filled up from the start
            assert len(expected) <= len(served) < len(expected) + BATCH * len(processes)
            assert served[len(expected) :] == expected[: len(served) - len(expected)]
        else:
            assert served == expected


def plain_loop(guard: CGDGuard, case: Case, epochs: list[list[list[Step]]]) -> nn.Module:
    """The same training without Accelerate, on whole batches, by one process."""
    model, criterion = network(), guard.loss(nn.CrossEntropyLoss(label_smoothing=0.1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for processes in epochs:
        steps = max(map(len, processes))
        for start in range(0, steps, case.accumulate):
            group = [
                steps_of[k] for k in range(start, min(start + case.accumulate, steps))
                for steps_of in processes if k < len(steps_of)
            ]  # fmt: skip
            sizes = {len(tags) for tags, _ in group}
            optimizer.zero_grad()
            shares = len(processes) * case.accumulate  # what a mean over all is divided by
            if len(sizes) == 1:  # one batch of all: that is what linearity promises
                tags = torch.tensor([tag for tags, _ in group for tag in tags])
                images = torch.cat([images for _, images in group])
                (criterion(model(images), tags) * len(group) / shares).backward()
            else:
                for tags, images in group:
                    (criterion(model(images), torch.tensor(tags)) / shares).backward()
            optimizer.step()
    return model


def check_resume(guard: CGDGuard) -> None:
    """What is left of an epoch after ``skip_first_batches`` is what would have come."""
    accelerator = Accelerator(cpu=True)
    loader, _ = guard.protect(DataLoader(guard.base, BATCH, shuffle=True))
    whole = [targets.tolist() for _, targets in accelerator.prepare(loader)]
    again, _ = guard.protect(DataLoader(guard.base, BATCH, shuffle=True))
    again = accelerator.prepare(again)
    for _ in again:  # another epoch before, so that the order must be asked for
        pass
    again.set_epoch(0)
    rest = [targets.tolist() for _, targets in accelerator.skip_first_batches(again, 2)]
    assert rest == whole[2:]


def check(
    guard: CGDGuard, case: Case, epochs: list[list[list[Step]]], weights: list[dict[str, Tensor]]
) -> None:
    """The draws are the index map's, and the weights of every process are the plain loop's."""
    check_draws(guard, case, epochs)
    expected = plain_loop(guard, case, epochs).state_dict()
    for found in weights:
        for key, value in found.items():
            torch.testing.assert_close(value, expected[key], rtol=0, atol=1e-5)


def main() -> None:
    """Scan once, then train by every case and compare."""
    guard = scan()
    check_resume(guard)
    for name, case in CASES.items():
        model, seen, accelerator = train(guard, case)
        epochs = [gathered(steps, accelerator) for steps in seen]
        weights = gathered(model.state_dict(), accelerator)
        if accelerator.is_main_process:  # which has what all saw, and came to
            try:
                check(guard, case, epochs, weights)
            except AssertionError as error:
                raise AssertionError(f"case {name!r}") from error
        accelerator.free_memory()
    print(f"process {accelerator.process_index} of {accelerator.num_processes}: all cases")


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        from accelerate import debug_launcher

        debug_launcher(main, num_processes=int(sys.argv[1]))
    else:
        main()
        leave()
