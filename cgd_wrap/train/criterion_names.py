"""Names of the criterion's tensors in a checkpoint: those that they have without the guard.

So guarded and unguarded modules can load each other's checkpoints.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from torch import nn


def keep_names(loss: nn.Module) -> None:
    """Leave the prefix of a loss' submodule ``criterion`` out of the names in its state."""
    loss.register_state_dict_post_hook(_leave_out_criterion)
    loss.register_load_state_dict_pre_hook(_put_in_criterion)
    loss.register_load_state_dict_post_hook(_name_faults_without_criterion)


def _leave_out_criterion(loss: Any, state: MutableMapping[str, Any], prefix: str, *_: Any) -> None:
    """After saving: take ``criterion.`` out of the names of the saved tensors."""
    inner = f"{prefix}criterion."
    saved = {name: state.pop(name) for name in list(state) if name.startswith(inner)}
    state.update({prefix + name.removeprefix(inner): value for name, value in saved.items()})


def _put_in_criterion(loss: Any, state: MutableMapping[str, Any], prefix: str, *_: Any) -> None:
    """Before loading: put ``criterion.`` into the names of the given tensors."""
    loss._criterion_prefix, inner = prefix, f"{prefix}criterion."
    given = {name: state.pop(name) for name in list(state) if name.startswith(prefix)}
    state.update({inner + name.removeprefix(prefix): value for name, value in given.items()})


def _name_faults_without_criterion(loss: Any, incompatible: Any) -> None:
    """After loading: take ``criterion.`` out of the names of missing and unexpected tensors."""
    prefix = loss._criterion_prefix  # of the load that has just been
    inner = f"{prefix}criterion."
    for names in incompatible:
        names[:] = [prefix + n.removeprefix(inner) if n.startswith(inner) else n for n in names]
