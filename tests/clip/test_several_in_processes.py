"""Several CLIPs under several processes: each does its share, and one of them warns."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from guarded_run import ByColour, Pictures, network
from launching import call_in_two
from torch import Tensor

from cgd_wrap import CGDConfig, CGDGuard
from cgd_wrap.scan import store


class Reversed(ByColour):
    """Names the opposite of what it sees."""

    def fingerprint(self) -> str:
        return "reversed"

    def logits(self, images: Tensor) -> Tensor:
        return -super().logits(images)


def one_of_two(folder: str) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    messages = list[str]()
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("cgd_wrap").addHandler(handler)
    store.UNIT_SIZE = 128
    guard = CGDGuard(
        network(), Pictures(200, 8), clip=[ByColour(), Reversed()], suspicious=network(),
        config=CGDConfig(allow_missing_classes=True), accelerator=accelerator,
        cache_dir=Path(folder) / "cache", progress=False,
    ).scan()  # fmt: skip
    said = [text for text in messages if text in guard.result.warnings]
    found = {"rank": guard.entropy_map.clip_rank, "said": said, "kept": guard.result.warnings}
    torch.save(found, f"{folder}/{accelerator.process_index}")


def test_both_have_the_scores_and_the_warnings_and_one_logs_them(tmp_path: Path) -> None:
    call_in_two(one_of_two, tmp_path)
    first, second = (torch.load(tmp_path / str(rank)) for rank in range(2))
    assert {p.name for p in (tmp_path / "cache").iterdir()} >= {"clip", "clip-2"}
    assert torch.equal(first["rank"], second["rank"])
    assert first["kept"] == second["kept"]
    assert any("CLIP 2 (Reversed)'s first choice" in text for text in first["kept"])
    assert first["said"] == first["kept"]
    assert second["said"] == []
