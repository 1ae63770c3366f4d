"""Steps of model and loss under torch.compile, and what was seen of them.

Apart from the tests, whose checks of annotations torch.compile can't look through.

python compiled_steps.py FILE
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from launching import leave
from linear_training import ORDERS, WEIGHT, inputs, linear, loss_of
from timm.loss import LabelSmoothingCrossEntropy
from tiny_data import TABLE_CLASSES
from torch import Tensor, nn

from cgd_wrap import CGDLoss
from cgd_wrap.train.tags import TAG

PLAIN = torch.arange(16) % TABLE_CLASSES
CRITERIA: dict[str, Any] = {
    "cross entropy": None,
    "weighted and smoothed": nn.CrossEntropyLoss(WEIGHT, label_smoothing=0.1),
    "sum": nn.CrossEntropyLoss(reduction="sum"),
    "reduction attribute": nn.MultiMarginLoss(weight=WEIGHT),
    "partial": functools.partial(F.cross_entropy, weight=WEIGHT),
    "one by one": LabelSmoothingCrossEntropy(0.1),
}
CHANGES: dict[str, dict[str, Any]] = {
    "default": {}, "strict": {"strict": True}, "batch": {"normalise_by": "batch"},
    "no guidance": {"guidance_weight": 0.0}, "autocast": {},
}  # fmt: skip
# Each criterion, and each change under a criterion that has everything.
CASES = [(name, "default") for name in CRITERIA] + [
    ("weighted and smoothed", kind) for kind in CHANGES if kind != "default"
]
EVALUATED = ("cross entropy", "weighted and smoothed", "one by one")  # one of each kind
Step = Callable[[Tensor, Tensor], Tensor]


def compiled(step: Step) -> tuple[Step, list[Any]]:
    """A compiled step that may not break into several graphs, and its graphs."""
    graphs: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    return torch.compile(step, backend=backend, fullgraph=True), graphs


def step_of(loss: CGDLoss, net: nn.Module, *, autocast: bool = False) -> Step:
    def step(batch: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            outputs = net(batch)
        return loss(outputs, targets)

    return step


def seen_by(loss: CGDLoss, net: nn.Module, step: Step, targets: Tensor) -> list[Tensor]:
    """Loss, gradient and parts of the loss of a step."""
    found = step(inputs(16), targets)
    assert loss.last_terms is not None
    return [found.detach(), *torch.autograd.grad(found, net.weight), *loss.last_terms]


def training(criterion: Any, kind: str) -> dict[str, Any]:
    loss, eager, net = (
        loss_of(criterion, **CHANGES[kind]),
        loss_of(criterion, **CHANGES[kind]),
        linear(),
    )
    step, graphs = compiled(step_of(loss, net, autocast=kind == "autocast"))
    plain = step_of(eager, net, autocast=kind == "autocast")
    batches = [torch.tensor(index) + TAG for index in ORDERS.values()] * 2
    return {
        "found": [seen_by(loss, net, step, targets) for targets in batches],
        "expected": [seen_by(eager, net, plain, targets) for targets in batches],
        "graphs": len(graphs),
    }


@torch.no_grad()
def evaluation(criterion: Any) -> dict[str, Any]:
    loss, net = loss_of(criterion).eval(), linear()
    step, graphs = compiled(step_of(loss, net))
    tags, outputs = torch.tensor(ORDERS["dealt"]) + TAG, net(inputs(16))
    return {
        "plain": step(inputs(16), PLAIN), "criterion": loss.criterion(outputs, PLAIN),
        "tagged": step(inputs(16), tags), "guarded": loss(outputs, tags), "graphs": len(graphs),
    }  # fmt: skip


def refused(targets: Tensor, **changes: Any) -> str:
    step, _ = compiled(step_of(loss_of(**changes), linear()))
    step(inputs(16), PLAIN + TAG)
    try:
        step(inputs(16), targets)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def main(file: str) -> None:
    untagged, net = loss_of(CRITERIA["weighted and smoothed"]), linear()
    step, _ = compiled(step_of(untagged, net))
    found = {
        "training": {(name, kind): training(CRITERIA[name], kind) for name, kind in CASES},
        "evaluation": {name: evaluation(CRITERIA[name]) for name in EVALUATED},
        "untagged": step(inputs(16), PLAIN).detach(),
        "criterion": untagged.criterion(net(inputs(16)), PLAIN).detach(),
        "strict": refused(PLAIN, strict=True),
        "soft": refused(torch.full((16, TABLE_CLASSES), 0.2)),
    }  # fmt: skip
    torch.save(found, file)


if __name__ == "__main__":
    main(sys.argv[1])
    leave()
