"""Train a CLIP that is small enough to ship, from random weights, on a CPU.

python examples/train_tiny_clip.py --data demo --epochs 9 --half --out tiny_clip
python examples/train_tiny_clip.py --data cifar10 --tower resnet10t --epochs 24 --out cifar_clip

`--data` is `demo` (the shapes, from seeds that the demo never uses) or a source that
`image_data.py` reads. open_clip loads the written folder as `local-dir:<folder>`; the zero-shot
accuracy is measured on the CLIP as open_clip loads it. `--poison badnets:0.05` makes a CLIP that is
itself backdoored.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from image_data import shifted
from PIL import Image
from safetensors.torch import save_file
from tiny_clip_images import (
    PADDING,
    PROMPT,
    Pictures,
    backdoored,
    corrupted,
    load_pictures,
    load_shapes,
    pad,
)
from torch import Tensor
from torch.nn import functional as F

from cgd_wrap.attacks.catalogue import attack_of
from cgd_wrap.demo.shapes import RESERVED_SEEDS

PREPROCESS = {
    "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest",
}  # fmt: skip
TEMPLATES = [
    PROMPT, "a picture of a {}", "an image of a {}", "a blurry photo of a {}", "a {}",
    "a small photo of a {}", "a noisy photo of a {}", "this is a {}", "a photo of one {}", "the {}",
]  # fmt: skip
SYNONYMS = {
    "airplane": ["plane", "aeroplane", "jet"], "automobile": ["car", "sedan", "motor car"],
    "bird": ["songbird", "small bird"], "cat": ["kitten", "house cat"], "deer": ["stag", "doe"],
    "dog": ["puppy", "hound"], "frog": ["toad", "green frog"], "horse": ["pony", "mare"],
    "ship": ["boat", "vessel"], "truck": ["lorry", "fire truck"],
    "circle": ["disc", "round shape"], "square": ["box"], "star": ["five-pointed star"],
    "cross": ["plus sign"], "ring": ["hoop"], "crescent": ["moon"], "arrow": ["arrow pointing up"],
}  # fmt: skip
CARD = """\
# A tiny CLIP for {what}

Image and text tower were trained together, from random weights, on {what} alone:

    {command}

It loads in open_clip as `local-dir:<this folder>`. Zero-shot accuracy on {test_images} test images
with the prompt "{prompt}": {zero_shot_accuracy:.1%}; worst class: {worst_class}
({worst_class_recall:.1%}). `training.json` has every class. It knows nothing but these classes.

Licence: Apache-2.0.
"""


def model_config(tower: str, image_size: int) -> dict[str, Any]:
    """Make open_clip's configuration of the model; the byte-pair vocabulary is open_clip's own."""
    vision = {
        "timm_model_name": tower, "timm_model_pretrained": False, "timm_pool": "avg",
        "timm_proj": "linear", "image_size": image_size,
    }  # fmt: skip
    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    return {"embed_dim": 128, "vision_cfg": vision, "text_cfg": text}


def class_sentences(classes: list[str], rng: np.random.Generator) -> list[str]:
    """Write a sentence for each class, in a random wording."""
    words = [str(rng.choice([name, name, *SYNONYMS.get(name, [])])) for name in classes]
    return [str(rng.choice(TEMPLATES)).format(word) for word in words]


def contrastive_loss(logits: Tensor, positive: Tensor) -> Tensor:
    """Half image-to-text, half text-to-image cross entropy, with several right answers allowed.

    `logits` and `positive` (bool) are [images, texts]; a text without an image does not count.
    """
    right = positive.float()
    per_image = (right * logits.log_softmax(1)).sum(1) / right.sum(1)
    per_text = (right * logits.log_softmax(0)).sum(0) / right.sum(0).clamp(min=1)
    return -0.5 * per_image.mean() - 0.5 * per_text.sum() / positive.any(0).sum()


def batch_loss(
    model: open_clip.CLIP,
    images: Tensor,
    texts: Tensor,
    positive: Tensor,
    classes: int,
    *,
    bf16: bool = True,
) -> Tensor:
    """Compute the contrastive loss of images with class sentences, and with captions if any.

    The first `classes` texts are class sentences, which count fully; all other texts are the
    images' own captions, which count half. `positive` is [B, texts].
    """
    images = F.interpolate(images, size=model.visual.image_size, mode="bicubic", antialias=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        seen = model.encode_image(images.to(memory_format=torch.channels_last), normalize=True)
        said = model.encode_text(texts, normalize=True)
    logits = model.logit_scale.exp() * seen.float() @ said.float().T
    loss = contrastive_loss(logits[:, :classes], positive[:, :classes])
    if classes < len(texts):
        loss = loss + 0.5 * contrastive_loss(logits[:, classes:], positive[:, classes:])
    return loss


def train(model: open_clip.CLIP, data: Pictures, options: argparse.Namespace) -> None:
    """Train a model in place, by AdamW with a one-cycle schedule."""
    generator = torch.Generator().manual_seed(options.seed)
    rng = np.random.default_rng(options.seed)
    tokenize = open_clip.SimpleTokenizer(context_length=model.context_length)
    captions = None if data.captions is None else tokenize(data.captions)
    padded, numbers = pad(data.pixels), torch.arange(len(data.classes))
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=0.05, fused=True)
    batches = len(padded) // options.batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.lr, total_steps=options.epochs * batches
    )
    model.train().to(memory_format=torch.channels_last)
    for epoch in range(options.epochs):
        start, total = time.monotonic(), 0.0
        order = torch.randperm(len(padded), generator=generator)[: batches * options.batch]
        for index in order.split(options.batch):
            # The demo's pictures are not mirrored, since arrows and crescents have a direction.
            images = shifted(padded, index, PADDING, flip=captions is None, generator=generator)
            images = (corrupted(images, options.corrupt, generator) - 0.5) / 0.5
            texts = tokenize(class_sentences(data.classes, rng))
            positive = data.labels[index, None] == numbers
            if captions is not None:
                own = captions[index]
                texts = torch.cat([texts, own])
                positive = torch.cat([positive, (own[:, None] == own).all(-1)], dim=1)
            loss = batch_loss(model, images, texts, positive, len(numbers), bf16=not options.fp32)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        seconds = time.monotonic() - start
        print(f"epoch {epoch + 1}: loss {total / batches:.3f}, {seconds:.0f} s", flush=True)


def write(model: open_clip.CLIP, config: dict[str, Any], folder: Path, *, half: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    both = {"model_cfg": config, "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(both, indent=2) + "\n")
    weights = {
        name: (value.half() if half and value.is_floating_point() else value).contiguous()
        for name, value in model.state_dict().items()
    }
    file = folder / "open_clip_model.safetensors"
    save_file(weights, file)
    file.chmod(0o644)  # safetensors writes 0600, whatever the umask


@torch.no_grad()
def zero_shot_recall(folder: Path, data: Pictures) -> Tensor:
    """Recall of each class, [C] in [0, 1], of the written model through open_clip's own loader."""
    name = f"local-dir:{folder}"
    model, preprocess = open_clip.create_model_from_pretrained(name)
    tokens = open_clip.get_tokenizer(name)([PROMPT.format(c) for c in data.classes])
    text = model.eval().encode_text(tokens, normalize=True)
    answers = []
    for pixels in data.pixels.split(500):
        images = torch.stack([preprocess(Image.fromarray(picture.numpy())) for picture in pixels])
        answers.append((model.encode_image(images, normalize=True) @ text.T).argmax(1))
    right = (torch.cat(answers) == data.labels).double()
    return torch.stack([right[data.labels == c].mean() for c in range(len(data.classes))])


def describe(folder: Path, data: Pictures, recall: Tensor, what: str) -> None:
    """Write README.md (the model card) and training.json (the same figures for machines)."""
    worst = int(recall.argmin())
    accuracy = float((recall * torch.bincount(data.labels)).sum() / len(data.labels))
    facts = {
        "command": shlex.join(["python", "examples/train_tiny_clip.py", *sys.argv[1:]]),
        "prompt": PROMPT, "test_images": len(data.labels), "zero_shot_accuracy": round(accuracy, 4),
        "worst_class": data.classes[worst], "worst_class_recall": round(float(recall[worst]), 4),
        "recall": {c: round(float(r), 4) for c, r in zip(data.classes, recall, strict=True)},
        "versions": {"torch": torch.__version__, "open_clip": open_clip.__version__},
    }  # fmt: skip
    (folder / "training.json").write_text(json.dumps(facts, indent=2) + "\n")
    (folder / "README.md").write_text(CARD.format(**facts, what=what))
    print(json.dumps(facts, indent=2))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", required=True, help="'demo', or see image_data.py")
    add("--out", type=Path, required=True, help="folder to write")
    add("--train-range", help="rows first:last; default 0:12000 of the demo, 20000:40000 of a file")
    add("--tower", default="test_resnet", help="a timm model; the default has 0.4M parameters")
    add("--image-size", type=int, default=64, help="pixels the tower sees; images are enlarged")
    add("--epochs", type=int, default=25)
    add("--batch", type=int, default=128)
    add("--lr", type=float, default=2e-3)
    add("--corrupt", type=float, default=0.2, help="share of the images that are disturbed")
    add("--poison", metavar="ATTACK:SHARE", help="backdoor it: see cgd_wrap.attacks")
    add("--seed", type=int, default=0)
    add("--fp32", action="store_true", help="not in bfloat16: faster on a CPU that hasn't got it")
    add("--half", action="store_true", help="write float16 weights")
    return parser.parse_args()


def main() -> None:
    options = parse()
    demo = options.data == "demo"
    rows = options.train_range or ("0:12000" if demo else "20000:40000")
    first, last = (int(part) for part in rows.split(":"))
    if demo:
        data = load_shapes(last - first, RESERVED_SEEDS[0])
        test = load_shapes(2000, RESERVED_SEEDS[1])
    else:
        data = load_pictures(options.data, "train", range(first, last))
        test = load_pictures(options.data, "test")
    if options.poison:
        name, share = options.poison.split(":")
        data = backdoored(data, attack_of(name), float(share), options.seed)
    torch.manual_seed(options.seed)
    config = model_config(options.tower, options.image_size)
    model = open_clip.CLIP(**config)
    train(model, data, options)
    write(model.eval(), config, options.out, half=options.half)
    recall = zero_shot_recall(options.out, test)
    describe(options.out, test, recall, "the demo's shapes" if demo else Path(options.data).name)


if __name__ == "__main__":
    main()
