"""CGDGuard, the library's entry: runs the defence on the user's dataset, CLIP and model."""

from __future__ import annotations

import copy
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
from cgd_wrap.data.classes import read_labelling
from cgd_wrap.data.layout import check_same_length
from cgd_wrap.data.unchanged import Seen
from cgd_wrap.data.workers import Workers
from cgd_wrap.errors import CGDError
from cgd_wrap.functional import Split
from cgd_wrap.processes import Runtime
from cgd_wrap.randomness import undisturbed
from cgd_wrap.scan.pass_options import PassOptions
from cgd_wrap.scan.passes import run_passes
from cgd_wrap.scan.stored_logits import StoredLogits
from cgd_wrap.scan.subject import Subject
from cgd_wrap.scan.temporary_cache import TemporaryCache
from cgd_wrap.split.announcement import announce, log_warnings
from cgd_wrap.split.entropy_map import EntropyMap
from cgd_wrap.split.estimate import PoisonEstimate
from cgd_wrap.split.result import ScanResult
from cgd_wrap.split.saving import load_result, save_result, saved_config
from cgd_wrap.split.verdict import Verdict
from cgd_wrap.train.criteria import Criterion
from cgd_wrap.train.dataset import BalancedView, GuardedDataset
from cgd_wrap.train.epoch_indices import EpochIndices
from cgd_wrap.train.epochs import EpochRecord
from cgd_wrap.train.fit import fit_guarded
from cgd_wrap.train.loss import CGDLoss
from cgd_wrap.train.protection import Protection
from cgd_wrap.train.sampler import BalancedSampler
from cgd_wrap.train.stopping import CleanAccuracyStopping

if TYPE_CHECKING:
    from accelerate import Accelerator

    from cgd_wrap.adapters.transformers import CGDCallback

DEFAULT_CLIP = "ViT-B-32/laion2b_s34b_b79k"  # the paper's CLIP


class CGDGuard:
    """Guards the training of an image classifier on data that may be poisoned.

    ::

        guard = CGDGuard(model, train_set, class_names=names, cache_dir="runs/cgd").scan()
        train_loader, criterion = guard.protect(train_loader, criterion)

    Args:
        model: the classifier to be trained: image batch -> logits [B, C], or output with .logits.
        dataset: map-style, of ``(image, label, ...)`` tuples or of dicts; not changed.
        class_names: names for CLIP, in the order of the labels. Default: found from the dataset.
        clip: ``"architecture/pretrained-tag"`` or ``"architecture/checkpoint"`` of open_clip,
            ``"hf-hub:org/repo"``, ``"local-dir:folder"``, or an object with ``logits(images) ->
            [B, C]``, which gets floats [B, 3, H, W] in [0, 1], or the tensors of the object's
            ``preprocess`` (PIL image -> tensor). Of a list, the CLIP that contradicts a label most
            scores and guides the sample, so that no backdoored CLIP alone can vouch for poison.
        config: every number of the defence. Default: our best for fresh models, or ones to repair.
        accelerator: gives device, precision, processes. Default: torch.distributed's, or just one.
        cache_dir: folder that keeps the scan, and lets an interrupted scan go on. Default: none.
        clip_dataset: the dataset's samples as raw images, if the dataset has normalised tensors.
        eval_dataset_view: samples as the model is evaluated on them. Default: those of the dataset.
        suspicious: suspicious model, used as it is; a checkpoint; or "copy". Default: by config.
        image_key: position or key of the image in a sample. Default: found.
        label_key: position or key of the label in a sample. Default: found.
        num_workers: processes that read samples. With 0, a sample that crashes ends this process.
        progress: draw progress bars.

    Raises:
        TypeError: the dataset isn't map-style, of images and labels; or ``clip`` is no CLIP.
        DatasetError: labels or class names are unusable, or don't fit each other.
        ValueError: ``clip`` is an empty list, or several under ``config.reference_scores``.
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
        self.base, self.cache_dir = dataset, None if cache_dir is None else Path(cache_dir)
        self.layout, self.class_names, self.targets, self.unreadable = read_labelling(
            dataset, class_names, image_key, label_key, self.config, num_workers, progress
        )
        check_same_length(dataset, clip_dataset=clip_dataset, eval_dataset_view=eval_dataset_view)
        self.clip_dataset, self.eval_dataset_view = clip_dataset, eval_dataset_view
        self._result: ScanResult | None = None
        self._kept: Protection | None = None
        self._view: BalancedView | None = None
        self._logits: tuple[StoredLogits, StoredLogits] | None = None
        self._temporary_cache = TemporaryCache()

    # --- scan -----------------------------------------------------------------------------------

    @undisturbed()
    def scan(self, *, overwrite: bool = False) -> CGDGuard:
        """Score every sample, split the dataset, and return the guard itself.

        Results in ``cache_dir`` are used again if they were made for the same data and settings.
        With several processes, each scores its share, and every process must call this method.

        Args:
            overwrite: replace results in ``cache_dir`` that were made for other data or settings.

        Raises:
            CacheMismatchError: ``cache_dir`` is of other data, settings or versions, named here.
            ClipLoadError: CLIP's trained weights can't be had.
            DatasetError: samples can't be read (BadSampleError names the first, unless
                ``config.on_bad_sample`` allows it), a view is random, a class has no clean sample.
            ScanIncompleteError, StoredFileError: another process failed; ``cache_dir`` is unusable.
            ValueError: the model's outputs don't fit the classes.
        """
        check_clips(self.clip, self.config)  # the user may have changed either attribute
        runtime, subject, config = Runtime.of(self.accelerator), self.subject, self.config
        raw = subject.raw_view()
        inputs = subject.inputs(raw)
        options = PassOptions(
            folder=self.cache_dir or self._temporary_cache.folder(runtime), config=config,
            is_kept=self.cache_dir is not None, dataset=subject.identity(raw), overwrite=overwrite,
            num_classes=len(self.class_names), runtime=runtime, workers=subject.workers,
            progress=self.progress, unreadable=self.unreadable,
        )  # fmt: skip
        found = run_passes(subject, raw, inputs, options)
        result = ScanResult.of(found, self.targets, config, self.class_names, names_of(self.clip))
        known = subject.class_knowledge(raw, inputs, result.split.clean, options)
        result = replace(result, class_knowledge=known)
        if runtime.is_main:
            log_warnings(result)
        runtime.barrier()  # from here on, the main process may delete a temporary cache
        self._logits = found.clip, found.suspicious
        self._adopt(result)
        return self

    def _adopt(self, result: ScanResult) -> None:
        announce(result, self.class_names, self.config)
        self._result, self._view, self._kept = result, None, None
        self._seen = Seen.of(self.targets, self.subject.raw_view(), result.bad)

    @property
    def subject(self) -> Subject:
        """The data, model and CLIP that a scan works on, and the views of the images."""
        return Subject(
            self.model, self.base, self.layout, self.class_names, self.targets, self.clip,
            self.clip_dataset, self.eval_dataset_view, self.suspicious,
            self.unreadable, Workers(self.num_workers, self.config.sample_timeout),
        )  # fmt: skip

    # --- what the scan found --------------------------------------------------------------------

    @property
    def result(self) -> ScanResult:
        """Everything that the scan found; raises a CGDError before :meth:`scan`."""
        if self._result is None:
            raise CGDError("nothing is known yet: call scan() first")
        return self._result

    @property
    def entropy_map(self) -> EntropyMap:
        """Scores and ranks of each sample."""
        return self.result.entropy_map

    @property
    def split(self) -> Split:
        """The split of the dataset into clean, triggered and mixed samples."""
        return self.result.split

    @property
    def verdict(self) -> Verdict:
        """The scan in three words: "suspected", "nothing found", or "undecided" and why."""
        return self.result.verdict

    @property
    def suspected_classes(self) -> list[str]:
        """Names of the classes that an attack seems to aim at, by falling evidence."""
        return [self.class_names[found.label] for found in self.poison_estimate.classes]

    @property
    def poison_estimate(self) -> PoisonEstimate:
        """Estimate of how many samples are poisoned, and under which labels."""
        return self.result.poison_estimate

    @property
    def logits(self) -> tuple[StoredLogits, StoredLogits]:
        """Logits of CLIP and of the suspicious model; raises a CGDError before :meth:`scan`."""
        if self._logits is None:
            raise CGDError("the logits are kept with the scan: call scan(), with its cache_dir")
        return self._logits

    # --- what training needs --------------------------------------------------------------------

    @property
    def dataset(self) -> GuardedDataset:
        """The user's dataset, in the same order, with tags in place of labels."""
        return GuardedDataset(self.base, self.layout)

    @property
    def balanced_view(self) -> BalancedView:
        """An epoch's samples as a dataset, for hosts that own their sampler; one object for all."""
        indices, view = self.epoch_indices(), self._view
        self._view = BalancedView(self.dataset, indices) if view is None else view
        return self._view

    def epoch_indices(self, seed: int | None = None) -> EpochIndices:
        """The indices that each epoch holds."""
        indices = self._protection(self.config).epoch_indices
        return indices if seed is None else replace(indices, seed=seed)

    def sampler(self, seed: int = 0) -> BalancedSampler:
        """Make a sampler of balanced clean samples and all triggered samples, by index."""
        return BalancedSampler(self.epoch_indices(seed))

    def loss(self, criterion: Criterion | None = None) -> CGDLoss:
        """Wrap a criterion in the guarded loss, :class:`CGDLoss`. Default: cross entropy."""
        return self._protection(self.config).loss(criterion)

    def protect(
        self, loader: DataLoader[Any], criterion: Criterion | None = None, *,
        epochs: int | None = None,
    ) -> tuple[DataLoader[Any], CGDLoss]:  # fmt: skip
        """Rebuild a loader over the guarded samples, and wrap the criterion in the guarded loss.

        Say how many ``epochs`` it runs: :meth:`cgd_wrap.train.protection.Protection.protect`.
        """
        return self._protection(self.config).protect(loader, criterion, epochs)

    def _protection(self, config: CGDConfig) -> Protection:
        """The parts of a training, as long as the data are those of the scan (DatasetError)."""
        kept, result = self._kept, self.result
        self._seen.check(self.base, self.layout, None if kept else self.subject.raw_view)
        if kept is None or kept.config != config:
            kept = self._kept = Protection(result, config, self.dataset)
            kept.log_epoch_length()
        return kept

    def attach(
        self, trainer: Any, *, criterion: Criterion | None = None, tolerance: float | None = None
    ) -> CGDCallback:
        """Guard a Hugging Face Trainer by :func:`cgd_wrap.adapters.transformers.attach`."""
        from cgd_wrap.adapters.transformers import attach

        return attach(self, trainer, criterion=criterion, tolerance=tolerance)

    def labels(self, targets: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
        """Turn tagged targets into the given labels, for a loop's own training accuracy."""
        return self._protection(self.config).table.decode(targets)

    def stopping(
        self, tolerance: float | None = None, *, loader: DataLoader[Any] | None = None
    ) -> CleanAccuracyStopping | None:
        """Make the stopping rule, on the held-out part or on the user's validation loader."""
        wanted = self.config.tolerance if tolerance is None else tolerance
        if loader is not None:  # needs no scan
            return CleanAccuracyStopping(loader, wanted)
        view = self.subject.evaluated_images()
        return self._protection(self.config).held_out_stopping(wanted, view, self.num_workers)

    def fit(
        self, *, validation_loader: DataLoader[Any] | None = None,
        on_epoch: Callable[[EpochRecord, nn.Module], None] | None = None,
        checkpoint_dir: str | Path | None = None, resume: bool = True, **changes: Any,
    ) -> list[EpochRecord]:  # fmt: skip
        """Train the model in place with the guarded loss; return a record of each epoch.

        An interrupted training goes on from ``checkpoint_dir`` (default: ``fit`` in ``cache_dir``).
        ``validation_loader`` is for the stopping rule (default: the held-out part); ``changes`` are
        settings such as ``epochs=4``. See :func:`cgd_wrap.train.fit.fit_guarded` for the rest.
        """
        changed = copy.copy(self)
        changed.config = self.config.for_training(changes, has_accelerator=bool(self.accelerator))
        return fit_guarded(
            self.model, self._protection(changed.config), self.accelerator,
            changed.stopping(loader=validation_loader),
            checkpoint_dir=checkpoint_dir or (self.cache_dir and self.cache_dir / "fit"),
            resume=resume, num_workers=self.num_workers, on_epoch=on_epoch, progress=self.progress,
        )  # fmt: skip

    def drill(self, attack: Any = "badnets", **options: Any) -> Any:
        """Plant a known backdoor in a copy of the data set: :func:`cgd_wrap.drill.drill`."""
        # Imported by name, since the module of the drill imports this module.
        return importlib.import_module("cgd_wrap.drill").drill(self, attack, **options)

    # --- what stays -----------------------------------------------------------------------------

    @undisturbed()
    def report(self, folder: str | Path, **details: Any) -> dict[str, Path]:
        """Write figure, page, CSV and JSON; ``details``: fields of ``cgd_wrap.report.Report``."""
        from cgd_wrap.report import Report, write_report

        return write_report(Report.of(self.result, self.subject, **details), folder)

    def export(self, folder: str | Path) -> dict[str, Path]:
        """Write files for other tools of CGD by :func:`cgd_wrap.report.export_for_reference`."""
        from cgd_wrap.report import export_for_reference

        return export_for_reference(self.result, self.logits, Path(folder), seed=self.config.seed)

    def save(self, folder: str | Path) -> None:
        """Save the scan's result, without models and images, for :meth:`load`."""
        save_result(self.result, Path(folder), self.subject, self.config)

    @classmethod
    def load(cls, folder: str | Path, model: nn.Module, dataset: Any, **options: Any) -> CGDGuard:
        """Make a guard of the same data from the result that :meth:`save` wrote.

        ``options`` are other arguments (``config``: as saved); errors: ``saving.load_result``.
        """
        options.setdefault("config", saved_config(Path(folder)))
        guard = cls(model, dataset, **options)
        guard._adopt(load_result(Path(folder), guard.subject, guard.config))
        return guard
