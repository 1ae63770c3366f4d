"""CGD as a defence of BackdoorBench: copy this file to its ``defense/cgd.py``; run from its root.

python defense/cgd.py --result_file badnet --yaml_path ./config/defense/cgd/cifar10.yaml \
    --dataset cifar10 --dataset_path ./data

The script takes the arguments of the reference (the cgd.py of CGD's authors) and of BackdoorBench's
other defences. It reads ``record/<result_file>/attack_result.pt`` without running pickled code, and
writes ``record/<result_file>/defense/cgd`` and ``record/<result_file>/AWC``. It does both of the
reference's steps: no other script has to run before.
"""

from __future__ import annotations

import argparse
import logging
import os
import pprint
import sys
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from cgd_wrap.backdoorbench import (
    Defence,
    build_network,
    config_from_settings,
    defend_folder,
    in_words,
    read_attack_result,
)
from cgd_wrap.config.reading import load_yaml
from cgd_wrap.guard import DEFAULT_CLIP

logger = logging.getLogger("cgd_wrap.backdoorbench")

YAML = "./config/defense/cgd/cifar10.yaml"
# Settings that this script itself reads; all other settings are numbers of the defence.
OWN = (
    "device", "dataset", "dataset_path", "result_file", "yaml_path", "model", "clip",
    "num_workers", "frequency_save", "checkpoint_save", "log", "progress",
)  # fmt: skip
# Arguments of the reference that have no meaning here -> values that are accepted all the same.
REFUSED = {
    "checkpoint_load": (None,),
    "client_optimizer": (None, "sgd"),
    "interval": (None,),
    "steplr_stepsize": (None,),
    "steplr_gamma": (None,),
    "steplr_milestones": (None,),
}
HINTS = ("pin_memory", "non_blocking")  # concern speed only, and the loaders decide by themselves


class CGD:
    """The defence, with the methods that BackdoorBench's defences have.

    Args:
        args: parsed command line; arguments that are None are taken from the YAML file.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        settings = load_yaml(Path(args.yaml_path)) or {}
        settings.update({name: value for name, value in vars(args).items() if value is not None})
        for name, accepted in REFUSED.items():
            if settings.pop(name, None) not in accepted:
                raise ValueError(f"--{name} has no meaning for this defence: leave it out")
        for name in HINTS:
            settings.pop(name, None)
        own = {name: settings.pop(name, None) for name in OWN}
        self.args = argparse.Namespace(**own)
        self.config = config_from_settings(settings)

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Add the arguments of the reference to a parser; all default to the YAML file's values."""
        texts = ("device", "checkpoint_load", "checkpoint_save", "log", "dataset_path", "dataset",
                 "result_file", "lr_scheduler", "model", "client_optimizer", "clip")  # fmt: skip
        counts = ("interval", "epochs", "batch_size", "num_workers", "frequency_save",
                  "random_seed", "steplr_stepsize")  # fmt: skip
        numbers = ("lr", "wd", "sgd_momentum", "temperature", "alpha", "beta", "sigma1", "sigma2",
                   "tolerance", "steplr_gamma", "steplr_milestones")  # fmt: skip
        short = {"pin_memory": ["-pm"], "non_blocking": ["-nb"], "prefetch": ["-pf"]}
        for kind, names in ((str, texts), (int, counts), (float, numbers)):
            for name in names:
                parser.add_argument(f"--{name}", type=kind)
        for name in ("pin_memory", "non_blocking", "prefetch", "amp", "progress"):
            parser.add_argument(*short.get(name, []), f"--{name}", type=_flag)
        parser.add_argument("--preset", choices=("default", "paper"))
        parser.add_argument("--yaml_path", default=YAML)

    def set_result(self, result_file: str) -> None:
        """Open the attack's result and make the folders of the defence."""
        folder = Path("record") / result_file
        self.result = read_attack_result(folder)
        for name, stored in (("dataset", self.result.data_set), ("model", self.result.model_name)):
            if getattr(self.args, name) not in (None, stored):
                raise ValueError(
                    f"--{name} is {getattr(self.args, name)!r}, but the attack on {result_file} "
                    f"used {stored!r}"
                )
        save_path = folder / "defense" / "cgd"
        self.args.checkpoint_save = Path(self.args.checkpoint_save or save_path / "checkpoint")
        self.args.log = Path(self.args.log or save_path / "log")
        for made in (self.args.checkpoint_save, self.args.log):
            made.mkdir(parents=True, exist_ok=True)

    def set_logger(self) -> None:
        """Log to the console, and to a file with the present time as its name."""
        form = "%(asctime)s [%(levelname)-8s] [%(filename)s:%(lineno)d] %(message)s"
        file = self.args.log / f"{time.strftime('%Y_%m_%d_%H_%M_%S')}.log"
        handlers = [logging.FileHandler(file), logging.StreamHandler()]
        logging.basicConfig(format=form, handlers=handlers, force=True)
        logging.getLogger("cgd_wrap").setLevel(logging.INFO)
        logger.info("%s", pprint.pformat({**vars(self.args), **self.config.as_dict()}))

    def mitigation(self) -> Defence:
        """Scan the data, split it, repair the model, and write all results."""
        args = self.args
        folder = None if args.dataset_path is None else Path(args.dataset_path)
        defence = defend_folder(
            self.result.folder,
            data_folder=folder,
            clip=args.clip or DEFAULT_CLIP,
            config=self.config,
            network=self.network(),
            accelerator=_accelerator(args.device, self.config.mixed_precision),
            num_workers=args.num_workers or 0,
            checkpoint_folder=args.checkpoint_save,
            save_every=args.frequency_save or 0,
            progress=args.progress is not False,
        )
        logger.info("before: %s", in_words(defence.before))
        logger.info("after:  %s", in_words(defence.after))
        return defence

    def network(self) -> nn.Module:
        """Make the attacked architecture: ours or else BackdoorBench's, which has more of them."""
        name, classes = self.result.model_name, self.result.num_classes
        try:
            return build_network(name, classes)
        except ValueError:
            sys.path.append(os.getcwd())
            from utils.aggregate_block.model_trainer_generate import generate_cls_model

            network: nn.Module = generate_cls_model(name, classes)
            return network

    def defense(self, result_file: str) -> Defence:
        """Run the whole defence on ``record/<result_file>``."""
        self.set_result(result_file)
        self.set_logger()
        return self.mitigation()


def _flag(text: str) -> bool:
    return text in ("True", "true", "1")


def _accelerator(device: str | None, precision: str) -> Accelerator:
    if device is not None and "," in device:
        raise ValueError(
            f"--device {device}: for several GPUs run torchrun --nproc_per_node N defense/cgd.py"
        )
    if device is not None and device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {device}, but torch sees no GPU: pass --device cpu")
    if device not in (None, "cpu", "cuda"):
        os.environ["ACCELERATE_TORCH_DEVICE"] = device  # Accelerate's only way to choose a GPU
    return Accelerator(cpu=device == "cpu", mixed_precision=precision)


def main() -> None:
    """Parse the command line and defend."""
    parser = argparse.ArgumentParser(description="CLIP-guided backdoor defence")
    CGD.add_arguments(parser)
    args = parser.parse_args()
    if args.result_file is None:
        parser.error("--result_file is needed: the name of a folder in record")
    CGD(args).defense(args.result_file)


if __name__ == "__main__":
    main()
