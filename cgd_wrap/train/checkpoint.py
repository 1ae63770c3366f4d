"""Checkpoints of ``guard.fit``: a training that was interrupted goes on after its last epoch."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cgd_wrap.errors import CGDError
from cgd_wrap.escaping import escaped_logger
from cgd_wrap.files import check_fingerprint, check_folder, clear_leftovers
from cgd_wrap.models.outputs import unwrapped
from cgd_wrap.models.weights import hash_weights
from cgd_wrap.randomness import set_stream_states, stream_states
from cgd_wrap.sealed import read_sealed, write_sealed
from cgd_wrap.train.epoch_indices import ORDER
from cgd_wrap.train.place import content_hash
from cgd_wrap.train.protection import Protection

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = escaped_logger(__name__)

NAME = "checkpoint.safetensors"
PLACE = {"kind": "checkpoint of fit"}
ADVICE = (
    "It is the checkpoint of a training that was interrupted. Go on with the settings of that "
    "training; or delete the file (or pass resume=False to fit) to train anew; or take another "
    "checkpoint_dir."
)


class FitCheckpoint:
    """The file from which an interrupted :func:`cgd_wrap.train.fit.fit` goes on.

    The file holds model, optimiser, gradient scaler, every process' random streams, and the records
    of the epochs so far, which the stopping rule is made again from. It is replaced as a whole
    after each epoch, and deleted when the training is over. Nothing in it is executed.

    Args:
        folder: folder of the file.
        run: JSON values that say which training it is; see :func:`run_of`.
        resume: go on from the file; otherwise the file is deleted.
    """

    def __init__(self, folder: str | Path, run: Mapping[str, Any], *, resume: bool = True) -> None:
        self.path = Path(folder) / NAME
        self.run: dict[str, Any] = json.loads(json.dumps(run))
        self.resume = resume
        self._start = ""

    def load(
        self, model: nn.Module, optimizer: Any, loader: Any, accelerator: Accelerator
    ) -> list[dict[str, Any]]:
        """Put model, optimiser and random streams into the state of the file, if there is one.

        Args:
            model: the model, prepared by Accelerate, as are optimiser and loader.
            optimizer: its optimiser.
            loader: the loader, whose generator has a stream of its own.
            accelerator: processes, gradient scaler.

        Returns:
            The records of the epochs that are done.

        Raises:
            CacheMismatchError: the file is of another training; what differs is named.
            StoredFileError: the folder is no folder, or a link out of the folder that it is in.
            CGDError: the processes don't see the same file.
        """
        check_folder(self.path.parent)
        self._start = hash_weights(unwrapped(model))
        if not self.resume:
            self.delete(accelerator)
        found = read_sealed(self.path, PLACE) if self.resume else None
        if found is None:
            if self.resume and self.path.exists() and accelerator.is_main_process:
                logger.warning("%s is damaged, and not used: training starts anew.", self.path)
            self._agree(0, accelerator)
            return []
        tensors, notes = found
        check_fingerprint(self.path, notes["run"], self.run, advice=ADVICE)
        history: list[dict[str, Any]] = notes["history"]
        self._agree(len(history), accelerator)
        if accelerator.is_main_process:
            logger.info("fit goes on after epoch %d, from %s.", len(history), self.path)
            if notes["start"] != self._start:
                logger.warning(
                    "The model's weights aren't those that the training of %s began with: they are "
                    "replaced by the checkpoint's. To train the model's own, pass resume=False.",
                    self.path,
                )
        self._start = notes["start"]
        _put_back(tensors, notes, model, optimizer, loader, accelerator)
        return history

    def save(
        self,
        model: nn.Module,
        optimizer: Any,
        loader: Any,
        accelerator: Accelerator,
        history: Sequence[Mapping[str, Any]],
    ) -> None:
        """Replace the file by the present state; the main process writes, for all.

        If the file can't be written, a warning says so, and the training goes on.
        """
        streams, others = stream_states()
        if (generator := _generator(loader)) is not None:
            streams["loader"] = generator.get_state()
        gathered = _gathered((streams, others), accelerator)
        if not accelerator.is_main_process:
            return
        notes = {
            "run": self.run, "start": self._start, "history": list(history),
            "streams": [others for _, others in gathered],
            "scaler": accelerator.scaler.state_dict() if accelerator.scaler else None,
        }  # fmt: skip
        tensors = {f"model.{n}": t for n, t in _tensors(unwrapped(model)).items()}
        for number, values in optimizer.state_dict()["state"].items():
            tensors |= {
                f"optimizer.{number}.{name}": value
                for name, value in values.items() if isinstance(value, Tensor)
            }  # fmt: skip
        for rank, (states, _) in enumerate(gathered):
            tensors |= {f"streams.{rank}.{name}": state for name, state in states.items()}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_sealed(self.path, tensors, PLACE, notes)
        except OSError as error:
            logger.warning("fit goes on without a new checkpoint: %s", error)

    def delete(self, accelerator: Accelerator) -> None:
        """Delete the file, and the folder if it is empty then."""
        if not accelerator.is_main_process:
            return
        clear_leftovers(self.path.parent)
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            logger.warning(
                "delete %s before the next fit, which would use it: %s", self.path, error
            )
        with contextlib.suppress(OSError):
            self.path.parent.rmdir()

    def _agree(self, epochs: int, accelerator: Accelerator) -> None:
        seen = _gathered(epochs, accelerator)
        if len(set(seen)) > 1:
            raise CGDError(
                f"the processes find checkpoints of {seen} epochs at {self.path}: checkpoint_dir "
                "(or cache_dir) must be a folder that all processes see"
            )


def run_of(protection: Protection, model: nn.Module, processes: int) -> dict[str, Any]:
    """What a checkpoint belongs to: scan, settings, architecture and number of processes."""
    result = protection.result
    shapes = [(name, tuple(tensor.shape)) for name, tensor in _tensors(model).items()]
    return {
        "samples": len(result.labels),
        "order": ORDER,
        "scan": content_hash(
            [result.labels, result.entropy_map, result.split, result.held_out, result.teacher]
        ),
        "architecture": content_hash([type(model).__qualname__, shapes]),
        "processes": processes,
        **protection.config.decided(trained=result.trained).as_dict(),
    }


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {n: t for n, t in model.state_dict().items() if isinstance(t, Tensor)}


def _generator(loader: Any) -> torch.Generator | None:
    found: torch.Generator | None = getattr(loader, "generator", None)
    return found


def _gathered(value: Any, accelerator: Accelerator) -> list[Any]:
    """The values of all processes, in their order."""
    from accelerate.utils import gather_object

    return [value] if accelerator.num_processes == 1 else list(gather_object([value]))


def _put_back(
    tensors: Mapping[str, Tensor],
    notes: Mapping[str, Any],
    model: nn.Module,
    optimizer: Any,
    loader: Any,
    accelerator: Accelerator,
) -> None:
    def part(prefix: str) -> dict[str, Tensor]:
        return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}

    unwrapped(model).load_state_dict(part("model."), strict=False)  # what isn't a tensor stays
    state = optimizer.state_dict()
    state["state"] = {}
    for name, tensor in part("optimizer.").items():
        number, kind = name.split(".", 1)
        state["state"].setdefault(int(number), {})[kind] = tensor
    optimizer.load_state_dict(state)
    if accelerator.scaler and notes["scaler"]:
        accelerator.scaler.load_state_dict(notes["scaler"])
    rank = accelerator.process_index
    streams = part(f"streams.{rank}.")
    if (generator := _generator(loader)) is not None and "loader" in streams:
        generator.set_state(streams["loader"])
    set_stream_states(streams, notes["streams"][rank])
