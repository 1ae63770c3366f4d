"""A judge of your own in CLIP's place: any object with ``logits(images) -> [B, C]``.

    python examples/own_clip.py

The judge of this example is an open_clip model with several prompts of our own per class. A judge
could as well be a classifier trained on data that you trust, or a service. The data are the demo's
shapes, a tenth of them with a BadNets trigger.
"""

from __future__ import annotations

import argparse

import open_clip
import torch
from torch import Tensor, nn

from cgd_wrap import CGDConfig, CGDGuard
from cgd_wrap.demo.run import ATTACKS, CLIP, TRAIN_SEED, to_tensor
from cgd_wrap.demo.shapes import ShapesDataset
from cgd_wrap.metrics import detection_figures
from cgd_wrap.models.small_resnet import small_resnet

PROMPTS = ("a photo of a {}", "a small {}", "a large {}", "a red {}", "a blue {}")


class OwnClip(nn.Module):
    """Scores an image by its cosine with the mean text of each class, times the model's scale.

    The weights, settings and code of a judge are part of the scan's fingerprint, so that a scan by
    another judge is not used again. A method ``fingerprint()`` may stand for class and contents.
    """

    def __init__(self, source: str, class_names: list[str]) -> None:
        super().__init__()
        # The guard calls preprocess on each raw PIL image; without it, images are floats in [0, 1].
        self.clip, self.preprocess = open_clip.create_model_from_pretrained(source)
        tokenizer = open_clip.get_tokenizer(source)
        with torch.no_grad():
            texts = [
                self.clip.encode_text(tokenizer([p.format(name) for p in PROMPTS]), normalize=True)
                for name in class_names
            ]
        means = torch.stack([each.mean(dim=0) for each in texts])
        self.register_buffer("texts", nn.functional.normalize(means, dim=1))

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Score images: [B, 3, H, W] -> [B, C], with classes in the order of the labels."""
        features = self.clip.eval().encode_image(images, normalize=True)
        return self.clip.logit_scale.exp() * features @ self.texts.T


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clip", default=CLIP, help="of open_clip; default: the demo's own")
    parser.add_argument("--size", type=int, default=3000, help="training images")
    options = parser.parse_args()

    train_set = ATTACKS["badnets"].poison(ShapesDataset(options.size, TRAIN_SEED), to_tensor)
    judge = OwnClip(options.clip, train_set.classes)
    model = small_resnet(len(train_set.classes), (8, 16, 32, 64))
    config = CGDConfig(suspicious_batch_size=64)  # small batches: data are few
    guard = CGDGuard(model, train_set, clip=judge, config=config).scan()

    poisoned = torch.zeros(len(train_set), dtype=torch.bool)
    poisoned[train_set.poisoned] = True
    found = detection_figures(guard.entropy_map, guard.split, poisoned)
    print(f"the judge agrees with {guard.result.agreement:.1%} of the labels")
    print(f"{found.poison_in_triggered:.1%} of the poison is in the triggered split, ", end="")
    print(f"{found.poison_left_in_clean:.1%} is left in the clean one")


if __name__ == "__main__":
    main()
