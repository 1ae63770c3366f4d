"""CLIPs with random weights, small enough to be made anew for a test."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file

NAMES = ["red square", "blue circle", "green {x}"]
VIT = {"image_size": 32, "layers": 1, "width": 32, "patch_size": 8, "head_width": 16}
TIMM = {
    "timm_model_name": "test_resnet",
    "timm_model_pretrained": False,
    "timm_pool": "avg",
    "timm_proj": "linear",
    "image_size": 32,
}
PREPROCESS = {
    "mean": [0.4, 0.5, 0.6],
    "std": [0.2, 0.3, 0.4],
    "interpolation": "bilinear",
    "resize_mode": "squash",
}


def config(vision: dict[str, object], **more: object) -> dict[str, object]:
    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    return {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text, **more}


def save_model(folder: Path, model_config: dict[str, object], *, seed: int = 0) -> torch.nn.Module:
    folder.mkdir(parents=True)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.CLIP(**json.loads(json.dumps(model_config)))
        model.logit_scale.data.fill_(2.5)
        if model.logit_bias is not None:
            model.logit_bias.data.fill_(-3.0)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_()
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    torch.save(state, folder.parent / "weights.pt")
    text = json.dumps({"model_cfg": model_config, "preprocess_cfg": PREPROCESS})
    (folder / "open_clip_config.json").write_text(text)
    return model.eval()
