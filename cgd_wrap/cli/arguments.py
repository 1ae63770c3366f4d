"""The commands of ``cgd-wrap``, and their options."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

import cgd_wrap
from cgd_wrap.cli import commands as run
from cgd_wrap.escaping import printable
from cgd_wrap.guard import DEFAULT_CLIP


def parser() -> argparse.ArgumentParser:
    """Make the parser; what it returns has the function of the chosen command in ``command``."""
    top = _Parser(
        prog="cgd-wrap", description="Find and unlearn backdoors in image-classification data."
    )
    top.add_argument("--version", action="version", version=cgd_wrap.__version__)
    top.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="plant a backdoor in drawn images and remove it")
    demo.add_argument("--attack", choices=("badnets", "blended", "sig", "flip"), default="badnets")
    demo.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    demo.add_argument("--out", type=Path, metavar="FOLDER", default=Path("cgd-demo"))
    demo.add_argument("--config", type=Path, help="YAML file of CGDConfig")
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--quiet", action="store_true", help="no progress bars")
    demo.set_defaults(command=run.demo, goes_on=False)

    scan = commands.add_parser("scan", help="find the poison in a folder of images")
    _data_arguments(scan)
    _scan_arguments(scan)
    scan.set_defaults(command=run.scan, goes_on=True)

    defend = commands.add_parser("defend", help="scan, then repair a backdoored model")
    _data_arguments(defend, required=False)
    _scan_arguments(defend)
    defend.add_argument("--weights-out", type=Path, help="repaired weights, .safetensors")
    defend.add_argument("--backdoorbench", type=Path, metavar="FOLDER", help="a result of "
                        "BackdoorBench (record/NAME), in place of images, --out, --model, "
                        "--checkpoint, --image-size, --class-names and --weights-out")  # fmt: skip
    defend.add_argument("--data", type=Path, help="with --backdoorbench: the clean data set's "
                        "folder; default: where the attack found it")  # fmt: skip
    defend.set_defaults(command=run.defend, goes_on=True)

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
    drill.set_defaults(command=run.drill, checkpoint=None, goes_on=False)

    report = commands.add_parser("report", help="write the report of a saved scan again")
    _data_arguments(report)
    report.set_defaults(command=run.report, goes_on=False)
    return top


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Print usage and a message, which may quote file names that a shell has filled in."""
        super().error(printable(message))


def _data_arguments(
    to: argparse.ArgumentParser, *, required: bool = True, weights: bool = True
) -> None:
    to.add_argument("images", type=Path, nargs=None if required else "?",
                    help="folder with a subfolder of images per class")  # fmt: skip
    to.add_argument("--out", type=Path, required=required, help="folder of the results")
    to.add_argument("--model", required=required, help="timm name of the classifier")
    if weights:
        to.add_argument("--checkpoint", type=Path, help="trained weights; default: untrained")
    to.add_argument("--image-size", type=int, metavar="PIXELS",
                    help="side of the model's input; default: the model's own")  # fmt: skip
    to.add_argument("--class-names", type=Path, help="text file, a name per line, in the "
                    "subfolders' order (by name, numbers by value); default: those "
                    "names")  # fmt: skip
    to.add_argument("--clip", action="append", metavar="MODEL", help="model of open_clip; "
                    "if given several times, all have to vouch for a label (default: "
                    f"{DEFAULT_CLIP})")  # fmt: skip
    to.add_argument("--config", type=Path, help="YAML file of CGDConfig")
    to.add_argument("--on-bad-sample", choices=("raise", "record"), help="stop at the first "
                    "unreadable image, or leave it out; default: the config's")  # fmt: skip
    to.add_argument("--workers", type=int, default=0, help="processes that read images")
    to.add_argument("--quiet", action="store_true", help="no progress bars")


def _scan_arguments(to: argparse.ArgumentParser) -> None:
    to.add_argument("--overwrite", action="store_true", default=None,
                    help="replace a scan in --out of other data or settings")  # fmt: skip
