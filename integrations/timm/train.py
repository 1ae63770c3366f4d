"""Train a timm model under a guard: options of timm's train.py, and some that start with --cgd.

python integrations/timm/train.py DIR --model resnet50 --cgd-clip ViT-B-32/laion2b_s34b_b79k
torchrun --nproc_per_node 4 integrations/timm/train.py DIR ...
"""

from __future__ import annotations

import argparse
import contextlib
import logging
from collections import OrderedDict
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import timm.utils
import torch
import torch.distributed as dist
import yaml
from arguments import parse
from building import Run, build
from timm.models import model_parameters
from timm.utils import AverageMeter
from torch import Tensor, nn

from cgd_wrap.adapters.timm import refuse_mixing
from cgd_wrap.files import write_atomically
from cgd_wrap.models.safe_loading import no_pickled_code

logger = logging.getLogger("train")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train a model as the command line says."""
    timm.utils.setup_default_logging()
    args = parse(arguments)
    if not args.cgd_off:
        refuse_mixing(args)
    device = timm.utils.init_distributed_device(args)
    torch.manual_seed(args.seed)  # every process starts from the same weights
    folder = results_folder(args)
    # timm reads --initial-checkpoint and --resume, and older versions would run pickled code.
    with no_pickled_code(), torch.serialization.safe_globals([argparse.Namespace]):
        run = build(args, device, folder)
    timm.utils.random_seed(args.seed, args.rank)
    try:
        train(run, folder)
    finally:
        if args.distributed:
            dist.destroy_process_group()


def train(run: Run, folder: Path) -> None:
    """Train for all epochs, and write a checkpoint and a line of ``summary.csv`` after each."""
    saver = make_saver(run, folder) if run.args.rank == 0 else None
    stopping = run.guard.stopping() if run.guard else None
    for epoch in run.epochs:
        trained = train_epoch(run, epoch)
        if run.args.distributed and run.args.dist_bn:
            timm.utils.distribute_bn(run.model, run.args.world_size, run.args.dist_bn == "reduce")
        stop = stopping is not None and agreed(stopping.step(run.model), run)
        if stopping is not None and stop:
            stopping.restore(run.model)
            if run.ema is not None:
                run.ema.set(run.model)
        evaluated = OrderedDict[str, float]()
        if run.validation is not None:
            evaluated = validate(run, run.ema.module if run.ema else run.model)
        if stopping is not None:
            evaluated["held_out_top1"] = 100 * stopping.history[-1]
        metric = evaluated.get(run.args.eval_metric, evaluated.get("held_out_top1"))
        if run.scheduler is not None:
            run.scheduler.step(epoch + 1, metric)
        if saver is not None:
            rate = run.optimizer.param_groups[0]["lr"]
            timm.utils.update_summary(
                epoch, trained, evaluated, folder / "summary.csv", lr=rate,
                write_header=epoch == run.epochs.start,
            )  # fmt: skip
            saver.save_checkpoint(epoch, metric=metric)
            figures = {**trained, **{f"eval_{k}": v for k, v in evaluated.items()}}
            shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
            logger.info("Epoch %d: %s, lr %.3g", epoch, shown, rate)
        if stop:
            break


def train_epoch(run: Run, epoch: int) -> OrderedDict[str, float]:
    """Train for an epoch; return mean loss, accuracy and, if guarded, the parts of the loss."""
    if hasattr(run.loader.sampler, "set_epoch"):
        run.loader.sampler.set_epoch(epoch)
    run.model.train()
    meters: dict[str, AverageMeter] = {}
    last, every = len(run.loader) - 1, run.args.grad_accum_steps
    rest = len(run.loader) % every
    updates = epoch * -(-len(run.loader) // every)
    for step, (images, targets) in enumerate(run.loader):
        if run.args.no_prefetcher:
            images, targets = images.to(run.device), targets.to(run.device)
        if run.args.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        update = step == last or (step + 1) % every == 0
        share = rest if rest and step > last - rest else every
        hold = run.args.distributed and not update
        with run.model.no_sync() if hold else contextlib.nullcontext():
            with run.autocast():
                outputs = run.model(images)
                loss = run.criterion(outputs, targets)
            backward(run, loss / share, update=update)
        if update:
            run.optimizer.zero_grad()
            updates += 1
            if run.ema is not None:
                run.ema.update(run.model, step=updates)
            if run.scheduler is not None:
                run.scheduler.step_update(num_updates=updates)
        labels = run.guard.labels(targets) if run.guard else targets
        count(meters, training_figures(run, outputs, labels, loss), len(targets))
        if step % run.args.log_interval == 0 and run.args.rank == 0:
            logger.info("Train %d [%d/%d] loss %.4f", epoch, step, last + 1, meters["loss"].val)
    return means(meters, run)


def backward(run: Run, loss: Tensor, *, update: bool) -> None:
    """Compute gradients, and take a step of the optimiser if ``update``."""
    clip, mode = run.args.clip_grad, run.args.clip_mode
    parameters = list(model_parameters(run.model, exclude_head="agc" in mode))
    if run.scaler is not None:
        run.scaler(
            loss, run.optimizer, clip_grad=clip, clip_mode=mode, parameters=parameters,
            need_update=update,
        )  # fmt: skip
        return
    loss.backward()
    if update:
        if clip is not None:
            timm.utils.dispatch_clip_grad(parameters, value=clip, mode=mode)
        run.optimizer.step()


def training_figures(run: Run, outputs: Tensor, labels: Tensor, loss: Tensor) -> dict[str, Tensor]:
    """Collect loss, accuracy and, if guarded, the parts of the loss of a batch."""
    found = {"loss": loss.detach(), "top1": timm.utils.accuracy(outputs.detach(), labels)[0]}
    terms = getattr(run.criterion, "last_terms", None)
    if terms is not None:
        found |= dict(zip(("clean", "guidance", "unlearning"), terms, strict=True))
    return found


@torch.no_grad()
def validate(run: Run, model: nn.Module) -> OrderedDict[str, float]:
    """Measure cross entropy and accuracies on the validation set, over all processes."""
    model.eval()
    meters: dict[str, AverageMeter] = {}
    criterion = nn.CrossEntropyLoss()
    for images, labels in run.validation:
        images, labels = images.to(run.device), labels.to(run.device)
        with run.autocast():
            outputs = model(images)
        top = min(5, outputs.shape[1])
        top1, top5 = timm.utils.accuracy(outputs, labels, topk=(1, top))
        loss = criterion(outputs.float(), labels)
        count(meters, {"loss": loss, "top1": top1, f"top{top}": top5}, len(labels))
    return means(meters, run)


def count(meters: dict[str, AverageMeter], figures: dict[str, Tensor], size: int) -> None:
    """Add a batch's figures to the mean of each figure."""
    for name, value in figures.items():
        meters.setdefault(name, AverageMeter()).update(value, size)  # no wait for a GPU


def means(meters: dict[str, AverageMeter], run: Run) -> OrderedDict[str, float]:
    """Mean of each figure over all processes."""
    found = OrderedDict((name, float(meter.avg)) for name, meter in meters.items())
    if run.args.distributed:
        values = torch.tensor(list(found.values()), device=run.device)
        values = timm.utils.reduce_tensor(values, run.args.world_size)
        found = OrderedDict(zip(found, values.tolist(), strict=True))
    return found


def agreed(stop: bool, run: Run) -> bool:
    """Take the first process' answer on every process: either all stop, or none."""
    if not run.args.distributed:
        return stop
    answer = torch.tensor(float(stop), device=run.device)
    dist.broadcast(answer, 0)
    return bool(answer)


def results_folder(args: argparse.Namespace) -> Path:
    """Make the folder ``OUTPUT/EXPERIMENT``, the same on every process; write ``args.yaml``."""
    name = [args.experiment or f"{datetime.now():%Y%m%d-%H%M%S}-{args.model.replace('/', '_')}"]
    if args.distributed:
        dist.broadcast_object_list(name, src=0)
    folder = Path(args.output) / name[0]
    if args.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        plain = {key: str(v) if isinstance(v, Path) else v for key, v in vars(args).items()}
        write_atomically(folder / "args.yaml", yaml.safe_dump(plain).encode())
    return folder


def make_saver(run: Run, folder: Path) -> Any:
    """Make timm's saver of checkpoints, so that timm's tools can read them."""
    plain = {key: str(v) if isinstance(v, Path) else v for key, v in vars(run.args).items()}
    return timm.utils.CheckpointSaver(
        model=run.model, optimizer=run.optimizer, args=argparse.Namespace(**plain),
        model_ema=run.ema, amp_scaler=run.scaler, checkpoint_dir=str(folder),
        recovery_dir=str(folder), decreasing="loss" in run.args.eval_metric,
        max_history=run.args.checkpoint_hist,
    )  # fmt: skip


if __name__ == "__main__":
    main()
