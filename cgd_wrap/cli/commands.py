"""What each command does, with the options that were given."""

from __future__ import annotations

import argparse
import difflib
import errno
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cgd_wrap.cli.ending import in_options, say
from cgd_wrap.config import CGDConfig
from cgd_wrap.escaping import brief, escaped_logger
from cgd_wrap.files import write_atomically
from cgd_wrap.guard import DEFAULT_CLIP, CGDGuard
from cgd_wrap.report.figure import require_matplotlib

if TYPE_CHECKING:
    from cgd_wrap.cli.images import ImageClasses

logger = escaped_logger(__name__)


def demo(args: argparse.Namespace) -> None:
    """Run the demo on drawn images."""
    from cgd_wrap.demo.run import as_table, run_demo

    config = CGDConfig.from_yaml(args.config) if args.config else CGDConfig(seed=args.seed)
    require_matplotlib()
    _check_folder(args.out)
    _check_file(args.json)
    result = run_demo(
        args.attack, folder=args.out, config=config, seed=args.seed,
        progress=not args.quiet, say=say,
    )  # fmt: skip
    if args.json:
        _write_figures(args.json, result.as_dict())
    say(as_table(result))


def scan(args: argparse.Namespace) -> None:
    """Scan a folder of images, save the scan, and write the report."""
    guard = _guard(args).scan(overwrite=bool(args.overwrite))
    _finish(guard, args.out)


def defend(args: argparse.Namespace) -> None:
    """Scan, and repair a model: of a folder of images, or of a result of BackdoorBench."""
    of_images = (
        "images", "out", "model", "checkpoint", "image_size", "class_names", "weights_out",
        "overwrite",
    )  # fmt: skip
    given = [name for name in of_images if getattr(args, name) is not None]
    if args.backdoorbench:
        if given:
            raise ValueError(
                f"--backdoorbench takes the place of {_options(given)}: leave them out"
            )
        _defend_result(args)
        return
    missing = [name for name in ("images", "out", "model", "weights_out") if name not in given]
    if missing or args.data:
        raise ValueError(
            "defend needs images, --out, --model and --weights-out, or --backdoorbench and perhaps "
            f"--data; missing: {_options(missing) or '--backdoorbench'}"
        )
    _defend_images(args)


def _options(names: Sequence[str]) -> str:
    return ", ".join("images" if n == "images" else f"--{n.replace('_', '-')}" for n in names)


def _defend_result(args: argparse.Namespace) -> None:
    from cgd_wrap.backdoorbench import defend_folder, in_words

    defence = defend_folder(
        args.backdoorbench,
        data_folder=args.data,
        clip=_clips(args),
        config=_config(args),
        num_workers=args.workers,
        progress=not args.quiet,
    )
    _say_files(defence.files)
    say(f"before: {in_words(defence.before)}")
    say(f"after:  {in_words(defence.after)}")


def _defend_images(args: argparse.Namespace) -> None:
    from cgd_wrap.models.weights import write_weights

    _check_file(args.weights_out)
    guard = _guard(args).scan(overwrite=bool(args.overwrite))
    _finish(guard, args.out)
    for record in guard.fit():
        say(json.dumps(record.as_dict()))
    write_weights(guard.model, args.weights_out)
    say(f"repaired weights: {args.weights_out}")


def drill(args: argparse.Namespace) -> None:
    """Plant a known backdoor in a copy of a folder of images, defend, and measure."""
    from cgd_wrap.attacks.catalogue import attack_of
    from cgd_wrap.cli.images import ImageClasses

    rate = {} if args.rate is None else {"rate": args.rate}
    attack = attack_of(args.attack, target=args.target, seed=args.seed, **rate)
    _check_file(args.json)
    guard = _guard(args)
    if args.epochs is not None:
        guard.config = guard.config.replace(epochs=args.epochs)
    test = None
    if args.test_images is not None:
        test = ImageClasses(args.test_images, guard.base.class_to_idx)
    outcome = guard.drill(attack, test_dataset=test, seed=args.seed)
    files = outcome.report(args.out, f"Drill: {args.attack}")
    if args.json:
        _write_figures(args.json, outcome.as_dict())
    say(outcome.as_text())
    _say_files(files)


def report(args: argparse.Namespace) -> None:
    """Write the report of a saved scan again."""
    saved = args.out / "guard"
    if not saved.is_dir():
        raise FileNotFoundError(f"no results in {str(args.out)!r}: run cgd-wrap scan first")
    dataset, model = _dataset_and_model(args)
    guard = CGDGuard.load(
        saved, model, dataset, class_names=_class_names(args, dataset), clip=_clips(args)
    )
    _say_files(guard.report(args.out / "report"))
    _say_verdict(guard)


def _finish(guard: CGDGuard, folder: Path) -> None:
    guard.save(folder / "guard")
    _say_files(guard.report(folder / "report"))
    _say_verdict(guard)


def _say_verdict(guard: CGDGuard) -> None:
    say(f"verdict: {guard.verdict.sentence}")
    for reason in guard.verdict.reasons:
        say(f"- {in_options(reason.text)}")


def _write_figures(path: Path, figures: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(figures, indent=1).encode())


def _say_files(files: dict[str, Path]) -> None:
    for name, path in files.items():
        say(f"{name}: {path}")


def _check_folder(place: Path) -> None:
    """Make a folder that results go to: what is in the way is told before the work."""
    place.mkdir(parents=True, exist_ok=True)
    if not os.access(place, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))


def _check_file(file: Path | None) -> None:
    """Make the folder of a file that is written in the end, if there is to be one."""
    if file is not None:
        _check_folder(file.parent)
        if file.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))


def _guard(args: argparse.Namespace) -> CGDGuard:
    config = _config(args)
    if args.out.resolve().is_relative_to(args.images.resolve()):
        raise ValueError(
            f"--out {str(args.out)!r} lies in the folder of images, where it would be read as a "
            "class: choose another place"
        )
    require_matplotlib()
    _check_folder(args.out)
    dataset, model = _dataset_and_model(args)
    return CGDGuard(
        model,
        dataset,
        class_names=_class_names(args, dataset),
        clip=_clips(args),
        config=config,
        cache_dir=args.out / "cache",
        num_workers=args.workers,
        progress=not args.quiet,
    )


def _config(args: argparse.Namespace) -> CGDConfig:
    config = CGDConfig.from_yaml(args.config) if args.config else CGDConfig()
    return config.replace(on_bad_sample=args.on_bad_sample) if args.on_bad_sample else config


def _dataset_and_model(args: argparse.Namespace) -> tuple[Any, Any]:
    """Open the folder of images, with the model's evaluation transform; make the model."""
    import timm
    from timm.data import create_transform, resolve_data_config

    from cgd_wrap.cli.images import ImageClasses
    from cgd_wrap.models.inputs import check_outputs
    from cgd_wrap.models.weights import load_checkpoint

    if args.image_size is not None and args.image_size < 1:
        raise ValueError(f"--image-size is in pixels, 1 or more, got {args.image_size}")
    if args.workers < 0:
        raise ValueError(f"--workers is 0 or more, got {args.workers}")
    if not timm.is_model(args.model):
        close = difflib.get_close_matches(args.model, timm.list_models(), n=5, cutoff=0.5)
        raise ValueError(
            f"timm knows no model {args.model!r}"
            + (f" (similar: {', '.join(close)})" if close else "")
        )
    dataset = ImageClasses(args.images)
    if (args.checkpoint or args.class_names) and dataset.classes != sorted(dataset.classes):
        logger.warning(
            "Classes are numbered as timm numbers them: %s. torchvision's ImageFolder has another "
            "order (%s): names and checkpoint must follow timm's.",
            _first(dataset.classes), _first(sorted(dataset.classes)),
        )  # fmt: skip
    try:
        model = timm.create_model(args.model, num_classes=len(dataset.classes))
    except Exception as error:  # such as an unknown tag behind the name
        raise ValueError(f"timm can't make {args.model!r}: {brief(error)}") from error
    if args.checkpoint:
        model = load_checkpoint(model, args.checkpoint)
    size = {"img_size": args.image_size} if args.image_size else {}
    options = resolve_data_config(size, model=model)
    try:
        check_outputs(model, options["input_size"], dataset.classes)
    except Exception as error:
        raise ValueError(
            f"{args.model!r} doesn't take images of shape {[*options['input_size']]}: "
            f"{brief(error)}. Choose another --image-size or --model"
        ) from error
    dataset.transform = create_transform(**options)
    return dataset, model


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _clips(args: argparse.Namespace) -> list[str]:
    return args.clip or [DEFAULT_CLIP]


def _class_names(args: argparse.Namespace, dataset: ImageClasses) -> list[str] | None:
    """Read the file of class names, if there is one."""
    if args.class_names is None:
        return None
    file = str(args.class_names)
    try:
        names = args.class_names.read_text(encoding="utf-8-sig").rstrip().split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"--class-names {file!r} is no text in UTF-8: {brief(error)}") from error
    if len(names) != len(dataset.classes):
        raise ValueError(
            f"--class-names {file!r} has {len(names)} names, and there are "
            f"{len(dataset.classes)} class folders: give one name a line, in the order "
            f"{dataset.classes[:10]}"
        )
    return [name.strip() for name in names]
