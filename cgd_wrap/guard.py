"""CGDGuard: the user's dataset and model on one side, the stages of the defence on the other."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Int
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cgd_wrap.clip.several import Clips, check_clips, names_of
from cgd_wrap.config import CGDConfig
from cgd_wrap.data import find_layout
from cgd_wrap.data.classes import names_and_labels
from cgd_wrap.data.layout import check_same_length
from cgd_wrap.errors import CGDError
from cgd_wrap.functional import Split
from cgd_wrap.processes import Runtime
from cgd_wrap.randomness import kept_rng
from cgd_wrap.scan.pass_options import PassOptions
from cgd_wrap.scan.stored_logits import StoredLogits
from cgd_wrap.scan.subject import Subject
from cgd_wrap.scan.temporary_cache import TemporaryCache
from cgd_wrap.split.announcement import announce, log_warnings
from cgd_wrap.split.entropy_map import EntropyMap
from cgd_wrap.split.estimate import PoisonEstimate
from cgd_wrap.split.result import ScanResult
from cgd_wrap.split.saving import load_result, save_result, saved_config
from cgd_wrap.train.criteria import Criterion
from cgd_wrap.train.dataset import BalancedView, GuardedDataset
from cgd_wrap.train.fit import EpochRecord, fit_guarded
from cgd_wrap.train.loss import CGDLoss
from cgd_wrap.train.protection import Protection
from cgd_wrap.train.sampler import BalancedSampler, EpochIndices
from cgd_wrap.train.stopping import CleanAccuracyStopping

if TYPE_CHECKING:
    from accelerate import Accelerator

    from cgd_wrap.adapters.transformers import CGDCallback

DEFAULT_CLIP = "ViT-B-32/laion2b_s34b_b79k"  # the paper's


class CGDGuard:
    """Guards the training of an image classifier on data that may be poisoned.

    ::

        guard = CGDGuard(model, train_set, class_names=names, cache_dir="runs/cgd").scan()
        train_loader, criterion = guard.protect(train_loader, criterion)

    Args:
        model: the classifier to be trained: image batch -> logits [B, C], or an output with
            ``.logits``.
        dataset: map-style, of ``(image, label, ...)`` tuples or of dicts; not changed.
        class_names: what CLIP reads, in the order of the labels. Default: found from the dataset.
        clip: ``"architecture/pretrained-tag"`` or ``"architecture/checkpoint"`` of open_clip,
            ``"hf-hub:org/repo"``, ``"local-dir:folder"``, or an object with ``logits(images) ->
            [B, C]``, which gets floats [B, 3, H, W] in [0, 1] or what its ``preprocess`` (PIL image
            -> tensor) makes of the images. Of a list, the CLIP that contradicts a label most
            scores it and teaches, so that a backdoored CLIP alone can't vouch for poison.
        config: every number of the defence. Default: the best that we measured; :meth:`scan` then
            decides by the model's accuracy whether it is repaired or trained from scratch.
        accelerator: gives device, precision and processes. Default: torch.distributed's process
            group if there is one, otherwise a single process on a GPU if there is one.
        cache_dir: where the scan is kept; an interrupted scan goes on from there. Default: nowhere.
        clip_dataset: the same samples as raw images, where the dataset gives normalised tensors.
        eval_dataset_view: the same samples as the model is evaluated on them. Default: the dataset.
        suspicious: a model, used as it is, or a checkpoint. Default: the model's fresh copies.
        image_key: position or key of the image in a sample. Default: found.
        label_key: position or key of the label in a sample. Default: found.
        num_workers: of the scan's data loaders.
        progress: draw progress bars.

    Raises:
        TypeError: the dataset is no map-style one of images and labels, or clip no CLIP.
        DatasetError: labels or class names are unusable, or don't fit each other.
        ValueError: an empty list of CLIPs, or several under ``config.reference_scores``.
    """

    def __init__(
        self,
        model: nn.Module,
        dataset: Any,
        class_names: Sequence[str] | None = None,
        *,
        clip: Clips = DEFAULT_CLIP,
        config: CGDConfig | None = None,
        accelerator: Accelerator | None = None,
        cache_dir: str | Path | None = None,
        clip_dataset: Any = None,
        eval_dataset_view: Any = None,
        suspicious: nn.Module | str | Path | None = None,
        image_key: int | str | None = None,
        label_key: int | str | None = None,
        num_workers: int = 0,
        progress: bool = True,
    ) -> None:
        self.model, self.clip, self.suspicious = model, clip, suspicious
        self.config = config or CGDConfig()
        check_clips(clip, self.config)
        self.accelerator, self.num_workers, self.progress = accelerator, num_workers, progress
        self.cache_dir = None if cache_dir is None else Path(cache_dir)
        self.base = dataset
        self.layout = find_layout(dataset, image_key=image_key, label_key=label_key)
        self.class_names, self.targets = names_and_labels(
            dataset, self.layout, class_names, record_bad=self.config.on_bad_sample == "record"
        )
        check_same_length(dataset, clip_dataset=clip_dataset, eval_dataset_view=eval_dataset_view)
        self.clip_dataset, self.eval_dataset_view = clip_dataset, eval_dataset_view
        self._result: ScanResult | None = None
        self._kept: Protection | None = None
        self._view: BalancedView | None = None
        self._logits: tuple[StoredLogits, StoredLogits] | None = None
        self._temporary_cache = TemporaryCache()

    # --- scan -----------------------------------------------------------------------------------

    @kept_rng()
    def scan(self, *, overwrite: bool = False) -> CGDGuard:
        """Score every sample and split the dataset; the guard itself comes back.

        Results in ``cache_dir`` are reused if they were made for the same thing. With several
        processes, each scores its share; all must call this.

        Args:
            overwrite: replace results in ``cache_dir`` that were made for something else.

        Raises:
            CacheMismatchError: ``cache_dir`` was made for something else; the fields are named.
            ClipLoadError: CLIP's trained weights can't be had.
            DatasetError: samples can't be read (BadSampleError names the first, unless
                ``config.on_bad_sample`` allows it), a view is random, a class has no clean sample.
            ScanIncompleteError: another process failed.
            ValueError: the model's outputs don't fit the classes.
        """
        check_clips(self.clip, self.config)  # either may have been changed since
        runtime, subject, config = Runtime.of(self.accelerator), self.subject, self.config
        raw = subject.raw_view()
        shape = subject.input_shape(raw)
        options = PassOptions(
            folder=self.cache_dir or self._temporary_cache.folder(runtime),
            dataset=subject.identity(raw), num_classes=len(self.class_names), config=config,
            runtime=runtime, num_workers=self.num_workers, progress=self.progress,
            overwrite=overwrite,
        )  # fmt: skip
        logits = subject.passes(raw, shape, options)
        result = ScanResult.of(*logits, self.targets, config, self.class_names, names_of(self.clip))
        if config.depends_on_model:
            known = subject.class_knowledge(
                raw, shape, result.split.clean, runtime, seed=config.seed, progress=self.progress
            )
            result = replace(result, class_knowledge=known)
        if runtime.is_main:
            log_warnings(result)
        runtime.barrier()  # the main process may take a temporary cache away from here on
        self._logits = logits
        self._adopt(result)
        return self

    def _adopt(self, result: ScanResult) -> None:
        announce(result, self.class_names, self.config)
        self._result, self._view = result, None

    @property
    def subject(self) -> Subject:
        """What is scanned: data, model and CLIP, and the views of the images."""
        return Subject(
            self.model, self.base, self.layout, self.class_names, self.targets, self.clip,
            self.clip_dataset, self.eval_dataset_view, self.suspicious,
        )  # fmt: skip

    # --- what the scan found --------------------------------------------------------------------

    @property
    def result(self) -> ScanResult:
        """Everything that the scan found; a CGDError before :meth:`scan`."""
        if self._result is None:
            raise CGDError("nothing is known yet: call scan() first")
        return self._result

    @property
    def entropy_map(self) -> EntropyMap:
        """Scores and ranks of each sample."""
        return self.result.entropy_map

    @property
    def split(self) -> Split:
        """Clean, triggered and mixed samples."""
        return self.result.split

    @property
    def suspected_classes(self) -> list[str]:
        """Names of the classes that an attack seems to aim at, by falling evidence."""
        return [self.class_names[found.label] for found in self.poison_estimate.classes]

    @property
    def poison_estimate(self) -> PoisonEstimate:
        """How much seems to be poisoned, and under which labels."""
        return self.result.poison_estimate

    @property
    def logits(self) -> tuple[StoredLogits, StoredLogits]:
        """CLIP's and the suspicious model's logits; a CGDError unless this guard has scanned."""
        if self._logits is None:
            raise CGDError("the logits are kept with the scan: call scan(), with its cache_dir")
        return self._logits

    # --- what training needs --------------------------------------------------------------------

    @property
    def dataset(self) -> GuardedDataset:
        """The user's dataset, same order and length, with tagged labels."""
        return GuardedDataset(self.base, self.layout)

    @property
    def balanced_view(self) -> BalancedView:
        """An epoch's samples as a dataset, for hosts that own their sampler; always this one."""
        if self._view is None:
            self._view = BalancedView(self.dataset, self.epoch_indices())
        return self._view

    def epoch_indices(self, seed: int | None = None) -> EpochIndices:
        """Which samples an epoch holds."""
        indices = self._protection(self.config).epoch_indices
        return indices if seed is None else replace(indices, seed=seed)

    def sampler(self, seed: int = 0) -> BalancedSampler:
        """Yields balanced clean samples and all triggered ones, as indices into the dataset."""
        return BalancedSampler(self.epoch_indices(seed))

    def loss(self, criterion: Criterion | None = None) -> CGDLoss:
        """Wrap a criterion: see :class:`CGDLoss`. Default: cross entropy."""
        return self._protection(self.config).loss(criterion)

    def protect(
        self, loader: DataLoader[Any], criterion: Criterion | None = None, *,
        epochs: int | None = None,
    ) -> tuple[DataLoader[Any], CGDLoss]:  # fmt: skip
        """The loader over the guarded samples, and the criterion wrapped.

        Say how many ``epochs`` the loop runs, so that the last ones win clean accuracy back. See
        :meth:`cgd_wrap.train.protection.Protection.protect` for arguments and errors.
        """
        return self._protection(self.config).protect(loader, criterion, epochs)

    def _protection(self, config: CGDConfig) -> Protection:
        """What training needs under a configuration; kept until result or configuration change."""
        kept = self._kept
        if kept is None or kept.result is not self.result or kept.config != config:
            kept = self._kept = Protection(self.result, config, self.dataset)
        return kept

    def attach(
        self, trainer: Any, *, criterion: Criterion | None = None, tolerance: float | None = None
    ) -> CGDCallback:
        """Guard a Trainer of Hugging Face: :func:`cgd_wrap.adapters.transformers.attach`."""
        from cgd_wrap.adapters.transformers import attach

        return attach(self, trainer, criterion=criterion, tolerance=tolerance)

    def labels(self, targets: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
        """The given labels of tagged targets, for a loop's own training accuracy."""
        return self._protection(self.config).table.decode(targets)

    def stopping(
        self, tolerance: float | None = None, *, loader: DataLoader[Any] | None = None
    ) -> CleanAccuracyStopping | None:
        """The tolerance rule on the held-out part, or on the user's validation loader."""
        protection, view = self._protection(self.config), self.subject.evaluated_images()
        return protection.stopping(tolerance, loader, view, num_workers=self.num_workers)

    def fit(
        self, *, validation_loader: DataLoader[Any] | None = None,
        on_epoch: Callable[[EpochRecord, nn.Module], None] | None = None, **changes: Any,
    ) -> list[EpochRecord]:  # fmt: skip
        """Train the model in place with the guarded loss; a record per epoch comes back.

        Args:
            validation_loader: for the stopping rule; default: the held-out part.
            on_epoch: called after each epoch, on every process, with its record and the model.
            changes: settings of the training, such as ``epochs=4``.

        Raises:
            ValueError: a change concerns the scan or the split, which are made already.
        """
        config = self.config.for_training(changes, has_accelerator=self.accelerator is not None)
        return fit_guarded(
            self.model, self._protection(config), self.accelerator,
            stopping=self.stopping(config.tolerance, loader=validation_loader),
            num_workers=self.num_workers, on_epoch=on_epoch, progress=self.progress,
        )  # fmt: skip

    def drill(self, attack: Any = "badnets", **options: Any) -> Any:
        """Plant a known backdoor on copies of this data set: :func:`cgd_wrap.drill.drill`."""
        # By name: the drill is an experiment on guards, and stands above them.
        return importlib.import_module("cgd_wrap.drill").drill(self, attack, **options)

    # --- what stays -----------------------------------------------------------------------------

    @kept_rng()
    def report(self, folder: str | Path, **details: Any) -> dict[str, Path]:
        """Write figure, HTML page, CSV and JSON into a folder; needs the extra ``report``.

        ``details`` are ``poisoned``, ``figures``, ``stage_seconds`` and ``title`` of a
        :class:`cgd_wrap.report.Report`.
        """
        from cgd_wrap.report import Report, write_report

        return write_report(Report.of(self.result, self.subject, self.config, **details), folder)

    def export(self, folder: str | Path) -> dict[str, Path]:
        """Write what other tools of CGD read: :func:`cgd_wrap.report.export_for_reference`."""
        from cgd_wrap.report import export_for_reference

        return export_for_reference(self.result, self.logits, Path(folder), seed=self.config.seed)

    def save(self, folder: str | Path) -> None:
        """Keep the scan's outcome, without models and images, for :meth:`load`."""
        save_result(self.result, Path(folder), self.subject, self.config)

    @classmethod
    def load(cls, folder: str | Path, model: nn.Module, dataset: Any, **options: Any) -> CGDGuard:
        """A guard of the same data that goes on from what :meth:`save` wrote.

        ``options`` are further arguments of the constructor; ``config`` defaults to the saved one.

        Raises:
            CacheMismatchError: the folder belongs to other data, class names, thresholds or
                calibration; these are named.
        """
        options.setdefault("config", saved_config(Path(folder)))
        guard = cls(model, dataset, **options)
        guard._adopt(load_result(Path(folder), guard.subject, guard.config))
        return guard
