"""One table: the same cases over all hosts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hosts import BATCH, HOSTS, SEED, Run, clean_data, run_in

from cgd_wrap.train.tags import is_tagged, tagged_index

pytestmark = [
    pytest.mark.parametrize("host", list(HOSTS)),
    pytest.mark.filterwarnings(
        "ignore:.*does not have many workers",  # Lightning's advice, for any loader
        "ignore:The number of training batches",
        "ignore:You defined a `validation_step` but have no",
        "ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning",
    ),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Run]:
    """A guarded run of two epochs in each host, without exposures, so that reads are draws."""
    return {host: run_in(host, tmp_path_factory.mktemp(host), exposure_rate=0.0) for host in HOSTS}


@pytest.fixture(scope="module")
def exposed(tmp_path_factory) -> dict[str, Run]:
    """A guarded run of one epoch in each host, as it is by default; all from the same streams."""
    found = {}
    for host in HOSTS:
        torch.manual_seed(11)
        found[host] = run_in(host, tmp_path_factory.mktemp(host), epochs=1)
    return found


def order_of(run: Run) -> torch.Tensor:
    """What the index map says of the whole batches of all epochs."""
    epochs = [run.guard.epoch_indices(SEED).shuffled(epoch) for epoch in range(run.epochs)]
    return torch.cat([order[: len(order) // BATCH * BATCH] for order in epochs])


def test_each_sample_is_drawn_as_often_as_the_index_map_says(host, runs):
    expected = torch.bincount(order_of(runs[host]), minlength=len(runs[host].data))
    assert int(expected.max()) > 2  # oversampled
    assert torch.equal(runs[host].data.reads, expected)


def test_tagged_targets_arrive_in_the_samplers_order(host, runs):
    targets = torch.cat(runs[host].targets)
    assert bool(is_tagged(targets).all())
    assert torch.equal(tagged_index(targets), order_of(runs[host]))
    assert runs[host].untagged == 0


def test_losses_and_weights_are_those_of_the_plain_loop(host, runs, exposed, tmp_path):
    assert runs[host].losses == pytest.approx(runs["plain"].losses, rel=1e-5, abs=1e-5)
    found, plain = exposed[host], exposed["plain"]
    if host == "plain":  # not with itself
        plain = run_in(host, tmp_path, epochs=1)
    assert found.losses == pytest.approx(plain.losses, rel=1e-5, abs=1e-5)
    assert found.losses != pytest.approx(runs[host].losses[: len(found.losses)], rel=1e-3)
    pairs = zip(found.network.parameters(), plain.network.parameters(), strict=True)
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_evaluation_is_untouched(host, runs):
    images, labels = clean_data(60, 240)
    with torch.no_grad():
        expected = F.cross_entropy(runs[host].network.eval()(images), labels)
    assert runs[host].evaluation_loss == pytest.approx(float(expected), rel=1e-5)


def test_the_users_random_streams_are_untouched(host, exposed):
    start, before, installed, trained = exposed[host].streams
    if host != "transformers":  # whose Trainer seeds the streams, and draws from them in training:
        assert start == before  # test_transformers compares with an unguarded run's
        assert before == trained
    assert before == installed


def success_and_accuracy(run: Run) -> tuple[float, float]:
    """Share of triggered images that get the target's label, and of clean ones that get theirs."""
    images, labels = clean_data(60, 240)
    triggered = images.clone()
    triggered[:, :, :3, :3] = 1.0
    with torch.no_grad():
        called = run.network.eval()(triggered[labels != 0]).argmax(1)
        right = run.network(images).argmax(1) == labels
    return float((called == 0).float().mean()), float(right.float().mean())


@pytest.fixture(scope="module")
def unguarded(tmp_path_factory) -> tuple[float, float]:
    """Of the plain loop, whose losses and weights the hosts have, as is tested above."""
    run = run_in("plain", tmp_path_factory.mktemp("unguarded"), guarded=False, epochs=12)
    return success_and_accuracy(run)


def test_the_guarded_run_defends(host, unguarded, tmp_path):
    success, accuracy = success_and_accuracy(run_in(host, tmp_path, epochs=12))
    assert unguarded[0] > 0.5
    assert success < 0.1
    assert accuracy > unguarded[1] - 0.05
