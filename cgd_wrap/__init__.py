"""cgd-wrap: makes an image-classifier training loop safe against backdoored training data.

::

    from cgd_wrap import CGDGuard

    guard = CGDGuard(model, train_set, class_names=names, cache_dir="runs/cgd").scan()
    train_loader, criterion = guard.protect(train_loader, criterion)
"""

from __future__ import annotations

from cgd_wrap import functional, moved
from cgd_wrap.config import CGDConfig
from cgd_wrap.errors import (
    BadSampleError,
    CacheMismatchError,
    CGDError,
    ClipLoadError,
    DatasetError,
    MissingExtraError,
    ScanIncompleteError,
    StoredFileError,
    TrainingDivergedError,
)
from cgd_wrap.functional import Split
from cgd_wrap.guard import CGDGuard
from cgd_wrap.split.entropy_map import EntropyMap
from cgd_wrap.split.verdict import Verdict
from cgd_wrap.train.loss import CGDLoss
from cgd_wrap.train.sampler import BalancedSampler

moved.answer_old_imports()

__version__ = "0.1.0"
__all__ = [
    "BadSampleError",
    "BalancedSampler",
    "CGDConfig",
    "CGDError",
    "CGDGuard",
    "CGDLoss",
    "CacheMismatchError",
    "ClipLoadError",
    "DatasetError",
    "EntropyMap",
    "MissingExtraError",
    "ScanIncompleteError",
    "Split",
    "StoredFileError",
    "TrainingDivergedError",
    "Verdict",
    "functional",
]
