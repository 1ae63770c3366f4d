"""Building all parts of a training run by timm's own factories, with a guard around the data."""

from __future__ import annotations

import argparse
import contextlib
import functools
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm.utils
import torch
from accelerate import Accelerator
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.layers import convert_sync_batchnorm
from timm.loss import LabelSmoothingCrossEntropy
from timm.models import create_model, load_checkpoint, resume_checkpoint
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cgd_wrap import CGDConfig, CGDGuard
from cgd_wrap.adapters.timm import class_names, evaluated, protect

logger = logging.getLogger("train")


@dataclass
class Run:
    """The parts of a training run, ready to start; all but the guard are timm's or torch's."""

    args: argparse.Namespace
    device: torch.device
    model: Any
    loader: Any
    validation: Any
    criterion: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Any
    autocast: Any
    scaler: Any
    ema: Any
    guard: CGDGuard | None
    epochs: range


def build(args: argparse.Namespace, device: torch.device, folder: Path) -> Run:
    """Build data, guard, model, optimiser and schedule of a run.

    Args:
        args: the options that ``arguments.parse`` returned.
        device: device of this process.
        folder: folder of the results; keeps the scan, too, unless ``--cgd-cache`` names another.
    """
    train, validation = datasets(args)
    names = class_names(train)
    if args.cgd_class_names:
        names = args.cgd_class_names.read_text(encoding="utf-8").splitlines()
    model = make_model(args, names)
    data = resolve_data_config(vars(args), model=model, verbose=args.rank == 0)
    guard = None if args.cgd_off else scanned(args, model, train, names, data, device, folder)
    loader, criterion = training_loader(args, train, data, device), base_criterion(args)
    if guard is not None:
        loader, criterion = protect(guard, loader, criterion, epochs=args.epochs)
    if not len(loader):
        raise ValueError(f"not one full batch of {args.batch_size}: pass a smaller --batch-size")
    model = model.to(device)
    if args.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if args.distributed and args.sync_bn:
        model = convert_sync_batchnorm(model)
    args.lr = args.lr or scaled_rate(args)
    optimizer = create_optimizer_v2(model, **optimizer_kwargs(cfg=args), **args.opt_kwargs)
    scaler = None
    if args.amp and args.amp_dtype == "float16" and device.type != "cpu":
        scaler = timm.utils.NativeScaler(device=device.type)
    start = resume(args, model, optimizer, scaler)
    ema = make_ema(args, model)
    if args.distributed:
        devices = [device] if device.type == "cuda" else None
        model = DistributedDataParallel(model, device_ids=devices)
    scheduler, end = make_schedule(args, optimizer, len(loader), start)
    return Run(
        args, device, model, loader,
        None if validation is None else validation_loader(args, validation, data, device),
        criterion.to(device), optimizer, scheduler, autocast(args, device), scaler, ema, guard,
        range(start, end),
    )  # fmt: skip


def datasets(args: argparse.Namespace) -> tuple[Any, Any]:
    """Open the training set, and the validation set or None."""

    def of(split: str, is_training: bool) -> Any:
        return create_dataset(
            args.dataset, root=args.data_dir, split=split, is_training=is_training,
            class_map=args.class_map, download=args.dataset_download, batch_size=args.batch_size,
            seed=args.seed, input_key=args.input_key, target_key=args.target_key,
        )  # fmt: skip

    train = of(args.train_split, True)
    if not args.val_split:
        return train, None
    validation = of(args.val_split, False)
    # If the split has no subfolder, timm reads the folder as a whole.
    if not args.dataset and Path(train.reader.root).is_relative_to(validation.reader.root):
        raise ValueError(
            f"{args.data_dir} has no subfolder for the split {args.val_split!r}: the training "
            "images would be validated on. Pass --val-split '' to go without"
        )
    if class_names(train) != class_names(validation):
        raise ValueError("the classes of the training and the validation set differ")
    return train, validation


def make_model(args: argparse.Namespace, names: list[str] | None) -> nn.Module:
    """Make the model by timm's factory, with as many outputs as there are classes."""
    classes = args.num_classes or (len(names) if names else None)
    model = create_model(
        args.model, pretrained=args.pretrained, num_classes=classes, drop_rate=args.drop,
        drop_path_rate=args.drop_path, drop_block_rate=args.drop_block, global_pool=args.gp,
        checkpoint_path=args.initial_checkpoint, **args.model_kwargs,
    )  # fmt: skip
    if args.grad_checkpointing:
        model.set_grad_checkpointing(enable=True)
    return model


def scanned(
    args: argparse.Namespace,
    model: nn.Module,
    train: Any,
    names: list[str] | None,
    data: dict[str, Any],
    device: torch.device,
    folder: Path,
) -> CGDGuard:
    """Make a guard of the training set, and scan."""
    config = CGDConfig.from_yaml(args.cgd_config) if args.cgd_config else CGDConfig()
    bf16 = args.amp and args.amp_dtype == "bfloat16"
    guard = CGDGuard(
        model, train, names,
        clip=args.cgd_clip, config=config.replace(**args.cgd_set),
        accelerator=Accelerator(cpu=device.type == "cpu", mixed_precision="bf16" if bf16 else "no"),
        cache_dir=args.cgd_cache or folder / "cgd-cache",
        eval_dataset_view=evaluated(train, data), suspicious=args.cgd_suspicious,
        num_workers=args.workers,
    ).scan(overwrite=args.cgd_overwrite)  # fmt: skip
    if args.rank == 0:
        logger.info("Guarded: %s", guard.split.counts())
        if args.cgd_report:
            guard.report(folder / "report")
    return guard


def training_loader(args: Any, dataset: Any, data: dict[str, Any], device: torch.device) -> Any:
    """Make a loader of training batches, augmented as the options say."""
    interpolation = data["interpolation"] if args.no_aug else args.train_interpolation
    return create_loader(
        dataset, input_size=data["input_size"], batch_size=args.batch_size, is_training=True,
        no_aug=args.no_aug, re_prob=args.reprob, re_mode=args.remode, re_count=args.recount,
        scale=args.scale, ratio=args.ratio, hflip=args.hflip, vflip=args.vflip,
        color_jitter=args.color_jitter, auto_augment=args.aa,
        interpolation=interpolation or data["interpolation"], mean=data["mean"], std=data["std"],
        num_workers=args.workers, distributed=args.distributed, pin_memory=args.pin_mem,
        device=device, use_prefetcher=not args.no_prefetcher, worker_seeding=args.worker_seeding,
    )  # fmt: skip


def validation_loader(args: Any, dataset: Any, data: dict[str, Any], device: torch.device) -> Any:
    """Make a loader of validation batches, in order."""
    return create_loader(
        dataset, input_size=data["input_size"], is_training=False,
        batch_size=args.validation_batch_size or args.batch_size,
        interpolation=data["interpolation"], mean=data["mean"], std=data["std"],
        crop_pct=data["crop_pct"], num_workers=args.workers, distributed=args.distributed,
        pin_memory=args.pin_mem, device=device, use_prefetcher=not args.no_prefetcher,
    )  # fmt: skip


def base_criterion(args: argparse.Namespace) -> nn.Module:
    """Make the cross entropy, with label smoothing as in timm's train.py."""
    return LabelSmoothingCrossEntropy(args.smoothing) if args.smoothing else nn.CrossEntropyLoss()


def scaled_rate(args: argparse.Namespace) -> float:
    """Learning rate by train.py's rule: ``lr_base`` times the batch's size over its base size."""
    ratio = args.batch_size * args.world_size * args.grad_accum_steps / args.lr_base_size
    adaptive = any(name in args.opt.lower() for name in ("ada", "lamb"))
    scale = args.lr_base_scale or ("sqrt" if adaptive else "linear")
    return float(args.lr_base * (ratio**0.5 if scale == "sqrt" else ratio))


def autocast(args: argparse.Namespace, device: torch.device) -> Any:
    """Make a function that returns the context of a forward pass: autocast, or none."""
    if not args.amp:
        return contextlib.nullcontext
    return functools.partial(torch.autocast, device.type, getattr(torch, args.amp_dtype))


def resume(args: Any, model: nn.Module, optimizer: Any, scaler: Any) -> int:
    """Load weights and states of ``--resume``, if given; return the epoch to start from."""
    epoch = None
    if args.resume:
        epoch = resume_checkpoint(
            model, args.resume, optimizer=None if args.no_resume_opt else optimizer,
            loss_scaler=None if args.no_resume_opt else scaler, log_info=args.rank == 0,
        )  # fmt: skip
    return args.start_epoch if args.start_epoch is not None else epoch or 0


def make_ema(args: argparse.Namespace, model: nn.Module) -> Any:
    """Make the moving average of the weights, if asked for; otherwise None."""
    if not args.model_ema:
        return None
    ema = timm.utils.ModelEmaV3(model, decay=args.model_ema_decay)
    if args.resume:
        load_checkpoint(ema.module, args.resume, use_ema=True)
    return ema


def make_schedule(args: Any, optimizer: Any, batches: int, start: int) -> tuple[Any, int]:
    """Make the learning-rate schedule; also return the epoch to stop before."""
    updates = math.ceil(batches / args.grad_accum_steps)
    scheduler, end = create_scheduler_v2(
        optimizer, **scheduler_kwargs(args), updates_per_epoch=updates
    )
    if scheduler is not None and start > 0:
        if args.sched_on_updates:
            scheduler.step_update(start * updates)
        else:
            scheduler.step(start)
    return scheduler, end
