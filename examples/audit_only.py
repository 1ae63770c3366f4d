"""Find the poison in a data set, without training on it.

    python examples/audit_only.py [--attack blended] [--images FOLDER] [--out runs/audit]

The script scans, writes the report (figure, page, tables: needs the extra "report"), and prints the
most suspicious samples. By default it scans the demo's shapes, some of which are poisoned, and
prints how much of the poison was found; --images takes a folder with a subfolder of images per
class.
"""

from __future__ import annotations

import argparse

import torch
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from cgd_wrap import CGDConfig, CGDGuard
from cgd_wrap.demo.run import ATTACKS, CLIP, TRAIN_SEED
from cgd_wrap.demo.shapes import ShapesDataset
from cgd_wrap.metrics import detection_figures
from cgd_wrap.models.small_resnet import small_resnet

SIDE = 32  # pixels of the suspicious model's input
TRANSFORM = v2.Compose(
    [v2.Resize((SIDE, SIDE)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", help="folder with a subfolder of images per class")
    parser.add_argument("--clip", default=CLIP, help="of open_clip; default: the demo's own")
    parser.add_argument("--attack", choices=list(ATTACKS), default="badnets")
    parser.add_argument("--size", type=int, default=3000, help="shapes")
    parser.add_argument("--out", default="runs/audit")
    options = parser.parse_args()

    if options.images:
        dataset, poisoned = ImageFolder(options.images, TRANSFORM), None
    else:
        attack = ATTACKS[options.attack]
        dataset = attack.poison(ShapesDataset(options.size, TRAIN_SEED), TRANSFORM)
        poisoned = torch.zeros(len(dataset), dtype=torch.bool)
        poisoned[dataset.poisoned] = True

    # Any small network will do: its copy is trained briefly, to see which labels are learned fast.
    network = small_resnet(len(dataset.classes))
    guard = CGDGuard(
        network, dataset, clip=options.clip, cache_dir=f"{options.out}/cache",
        # Small batches, as data are few. No model is trained later, so classes may go missing.
        config=CGDConfig(suspicious_batch_size=64, allow_missing_classes=True),
    ).scan()  # fmt: skip
    files = guard.report(f"{options.out}/report", poisoned=poisoned)

    print("split:", guard.split.counts())
    corner = guard.entropy_map.clip_rank * (1 - guard.entropy_map.suspicious_rank)
    for index in corner.argsort(descending=True)[:10].tolist():
        label = dataset.classes[int(guard.targets[index])]
        truth = "" if poisoned is None else f", {'poisoned' if poisoned[index] else 'not poisoned'}"
        print(f"sample {index}, labelled {label!r}: {corner[index]:.3f}{truth}")
    if poisoned is not None:
        found = detection_figures(guard.entropy_map, guard.split, poisoned)
        print(f"{found.poison_in_triggered:.1%} of the poison is in the triggered split, ", end="")
        print(f"{found.poison_left_in_clean:.1%} is left in the clean one")
    print("report:", files["page"])


if __name__ == "__main__":
    main()
