r"""What the verdict is on data of many kinds, poisoned and honest: one scan of each.

    OMP_NUM_THREADS=1 python examples/verdicts.py --data DATA --clip local-dir:CLIP \
        --rows 0:12000 --out verdicts.jsonl \
        clean symmetric:0.1 badnets:0.01:0 badnets:0.01:0+blended:0.01:4 all-to-all:badnets:0.1

A kind is made of parts, joined by +, which follow one another:

- ``clean``: nothing is done;
- ``tail:RATIO``: a long tail, of the largest class RATIO times as many as of the smallest;
- a kind of noise and its share (label_noise.py): ``symmetric:0.1``, ``sloppy:0.3`` ...
- an attack, its rate and its target, a number or ``rare`` for the rarest class: ``wanet:0.05:2``;
- ``all-to-all:ATTACK:RATE``: images of each class get a trigger and the next class' label, without
  covers.

Attacks come last; a second one may meet samples that the first one has poisoned. Each kind is a row
of a Markdown table, and a line in the file, as JSON. A kind whose line is there already, of the
same data, CLIP and seed, isn't scanned again.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from image_data import Pictures, read_data
from label_noise import KINDS, mislabelled
from long_tail import long_tailed, tail_sizes
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torchvision import transforms

from cgd_wrap import CGDConfig, CGDGuard
from cgd_wrap.attacks import PoisonedDataset
from cgd_wrap.attacks.catalogue import attack_of
from cgd_wrap.drill.experiment import transformed
from cgd_wrap.models.small_resnet import small_resnet

# Attacks that need no surrogate to be fitted, and no text.
TRIGGERS = ("badnets", "blended", "wanet", "bpp", "sig", "ctrl", "label_flip")
TITLE = (
    "kind", "samples", "verdict", "named: share, and the truth", "in the clean part",
    "in the triggered part", "smallest noticed", "seconds",
)  # fmt: skip


def parts_of(spec: str) -> list[list[str]]:
    """The parts of a kind, each a name and its values; a wrong one ends the program."""
    parts = [part.split(":") for part in spec.split("+")]
    attacked = False
    for name, *values in parts:
        try:
            if name == "all-to-all":
                known = values[0] in TRIGGERS and 0 < float(values[1]) <= 1
            elif name in TRIGGERS:
                known = 0 < float(values[0]) <= 1 and (values[1] == "rare" or int(values[1]) >= 0)
            elif name in KINDS or name == "tail":
                known = float(values[0]) >= (name == "tail") and not attacked
            else:
                known = name == "clean"
        except (IndexError, ValueError):
            known = False
        if not known:
            raise SystemExit(f"{':'.join([name, *values])!r} in {spec!r} is no such kind: --help")
        attacked |= name in (*TRIGGERS, "all-to-all")
    return parts


class Kind:
    """A data set of one kind.

    Args:
        spec: what is done to the data, as described above.
        pictures: images and right labels, which are left as they are.
        seed: decides every random choice.

    Attributes:
        pictures: images and given labels.
        poisoned: samples that an attack has poisoned, bool [N].
    """

    def __init__(self, spec: str, pictures: Pictures, seed: int) -> None:
        self.pictures = self._taken(pictures, range(len(pictures)))
        self.poisoned = np.zeros(len(pictures), dtype=bool)
        self.seed = seed
        for name, *values in parts_of(spec):
            if name == "tail":
                self._tail(float(values[0]))
            elif name in KINDS:
                targets = self.pictures.targets
                self.pictures.targets = mislabelled(targets, name, float(values[0]), seed)
            elif name == "all-to-all":
                self._map_labels(values[0], float(values[1]))
            elif name in TRIGGERS:
                self._attack(name, float(values[0]), values[1])

    @staticmethod
    def _taken(pictures: Pictures, rows: Sequence[int]) -> Pictures:
        some = copy.copy(pictures)
        some.images = [pictures.images[row] for row in rows]
        some.targets = [pictures.targets[row] for row in rows]
        return some

    def _tail(self, ratio: float) -> None:
        sizes = np.bincount(self.pictures.targets)
        # The classes' order is drawn, so that the seed decides which one is the rarest.
        order = np.random.default_rng([self.seed, 6]).permutation(len(sizes))
        wanted = np.zeros_like(sizes)
        wanted[order] = tail_sizes(int(sizes[sizes > 0].min()), len(sizes), ratio, "exponential")
        kept = long_tailed(self.pictures.targets, wanted.tolist())
        self.pictures, self.poisoned = self._taken(self.pictures, kept), self.poisoned[kept]

    def _attack(self, name: str, rate: float, target: str) -> None:
        present, sizes = np.unique(self.pictures.targets, return_counts=True)
        rarest = int(present[sizes.argmin()])
        attack = attack_of(
            name, rate=rate, target=rarest if target == "rare" else int(target),
            seed=self.seed + int(self.poisoned.sum()),  # another trigger for a further target
        )  # fmt: skip
        attacked = PoisonedDataset(self.pictures, attack)
        changed = torch.cat([attacked.poisoned, attacked.covered]).tolist()
        images = {index: np.array(attacked[index][0]) for index in changed}
        for index, image in images.items():
            self.pictures.images[index] = image
        self.pictures.targets = list(attacked.targets)
        self.poisoned[attacked.poisoned.numpy()] = True

    def _map_labels(self, name: str, rate: float) -> None:
        attack, size = attack_of(name, seed=self.seed), len(self.pictures)
        drawn = np.random.default_rng([self.seed, 7]).permutation(size)[: round(rate * size)]
        classes = max(self.pictures.targets) + 1
        for index in drawn.tolist():
            image = Image.fromarray(self.pictures.images[index])
            self.pictures.images[index] = np.array(attack.trigger(image))
            self.pictures.targets[index] = (self.pictures.targets[index] + 1) % classes
        self.poisoned[drawn] = True


def scanned(kind: Kind, clip: str, seed: int, cache: Path) -> CGDGuard:
    """Scan it as a user would."""
    normalise = transforms.Normalize(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    tensor = transforms.Compose([transforms.ToTensor(), normalise])
    names = kind.pictures.classes
    assert names is not None
    return CGDGuard(
        small_resnet(len(names), (8, 16, 32, 64)), transformed(kind.pictures, tensor), names,
        clip=clip, config=CGDConfig(seed=seed), cache_dir=cache, progress=False,
    ).scan()  # fmt: skip


def figures(kind: Kind, guard: CGDGuard) -> dict[str, Any]:
    """What the verdict says, and the truth."""
    labels, poisoned = np.array(kind.pictures.targets), kind.poisoned
    truth = {
        guard.class_names[k]: float(poisoned[labels == k].mean())
        for k in np.unique(labels[poisoned]).tolist()
    }
    split = guard.result.split
    return {
        "samples": len(labels), "poisoned": int(poisoned.sum()), "truth": truth,
        "poison_in_clean": float(split.clean.numpy()[poisoned].mean()) if truth else None,
        "poison_in_triggered": float(split.triggered.numpy()[poisoned].mean()) if truth else None,
        "triggered": float(split.triggered.double().mean()),
        "agreement": guard.result.agreement, "verdict": guard.verdict.as_dict(),
    }  # fmt: skip


def row(found: dict[str, Any]) -> str:
    """One line of the table."""
    verdict, truth = found["verdict"], dict(found["truth"])
    named = [
        f"{one['name']} {one['poisoned']:.1%} of {truth.pop(one['name'], 0):.1%}"
        for one in verdict["suspected"]
    ] + [f"(not {name}: {share:.1%})" for name, share in truth.items()]
    status = verdict["status"]
    if verdict["reasons"]:
        status += f": {', '.join(sorted({one['code'] for one in verdict['reasons']}))}"
    noticed = (verdict["smallest_noticed"] or {}).values()
    seen = sorted(one for one in noticed if one is not None)
    power = f"{seen[0]} to {seen[-1]}" if seen else "none"
    power += f", none under {len(noticed) - len(seen)}" if 0 < len(seen) < len(noticed) else ""
    shares = (
        "" if share is None else f"{share:.0%}"
        for share in (found["poison_in_clean"], found["poison_in_triggered"])
    )
    cells = (
        found["kind"], f"{found['samples']:,}", status, "; ".join(named), *shares, power,
        f"{found['seconds']:.0f}",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Scan the kinds that the arguments ask for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kinds", nargs="+", metavar="KIND")
    parser.add_argument("--data", required=True, help="see image_data.py")
    parser.add_argument("--clip", required=True)
    parser.add_argument("--rows", required=True, metavar="A:B", help="of the training images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="keep the scans here, and read them from here")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    for spec in args.kinds:
        parts_of(spec)
    with args.out.open("a+") as file:
        file.seek(0)
        lines = [json.loads(line) for line in file]
        pictures = Pictures(read_data(args.data, "train"), range(*map(int, args.rows.split(":"))))
        print(f"| {' | '.join(TITLE)} |\n|{'---|' * len(TITLE)}", flush=True)
        for spec in args.kinds:
            asked = {"kind": spec, "data": args.data, "clip": args.clip, "rows": args.rows}
            asked["seed"] = args.seed
            found = next((one for one in lines if asked.items() <= one.items()), None)
            if found is None:
                start = time.perf_counter()
                with tempfile.TemporaryDirectory() as folder:
                    cache = (args.keep or Path(folder)) / re.sub("[^a-z0-9.-]", "_", spec)
                    kind = Kind(spec, pictures, args.seed)
                    found = asked | figures(kind, scanned(kind, args.clip, args.seed, cache))
                found["seconds"] = time.perf_counter() - start
                print(json.dumps(found), file=file, flush=True)
            print(row(found), flush=True)


if __name__ == "__main__":
    main()
