"""Accelerate: scan and training on 1, 2 and 3 processes, however they are launched.

What is checked is in ``accelerated_run.py``: draws, the plain loop's weights, the split, resuming.
"""

from __future__ import annotations

import re
from pathlib import Path

import accelerated_run
import pytest
import yaml
from launching import free_port, run_python, start_python

SCRIPT = str(Path(__file__).with_name("accelerated_run.py"))
CONFIGURATIONS = Path(__file__).parents[2] / "integrations" / "accelerate"


def check_all_processes_passed(printed: str, processes: int) -> None:
    found = re.findall(r"process (\d) of (\d): all cases", printed)
    assert sorted(found) == [(str(rank), str(processes)) for rank in range(processes)]


# An accelerator of another test's would decide on this one's precision and device.
@pytest.fixture
def _fresh_state():
    from accelerate.state import AcceleratorState, GradientState

    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.mark.slow  # three processes do the same below
@pytest.mark.usefixtures("_fresh_state")
def test_every_case_on_one_process(capsys):
    accelerated_run.main()
    check_all_processes_passed(capsys.readouterr().out, 1)


@pytest.mark.parametrize(
    "processes",
    [pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow), 3],
)
def test_every_case_under_torchrun(processes):
    check_all_processes_passed(run_python(SCRIPT, processes=processes), processes)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_every_case_under_the_debug_launcher(processes):
    # In a process of its own: it forks, and a fork of a process that has used its OpenMP threads
    # waits for them for ever.
    check_all_processes_passed(run_python(SCRIPT, str(processes)), processes)


# --- launch configurations ----------------------------------------------------------------------

PROBE = """
from accelerate import Accelerator
found = Accelerator(cpu=True)
place = f"process {found.process_index} of {found.num_processes}"
print(f"{place}: {found.mixed_precision}", flush=True)
"""
LAUNCH = ("-m", "accelerate.commands.accelerate_cli", "launch")


def command_in(path: Path) -> list[str]:
    """What the comment on top of a configuration says to type."""
    comment = [line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#")]
    typed = " ".join(comment).replace("\\ ", "")
    return typed[typed.index("accelerate launch") :].split()[2:]


@pytest.mark.parametrize(
    ("name", "processes"),
    [pytest.param("one_gpu", 1, marks=pytest.mark.slow), ("several_gpus", 2)],
)
def test_a_configuration_starts_as_many_processes_as_it_says(name, processes, tmp_path):
    (tmp_path / "SCRIPT").write_text(PROBE)
    typed = command_in(CONFIGURATIONS / f"{name}.yaml")
    assert typed[:2] == ["--config_file", f"integrations/accelerate/{name}.yaml"]
    options = [*typed[2:-1], "--main_process_port", free_port(), str(tmp_path / "SCRIPT")]
    printed = run_python(*LAUNCH, "--config_file", str(CONFIGURATIONS / f"{name}.yaml"), *options)
    expected = [f"process {rank} of {processes}: bf16" for rank in range(processes)]
    # Not by lines: the processes write text and line end apart, and over each other.
    assert sorted(re.findall(r"process \d of \d: \w+?\d+", printed)) == expected


@pytest.mark.slow
def test_two_nodes_find_each_other(tmp_path):
    (tmp_path / "SCRIPT").write_text(PROBE)
    path, port = CONFIGURATIONS / "several_nodes.yaml", free_port()
    options = ["--num_processes", "2", "--main_process_port", port, "--main_process_ip"]
    nodes = [
        start_python(
            *LAUNCH, "--config_file", str(path), "--machine_rank", str(rank),
            *options, "127.0.0.1", str(tmp_path / "SCRIPT"),
        )
        for rank in range(2)
    ]  # fmt: skip
    printed = [node.communicate(timeout=120)[0].strip() for node in nodes]
    assert printed == [f"process {rank} of 2: bf16" for rank in range(2)]


@pytest.mark.parametrize("path", sorted(CONFIGURATIONS.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_knows_every_setting(path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))  # raises for unknown settings
    written = yaml.safe_load(path.read_text())
    assert {name: getattr(config, name) for name in written} == {
        **written, "compute_environment": config.compute_environment,
        "distributed_type": config.distributed_type,
    }  # fmt: skip
    assert str(getattr(config.distributed_type, "value", config.distributed_type)) == str(
        written["distributed_type"]
    )
