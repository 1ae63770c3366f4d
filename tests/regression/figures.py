"""Every figure that a change of structure must not move, and a comparison of two checkouts.

    python tests/regression/figures.py --before ../old-checkout [--demo badnets blended]

prints each figure that differs between the other checkout and this one, to the last bit, and ends
with 1 if there is any. Figures are the golden values of the authors' code (where these lie beside
the checkout), whole scans over the stored scores (entropy map, split, estimate, warnings, epochs,
loss, gradient, report, saved files) and, if asked for, the demo's. `--collect FILE` writes this
checkout's own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import subprocess
import sys
import tempfile
from dataclasses import astuple
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from cgd_wrap import CGDConfig, CGDGuard, EntropyMap, functional

ROOT = Path(__file__).parents[2]
SCANS = ROOT / "tests" / "stored_scans"
GOLDEN = ROOT.parent / "shared" / "golden"
PIXEL = 256


def digest(value: Any) -> str:
    """A hash of a tensor's type, shape and bytes, or of JSON values."""
    if isinstance(value, Tensor):
        flat = value.detach().cpu().contiguous().reshape(-1)
        head = f"{flat.dtype} {tuple(value.shape)} ".encode()
        payload = head + flat.view(torch.uint8).numpy().tobytes()
    else:
        payload = json.dumps(value, sort_keys=True, default=str).encode()
    return hashlib.blake2b(payload, digest_size=12).hexdigest()


# --- a guard whose models look their answers up -------------------------------------------------


def logits_with(score: Tensor, labels: Tensor, choice: Tensor | None, classes: int) -> Tensor:
    """Logits [N, C] with these log-odds against the label and this largest class."""
    logits = torch.full((len(labels), classes), -60.0)
    row = torch.arange(len(labels))
    agreed = torch.ones_like(labels, dtype=torch.bool) if choice is None else choice == labels
    logits[agreed] = (score - torch.tensor(classes - 1.0).log())[agreed, None]
    other = (labels + 1) % classes if choice is None else choice
    logits[row[~agreed], other[~agreed]] = score[~agreed]
    logits[row, labels] = 0.0
    return logits


class Numbered(Dataset[Any]):
    """Images of one colour that is their number; what reads them can look up what it knows."""

    def __init__(self, labels: Tensor, classes: list[str], *, tensors: bool = False) -> None:
        self.targets, self.classes, self.tensors = labels.tolist(), classes, tensors

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        colour = index // PIXEL**2, index // PIXEL % PIXEL, index % PIXEL
        if self.tensors:
            return torch.tensor(colour).float()[:, None, None].expand(3, 2, 2), self.targets[index]
        return Image.new("RGB", (2, 2), colour), self.targets[index]


class LookUp(nn.Module):
    """Answers images of :class:`Numbered` from a table, scaled by a weight that can be trained."""

    def __init__(self, table: Tensor, scale: float) -> None:
        super().__init__()
        self.register_buffer("table", table)
        self.scale, self.weight = scale, nn.Parameter(torch.ones(table.shape[1]))

    def logits(self, images: Tensor) -> Tensor:
        colour = (images[:, :, 0, 0] * self.scale).round().long()
        return self.table[(colour * torch.tensor([PIXEL**2, PIXEL, 1])).sum(1) % len(self.table)]

    def forward(self, images: Tensor) -> Tensor:
        return self.logits(images) * self.weight


class Clip:
    """A zero-shot classifier with a text of its own as fingerprint."""

    def __init__(self, table: Tensor, name: str) -> None:
        self.table, self.name = LookUp(table, 255.0), name

    def logits(self, images: Tensor) -> Tensor:
        return self.table.logits(images)

    def fingerprint(self) -> str:
        return self.name


def guard_of(file: Path, config: CGDConfig) -> CGDGuard:
    """A guard that scans what a stored scan found."""
    scan = load_file(file)
    with safe_open(file, "pt") as opened:
        facts = json.loads(opened.metadata()["facts"])
    labels, names = scan["labels"].long(), facts["class_names"]
    choice = scan["clip_choice"].long()
    clip = Clip(logits_with(scan["clip_score"], labels, choice, len(names)), file.stem)
    suspicious = LookUp(logits_with(scan["suspicious_score"], labels, None, len(names)), 1.0)
    return CGDGuard(
        suspicious, Numbered(labels, names), names, clip=clip, config=config,
        suspicious=suspicious, eval_dataset_view=Numbered(labels, names, tensors=True),
        progress=False,
    )  # fmt: skip


# --- figures ------------------------------------------------------------------------------------


def figures_of(guard: CGDGuard) -> dict[str, Any]:
    """All that a scanned guard says and hands to a training, by name."""
    result = guard.result
    found: dict[str, Any] = {f"map.{n}": digest(t) for n, t in vars(guard.entropy_map).items()}
    found |= {f"split.{n}": digest(t) for n, t in vars(guard.split).items()}
    found |= {
        "counts": guard.split.counts(), "suspected": guard.suspected_classes,
        "estimate": [guard.poison_estimate.rate, *map(astuple, guard.poison_estimate.classes)],
        "warnings": result.warnings,
        "agreement": result.agreement, "trained": result.trained,
        "held_out": digest(result.held_out), "teacher": digest(result.teacher),
        "probability": digest(result.poison_probability),
        "epochs": [digest(guard.epoch_indices(seed=s).shuffled(e)) for s in (0, 1) for e in (0, 7)],
    }  # fmt: skip
    loader, criterion = guard.protect(DataLoader(guard.base, 64, collate_fn=_tensors), epochs=4)
    for number, (images, targets) in zip(range(3), loader, strict=False):
        guard.model.zero_grad()
        loss = criterion(guard.model(images), targets)
        loss.backward()
        found[f"loss-{number}"] = [loss.item(), *map(float, criterion.last_terms)]
        found[f"gradient-{number}"] = digest(guard.model.weight.grad)
    with tempfile.TemporaryDirectory() as folder:
        files = guard.report(Path(folder) / "report")
        for name in ("summary", "samples", "entropy_score"):
            found[f"report.{name}"] = digest(files[name].read_text("utf-8"))
        for name, path in guard.export(Path(folder) / "export").items():
            found[f"export.{name}"] = digest(list(path.read_bytes()))
        guard.save(Path(folder) / "saved")
        saved = load_file(Path(folder) / "saved" / "guard.safetensors")
        found |= {f"saved.{name}": digest(tensor) for name, tensor in sorted(saved.items())}
    return found


def _tensors(samples: list[tuple[Any, int]]) -> tuple[Tensor, Tensor]:
    images = [torch.tensor(image.getpixel((0, 0)))[:, None, None].float() for image, _ in samples]
    return torch.stack(images), torch.tensor([int(label) for _, label in samples])


def golden_figures() -> dict[str, Any]:
    """The functions on the inputs of the authors' code."""
    found: dict[str, Any] = {}
    for file in sorted(GOLDEN.glob("*.safetensors")):
        given = load_file(file)
        found[f"{file.stem}.inputs"] = {name: digest(tensor) for name, tensor in given.items()}
        if {"clip_logits", "suspicious_logits", "labels"} <= set(given):
            for reference in (False, True):
                scores = EntropyMap.from_logits(
                    given["clip_logits"], given["suspicious_logits"], given["labels"].long(),
                    reference_scores=reference,
                )  # fmt: skip
                split = scores.split()
                for name, tensor in {**vars(scores), **vars(split)}.items():
                    found[f"{file.stem}.{name}.{reference}"] = digest(tensor)
    generator = torch.Generator().manual_seed(0)
    outputs, teacher = torch.randn(2, 64, 10, generator=generator).unbind()
    labels = torch.randint(10, (64,), generator=generator)
    kind = torch.rand(64, generator=generator)
    for temperature in (1.0, 3.0):
        given = outputs.clone().requires_grad_()
        loss = functional.cgd_loss(
            given, labels, teacher, kind < 0.5, kind > 0.7,
            alpha=4.0, beta=0.2, temperature=temperature, triggered_weight=kind,
        )  # fmt: skip
        loss.backward()
        found[f"loss.{temperature}"] = [float(loss), digest(given.grad)]
    return found


def demo_figures(attack: str) -> dict[str, Any]:
    """The demo's figures, without seconds and paths."""
    from cgd_wrap.cli import main

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        options = ["--attack", attack, "--quiet", "--json", str(file), "--out", folder]
        assert main(["demo", *options]) == 0
        found: dict[str, Any] = json.loads(file.read_text())
    return {name: value for name, value in found.items() if name not in TIMES}


TIMES = ("seconds", "total_seconds", "files")


def collected(scans: Path, demos: list[str]) -> dict[str, Any]:
    """All figures of the cgd_wrap that is imported here."""
    torch.set_num_threads(1)
    logging.getLogger("cgd_wrap").setLevel(logging.ERROR)
    found: dict[str, Any] = {"golden": golden_figures()}
    configs = {"default": CGDConfig(), "paper": CGDConfig.paper(reference_scores=False)}
    for file in sorted(scans.glob("*.safetensors")):
        for name, config in configs.items():
            key = f"{file.stem}.{name}"
            found[key] = figures_of(guard_of(file, config).scan())
            print(key, file=sys.stderr)
    found |= {f"demo.{attack}": demo_figures(attack) for attack in demos}
    return found


def differences(before: Any, after: Any, where: str = "") -> list[str]:
    """Each place where two JSON values differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        names = sorted(set(before) | set(after))
        return [
            line
            for name in names
            for line in differences(before.get(name), after.get(name), f"{where}/{name}")
        ]
    return [] if before == after else [f"{where}: {before!r} -> {after!r}"]


def collect_in(checkout: Path, args: argparse.Namespace, file: Path) -> dict[str, Any]:
    """Run this script's collection on the package of a checkout."""
    command = [sys.executable, __file__, "--collect", str(file), "--scans", str(args.scans)]
    command += ["--demo", *args.demo] if args.demo else []
    paths = {"PYTHONPATH": str(checkout.resolve()), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env={**os.environ, **paths})
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, help="the other checkout")
    parser.add_argument("--collect", type=Path, metavar="FILE", help="write these figures")
    parser.add_argument("--scans", type=Path, default=SCANS, help="stored scans (%(default)s)")
    parser.add_argument("--demo", nargs="+", default=[], help="attacks of the demo, minutes each")
    args = parser.parse_args()
    if args.collect:
        args.collect.write_text(json.dumps(collected(args.scans, args.demo), indent=1))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        before = collect_in(args.before, args, Path(folder) / "before.json")
        after = collect_in(ROOT, args, Path(folder) / "after.json")
    found = differences(before, after)
    print("\n".join(found) or f"no figure of {len(after)} groups differs")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
