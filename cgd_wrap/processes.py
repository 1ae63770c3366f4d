"""The device of this process, its number, and the number of processes of the run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from cgd_wrap.escaping import escaped_logger

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = escaped_logger(__name__)


@dataclass(frozen=True)
class Runtime:
    """The device and number of this process, from the user's Accelerator or torch.distributed.

    No ``Accelerator`` is made here: a new one would fix accelerate's process-wide state (mixed
    precision, device) before the user does.

    Attributes:
        device: device on which models run.
        process_index: number of this process, in [0, num_processes).
        num_processes: number of processes of the run.
        autocast: makes the user's mixed-precision context.
    """

    device: torch.device
    process_index: int = 0
    num_processes: int = 1
    autocast: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext

    @property
    def is_main(self) -> bool:
        """True on the process that draws progress bars and writes shared files."""
        return self.process_index == 0

    @classmethod
    def of(cls, accelerator: Accelerator | None) -> Runtime:
        """Build from an accelerator; without one from torch.distributed; else a single process."""
        if accelerator is not None:
            return cls(
                accelerator.device,
                accelerator.process_index,
                accelerator.num_processes,
                accelerator.autocast,
            )
        if is_distributed():
            cuda = torch.cuda.is_available() and dist.get_backend() != "gloo"
            local = int(os.environ.get("LOCAL_RANK", torch.cuda.current_device())) if cuda else 0
            device = torch.device("cuda", local) if cuda else torch.device("cpu")
            return cls(device, dist.get_rank(), dist.get_world_size())
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            logger.warning(
                "WORLD_SIZE=%s, but no process group: every process scans the whole dataset. Pass "
                "accelerator=, or call torch.distributed.init_process_group first.",
                os.environ["WORLD_SIZE"],
            )
        return cls(torch.device("cuda" if torch.cuda.is_available() else "cpu"))

    def barrier(self) -> None:
        """Wait for the other processes of the group, if there is one."""
        if self.num_processes > 1:
            dist.barrier()

    def share(self, value: str) -> str:
        """Send the main process' value to all processes, and return it on each."""
        if self.num_processes == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return str(box[0])


def is_main_process() -> bool:
    """Whether this is the main process of a run, also before there is any process group."""
    return (dist.get_rank() if is_distributed() else int(os.environ.get("RANK", "0"))) == 0


def is_distributed() -> bool:
    """Whether more than one process of a torch process group is at work."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
