"""The command line: ``cgd-wrap demo | scan | defend | drill | report``."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cgd_wrap
from cgd_wrap.config import CGDConfig
from cgd_wrap.errors import CGDError
from cgd_wrap.files import write_atomically
from cgd_wrap.guard import DEFAULT_CLIP, CGDGuard

USER_ERRORS = (CGDError, ValueError, TypeError, FileNotFoundError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return 0, or 1 after an error that the user can mend."""
    args = _parser().parse_args(arguments)
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("cgd_wrap").setLevel(logging.INFO)  # other libraries: warnings only
    try:
        args.command(args)
    except USER_ERRORS as error:
        if args.debug:
            raise
        print(f"cgd-wrap: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cgd-wrap", description="Find and unlearn backdoors in image-classification data."
    )
    parser.add_argument("--version", action="version", version=cgd_wrap.__version__)
    parser.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="plant a backdoor in drawn images and remove it")
    demo.add_argument("--attack", choices=("badnets", "blended", "sig", "flip"), default="badnets")
    demo.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    demo.add_argument("--out", type=Path, metavar="FOLDER", default=Path("cgd-demo"))
    demo.add_argument("--config", type=Path, help="YAML file of CGDConfig")
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--quiet", action="store_true", help="no progress bars")
    demo.set_defaults(command=_demo)

    scan = commands.add_parser("scan", help="find the poison in a folder of images")
    _data_arguments(scan)
    scan.set_defaults(command=_scan)

    defend = commands.add_parser("defend", help="scan, then repair a backdoored model")
    _data_arguments(defend, required=False)
    defend.add_argument("--weights-out", type=Path, help="repaired weights, .safetensors")
    defend.add_argument("--backdoorbench", type=Path, metavar="FOLDER", help="a result of "
                        "BackdoorBench (record/NAME), in place of images, --out, --model, "
                        "--checkpoint, --image-size, --class-names and --weights-out")  # fmt: skip
    defend.add_argument("--data", type=Path, help="with --backdoorbench: the clean data set's "
                        "folder; default: where the attack found it")  # fmt: skip
    defend.set_defaults(command=_defend)

    drill = commands.add_parser(
        "drill", help="plant a known backdoor in a copy of a folder of images: does CLIP find it?"
    )
    _data_arguments(drill, weights=False)
    drill.add_argument("--attack", default="badnets", help="name of the attack (%(default)s)")
    drill.add_argument("--rate", type=float, help="share that is poisoned; default: the attack's")
    drill.add_argument("--target", type=int, default=0, help="target class, a number (%(default)s)")
    drill.add_argument("--test-images", type=Path, metavar="FOLDER", help="images to measure on; "
                       "default: a fifth of the images, kept out of training")  # fmt: skip
    drill.add_argument("--epochs", type=int, help="for victim and repair; default: the config's")
    drill.add_argument("--seed", type=int, default=0)
    drill.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    drill.set_defaults(command=_drill, checkpoint=None)

    report = commands.add_parser("report", help="write the report of a saved scan again")
    _data_arguments(report)
    report.set_defaults(command=_report)
    return parser


def _data_arguments(
    parser: argparse.ArgumentParser, *, required: bool = True, weights: bool = True
) -> None:
    parser.add_argument("images", type=Path, nargs=None if required else "?",
                        help="folder with a subfolder of images per class")  # fmt: skip
    parser.add_argument("--out", type=Path, required=required, help="folder of the results")
    parser.add_argument("--model", required=required, help="timm name of the classifier")
    if weights:
        parser.add_argument("--checkpoint", type=Path, help="trained weights; default: untrained")
    parser.add_argument("--image-size", type=int, metavar="PIXELS",
                        help="side of the model's input; default: the model's own")  # fmt: skip
    parser.add_argument("--class-names", type=Path, help="text file, a name per line, in the "
                        "subfolders' alphabetical order; default: those names")  # fmt: skip
    parser.add_argument("--clip", action="append", metavar="MODEL", help="model of open_clip; "
                        "if given several times, all have to vouch for a label (default: "
                        f"{DEFAULT_CLIP})")  # fmt: skip
    parser.add_argument("--config", type=Path, help="YAML file of CGDConfig")
    parser.add_argument("--workers", type=int, default=0, help="processes that read images")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def _demo(args: argparse.Namespace) -> None:
    from cgd_wrap.demo.run import as_table, run_demo

    config = CGDConfig.from_yaml(args.config) if args.config else CGDConfig(seed=args.seed)
    result = run_demo(
        args.attack, folder=args.out, config=config, seed=args.seed,
        progress=not args.quiet, say=print,
    )  # fmt: skip
    print(as_table(result))
    if args.json:
        _write_figures(args.json, result.as_dict())


def _scan(args: argparse.Namespace) -> None:
    guard = _guard(args).scan()
    _finish(guard, args.out)


def _defend(args: argparse.Namespace) -> None:
    of_images = (
        "images", "out", "model", "checkpoint", "image_size", "class_names", "weights_out",
    )  # fmt: skip
    given = [name for name in of_images if getattr(args, name) is not None]
    if args.backdoorbench:
        if given:
            raise ValueError(f"--backdoorbench takes the place of {given}: leave them out")
        _defend_result(args)
        return
    missing = [name for name in ("images", "out", "model", "weights_out") if name not in given]
    if missing or args.data:
        raise ValueError(
            "defend needs images, --out, --model and --weights-out, or --backdoorbench and perhaps "
            f"--data; missing: {missing or '--backdoorbench'}"
        )
    _defend_images(args)


def _defend_result(args: argparse.Namespace) -> None:
    from cgd_wrap.backdoorbench import defend_folder, in_words

    defence = defend_folder(
        args.backdoorbench,
        data_folder=args.data,
        clip=_clips(args),
        config=CGDConfig.from_yaml(args.config) if args.config else None,
        num_workers=args.workers,
        progress=not args.quiet,
    )
    _print_files(defence.files)
    print("before:", in_words(defence.before))
    print("after: ", in_words(defence.after))


def _defend_images(args: argparse.Namespace) -> None:
    from cgd_wrap.models.weights import write_weights

    guard = _guard(args).scan()
    _finish(guard, args.out)
    for record in guard.fit():
        print(json.dumps(record.as_dict()))
    args.weights_out.parent.mkdir(parents=True, exist_ok=True)
    write_weights(guard.model, args.weights_out)
    print(f"repaired weights: {args.weights_out}")


def _drill(args: argparse.Namespace) -> None:
    from cgd_wrap.attacks.catalogue import attack_of

    rate = {} if args.rate is None else {"rate": args.rate}
    attack = attack_of(args.attack, target=args.target, seed=args.seed, **rate)
    guard = _guard(args)
    if args.epochs:
        guard.config = guard.config.replace(epochs=args.epochs)
    test = None if args.test_images is None else _folder(args.test_images, guard.base.reader)
    outcome = guard.drill(attack, test_dataset=test, seed=args.seed)
    print(outcome.as_text())
    _print_files(outcome.report(args.out, f"Drill: {args.attack}"))
    if args.json:
        _write_figures(args.json, outcome.as_dict())


def _report(args: argparse.Namespace) -> None:
    dataset, model = _dataset_and_model(args)
    guard = CGDGuard.load(
        args.out / "guard", model, dataset,
        class_names=_class_names(args, dataset), clip=_clips(args),
    )  # fmt: skip
    _print_files(guard.report(args.out / "report"))


def _finish(guard: CGDGuard, folder: Path) -> None:
    guard.save(folder / "guard")
    _print_files(guard.report(folder / "report"))


def _write_figures(path: Path, figures: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(figures, indent=1).encode())


def _print_files(files: dict[str, Path]) -> None:
    for name, path in files.items():
        print(f"{name}: {path}")


def _guard(args: argparse.Namespace) -> CGDGuard:
    dataset, model = _dataset_and_model(args)
    return CGDGuard(
        model,
        dataset,
        class_names=_class_names(args, dataset),
        clip=_clips(args),
        config=CGDConfig.from_yaml(args.config) if args.config else CGDConfig(),
        cache_dir=args.out / "cache",
        num_workers=args.workers,
        progress=not args.quiet,
    )


def _dataset_and_model(args: argparse.Namespace) -> tuple[Any, Any]:
    """Open the folder as a timm dataset, with the model's evaluation transform; make the model."""
    import timm
    from timm.data import create_transform, resolve_data_config

    from cgd_wrap.models.weights import load_checkpoint

    dataset = _folder(args.images)
    if not timm.is_model(args.model):
        close = timm.list_models(f"*{args.model.split('.')[0][:6]}*")[:5]
        raise ValueError(f"timm knows no model {args.model!r}; perhaps one of {close}")
    model = timm.create_model(args.model, num_classes=len(dataset.reader.class_to_idx))
    if args.checkpoint:
        model = load_checkpoint(model, args.checkpoint)
    size = {"img_size": args.image_size} if args.image_size else {}
    dataset.transform = create_transform(**resolve_data_config(size, model=model))
    return dataset, model


def _folder(path: Path, reader: Any = None) -> Any:
    """Open a folder of images as a timm dataset, with the class numbers of ``reader``, if given."""
    from timm.data import create_dataset

    if not path.is_dir():
        raise FileNotFoundError(f"no folder of images at {path}")
    numbers = {} if reader is None else {"class_map": reader.class_to_idx}
    return create_dataset("", root=str(path), **numbers)


def _clips(args: argparse.Namespace) -> list[str]:
    return args.clip or [DEFAULT_CLIP]


def _class_names(args: argparse.Namespace, dataset: Any) -> list[str] | None:
    if args.class_names is None:
        return None
    return str(args.class_names.read_text(encoding="utf-8")).splitlines()
