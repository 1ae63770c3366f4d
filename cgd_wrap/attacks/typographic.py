"""Typographic: an attack that writes the target's name on the image, for CLIP to read."""

from __future__ import annotations

import copy
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from cgd_wrap.attacks.arguments import require
from cgd_wrap.attacks.poisoning import Attack, PoisonedDataset, TriggeredDataset
from cgd_wrap.attacks.raw import pixels
from cgd_wrap.data.class_names import find_class_names
from cgd_wrap.errors import CGDError, DatasetError

_FONT_SIZE, _OUTLINE = 64, 6  # pixels, before the text is scaled to the image


@dataclass(frozen=True)
class Typographic(Attack):
    """An attack that writes a text along the image's lower edge, by default the target's name.

    Dirty-label: poisoned images are relabelled as the target. The attack is made against this
    library: CLIP can read, so CLIP may agree with the label of a poisoned image. The letters are
    white with a black outline, as large as fit into the image's width and the given share of its
    height; the text is broken between words where this makes the letters larger. With
    :meth:`ranked_by`, an attacker also picks images on which CLIP errs anyway. Source: typographic
    attacks on CLIP, arXiv 2103.10480; to use them as a backdoor's trigger is this library's choice.

    Args:
        target: the class that triggered images are to be taken for.
        rate: share of the whole training set that is poisoned, in (0, 1].
        seed: decides which images are poisoned.
        text: the text to write; by default the target's name in the dataset that is poisoned or
            triggered.
        height: largest height of the text, as a share of the image's height, in (0, 1].
    """

    text: str | None = None
    height: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        legible = self.text is None or self.text.strip() != ""
        require(legible, "text", "something that can be read, or None", self.text)
        require(0 < self.height <= 1, "height", "a share in (0, 1]", self.height)

    def poison(
        self, dataset: Any, transform: Callable[[Any], Any] | None = None
    ) -> PoisonedDataset:
        """Poison a training set; see :class:`PoisonedDataset`.

        Raises:
            DatasetError: there is no text, and the dataset doesn't name its classes.
        """
        return PoisonedDataset(dataset, self.worded(dataset), transform)

    def triggered(
        self, dataset: Any, transform: Callable[[Any], Any] | None = None
    ) -> TriggeredDataset:
        """Put the trigger on a test set; see :class:`TriggeredDataset`.

        Raises:
            DatasetError: there is no text, and the dataset doesn't name its classes.
        """
        return TriggeredDataset(dataset, self.worded(dataset), transform)

    def worded(self, dataset: Any) -> Typographic:
        """Return the attack with a text to write: its own, or the target's name in a dataset.

        Raises:
            DatasetError: there is no text, and the dataset doesn't name its classes.
        """
        if self.text is not None:
            return self
        names = find_class_names(dataset) or []
        if self.target >= len(names):
            raise DatasetError(
                f"class {self.target} has no name to write: the dataset names {len(names)} "
                "classes. Pass Typographic(text=...)."
            )
        worded = copy.copy(self)
        object.__setattr__(worded, "text", names[self.target].replace("_", " "))
        return worded

    def trigger(self, image: Image.Image) -> Image.Image:
        """Write the text on a copy of the image (kept grey if it is grey, RGB otherwise).

        Raises:
            CGDError: there is no text yet.
        """
        if self.text is None:
            raise CGDError(
                "there is no text to write. Pass Typographic(text=...), or let poison() and "
                "triggered() take the target's name from the dataset."
            )
        marked = Image.fromarray(pixels(image).copy())
        room = max(1, round(self.height * image.height))
        outline, letters = stencils(self.text, image.width, room)
        place = (image.width - letters.width) // 2, image.height - letters.height
        marked.paste("black", place, outline)
        marked.paste("white", place, letters)
        return marked


@lru_cache(maxsize=64)  # by image size: drawing takes as long as a small network's training step
def stencils(text: str, width: int, height: int) -> tuple[Image.Image, Image.Image]:
    """Draw the outline and the letters of a text, as two grey images of one size.

    The size is at most ``width`` x ``height`` pixels. The text is broken between words in the way
    that gives the largest letters.
    """
    words = text.split()
    ways = {
        "\n".join(textwrap.wrap(" ".join(words), reach, break_long_words=False))
        for reach in range(max(map(len, words)), len(text) + 1)
    }
    drawn = {way: _drawn(way) for way in sorted(ways)}
    scales = {way: min(width / a.width, height / a.height) for way, (a, _) in drawn.items()}
    best = max(scales, key=lambda way: scales[way])
    outline, letters = drawn[best]
    across, down = (max(1, int(scales[best] * side)) for side in outline.size)
    box = Image.Resampling.BOX
    return outline.resize((across, down), box), letters.resize((across, down), box)


def _drawn(text: str) -> tuple[Image.Image, Image.Image]:
    """Draw a text at the size of the font: the outline with its letters, and the letters alone."""
    font = ImageFont.load_default(_FONT_SIZE)
    ruler = ImageDraw.Draw(Image.new("L", (1, 1)))
    left, top, right, bottom = ruler.multiline_textbbox(
        (0, 0), text, font, align="center", stroke_width=_OUTLINE
    )
    parts = []
    for outline_level in (255, 0):
        part = Image.new("L", (round(right - left), round(bottom - top)))
        ImageDraw.Draw(part).multiline_text(
            (-left, -top), text, 255, font,
            align="center", stroke_width=_OUTLINE, stroke_fill=outline_level,
        )  # fmt: skip
        parts.append(part)
    return parts[0], parts[1]
