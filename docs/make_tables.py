"""Write settings.md and calibration.md, which are made from the code.

python docs/make_tables.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cgd_wrap.config.calibration import PARTS, Threshold, thresholds
from cgd_wrap.config.setting import STAGES, TRAINING, UNKNOWN, Setting
from cgd_wrap.config.settings import SETTINGS

FOLDER = Path(__file__).parent
MADE = "<!-- Made by docs/make_tables.py from the code: change it there. -->"


CALIBRATION = """\
Some numbers of the defence can't be derived: they were chosen by looking at data. They are the
fields of `cgd_wrap.config.calibration.Calibration`. *Honest* is the highest figure seen in an
honest class, *poisoned* the lowest seen in a class whose poison the threshold finds.
`tests/config/test_calibration.py` computes both anew from the scans in `tests/stored_scans`, which
`examples/store_scan.py` made: CIFAR-10, its first 12,000 training images, clean (under right and
under swapped class names, and with a sloppy class) and under attacks, by a tiny CLIP of 74.2%
zero-shot accuracy (on the 10,000 test images) that was trained on rows 20,000 to 40,000. Each file
holds its command; the CLIP's is

    python examples/train_tiny_clip.py --data DATA --train-range 20000:40000 \\
        --tower resnet10t --image-size 64 --epochs 8 --batch 256 --corrupt 0.3 --half --fp32 \\
        --out cifar_clip

A scan that was saved under other thresholds is refused when it is loaded, by name."""


def settings_page() -> str:
    """Every setting of ``CGDConfig``, stage by stage."""
    lines = [
        "# Settings", "", MADE, "",
        "Every field of `CGDConfig`, by the stage that reads it. `CGDConfig()` holds the defaults,",
        "`CGDConfig.paper()` the numbers of the authors' code (those in the last column, and the",
        "default where there is none). `guard.fit(...)` takes the settings of the stages marked",
        "with *fit*: the others concern the scan and the split, which are made by then.", "",
        "Where the default is *by model*, `guard.scan()` decides: the first number is for a model",
        "that knows the classes and is repaired, the second for one that is trained from scratch.",
    ]  # fmt: skip
    for stage, title in STAGES.items():
        lines += ["", f"## {title}{' (*fit*)' if stage in TRAINING else ''}", ""]
        lines += header("setting", "default", "allowed", "meaning", "paper")
        lines += [row_of(name, one) for name, one in SETTINGS.items() if one.stage == stage]
    lines += [
        "",
        "## Calibration",
        "",
        "`calibration` holds the thresholds of [calibration.md](calibration.md).",
    ]
    return "\n".join(lines) + "\n"


def header(*titles: str) -> list[str]:
    """The first two lines of a table."""
    return [f"| {' | '.join(titles)} |", f"|{' --- |' * len(titles)}"]


def row_of(name: str, one: Setting) -> str:
    """One setting as a row of a table."""
    default = f"`{one.default!r}`"
    if one.repaired is not None:
        default = f"by model: `{one.repaired:g}` / `{one.from_scratch:g}`"
    paper = "" if one.paper is UNKNOWN else f"`{one.paper!r}`"
    paper += " (code)" if paper and one.source != "paper" else ""
    symbol = f" ({one.symbol})" if one.symbol else ""
    return f"| `{name}`{symbol} | {default} | {one.expected} | {one.text} | {paper} |"


def calibration_page() -> str:
    """Every threshold that was chosen by looking at data, part by part."""
    lines = ["# Calibration", "", MADE, "", CALIBRATION]
    for part, title in PARTS.items():
        lines += ["", f"## {title}", ""]
        lines += header("threshold", "value", "unit", "honest", "poisoned", "meaning")
        lines += [threshold_row(n, one) for n, one in thresholds().items() if one.part == part]
    return "\n".join(lines) + "\n"


def threshold_row(name: str, one: Threshold) -> str:
    """One threshold as a row of a table."""
    seen = ("" if figure is None else f"{figure:g}" for figure in (one.honest, one.poisoned))
    return f"| `{name}` | {one.value:.4g} | {one.unit} | {' | '.join(seen)} | {one.text} |"


def pages() -> Iterator[tuple[Path, str]]:
    """Each page that is made from the code, with its text."""
    yield FOLDER / "settings.md", settings_page()
    yield FOLDER / "calibration.md", calibration_page()


if __name__ == "__main__":
    for path, text in pages():
        path.write_text(text, encoding="utf-8")
        print(path)
