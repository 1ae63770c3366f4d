"""CGDGuard: the user's dataset and model on one side, the stages of the defence on the other."""

from __future__ import annotations

import logging
import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from cgd_wrap.clip.several import Clips, check_clips, names_of
from cgd_wrap.config import CGDConfig
from cgd_wrap.data import EvaluatedImages, LabelledImages, ModelInputs, RawImages
from cgd_wrap.data.class_names import resolve_class_names
from cgd_wrap.data.fingerprint import dataset_fingerprint, sample_fingerprint
from cgd_wrap.data.labels import read_labels
from cgd_wrap.data.layout import SampleLayout, check_same_length, find_layout
from cgd_wrap.data.paths import image_path
from cgd_wrap.errors import CGDError
from cgd_wrap.functional import Split, balanced_indices
from cgd_wrap.models.class_knowledge import measured_class_knowledge
from cgd_wrap.models.inputs import check_outputs, input_shape
from cgd_wrap.models.outputs import unwrapped
from cgd_wrap.models.weights import load_checkpoint
from cgd_wrap.processes import Runtime
from cgd_wrap.randomness import kept_rng
from cgd_wrap.scan.clip_pass import clip_pass
from cgd_wrap.scan.pass_options import PassOptions
from cgd_wrap.scan.stored_logits import StoredLogits, bad_rows
from cgd_wrap.scan.suspicious_pass import given_suspicious_pass, trained_suspicious_pass
from cgd_wrap.split.entropy_map import EntropyMap
from cgd_wrap.split.estimate import PoisonEstimate
from cgd_wrap.split.result import ScanResult, check_clean_classes
from cgd_wrap.train.dataset import BalancedView, GuardedDataset
from cgd_wrap.train.loaders import guarded_loader
from cgd_wrap.train.loss import CGDLoss, Criterion
from cgd_wrap.train.protection import Protection
from cgd_wrap.train.sampler import BalancedSampler, EpochIndices
from cgd_wrap.train.stopping import CleanAccuracyStopping

if TYPE_CHECKING:
    from accelerate import Accelerator

    from cgd_wrap.adapters.transformers import CGDCallback
    from cgd_wrap.attacks import Attack
    from cgd_wrap.drill import Outcome
    from cgd_wrap.train.fit import EpochRecord

logger = logging.getLogger(__name__)

DEFAULT_CLIP = "ViT-B-32/laion2b_s34b_b79k"  # the paper's


class CGDGuard:
    """Guards the training of an image classifier on data that may be poisoned.

    ::

        guard = CGDGuard(model, train_set, class_names=names, cache_dir="runs/cgd").scan()
        train_loader, criterion = guard.protect(train_loader, criterion)

    Args:
        model: the classifier to be trained: image batch -> logits [B, C], or an output with
            ``.logits``.
        dataset: map-style dataset of ``(image, label, ...)`` tuples or of dicts; not changed.
        class_names: what CLIP reads, in the order of the labels. Default: found from the dataset.
        clip: ``"architecture/pretrained-tag"`` or ``"architecture/checkpoint"`` of open_clip,
            ``"hf-hub:org/repo"``, ``"local-dir:folder"``, or any object with
            ``logits(images) -> [B, C]``. Such an object gets floats [B, 3, H, W] in [0, 1], or
            what its ``preprocess`` (PIL image -> tensor), if it has one, makes of the images. A
            list of several: a label's score is that of the CLIP that contradicts it most, which
            also teaches. One that is backdoored can't vouch for poison alone then.
        config: every number of the defence. Default: the best that we measured, for a model that
            is repaired or one that is trained from scratch: which of these it is, its accuracy on
            clean samples says, in :meth:`scan`.
        accelerator: gives device, precision and processes. Default: torch.distributed's process
            group if there is one, otherwise a single process on a GPU if there is one.
        cache_dir: where the scan is kept; a scan that was interrupted goes on from there.
            Default: nowhere.
        clip_dataset: the same samples in the same order, as raw images, where the dataset only
            gives normalised tensors.
        eval_dataset_view: the same samples in the same order, as the model is evaluated on them:
            for a given suspicious model, and for the stopping rule. Default: the dataset.
        suspicious: None trains fresh copies of the model briefly; a model is used as it is; a
            path is a checkpoint of the model.
        image_key: position or key of the image in a sample. Default: found.
        label_key: position or key of the label in a sample. Default: found.
        num_workers: of the scan's data loaders.
        progress: draw progress bars.

    Raises:
        TypeError: the dataset is no map-style dataset of images and labels, or clip no CLIP.
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
        self.accelerator = accelerator
        self.cache_dir = None if cache_dir is None else Path(cache_dir)
        self.num_workers, self.progress = num_workers, progress
        self.base = dataset
        self.layout = find_layout(dataset, image_key=image_key, label_key=label_key)
        self.class_names = resolve_class_names(dataset, self.layout, class_names)
        # Where a label can't be had without its image, any label does for a bad sample.
        self.targets: Int[Tensor, "n"] = read_labels(
            dataset, self.layout, len(self.class_names),
            unreadable=0 if self.config.on_bad_sample == "record" else None,
        )  # fmt: skip
        check_same_length(dataset, clip_dataset, "clip_dataset")
        check_same_length(dataset, eval_dataset_view, "eval_dataset_view")
        self.clip_dataset, self.eval_dataset_view = clip_dataset, eval_dataset_view
        self._result: ScanResult | None = None
        self._kept: tuple[CGDConfig, Protection] | None = None
        self._logits: tuple[StoredLogits, StoredLogits] | None = None
        self._view: BalancedView | None = None
        self._temporary_cache: weakref.finalize[Any, Any] | None = None  # removes it when called

    # --- scan -----------------------------------------------------------------------------------

    @kept_rng()
    def scan(self, *, overwrite: bool = False) -> CGDGuard:
        """Score every sample and split the dataset; the guard itself comes back.

        Results in ``cache_dir`` are reused if they were made for the same thing. With several
        processes, each scores its share; all must call this.

        Args:
            overwrite: replace what is in ``cache_dir`` if it was made for something else, in
                place of refusing.

        Raises:
            CacheMismatchError: ``cache_dir`` was made for something else; the fields are named.
            ClipLoadError: CLIP's trained weights can't be had.
            BadSampleError: a sample can't be read (see ``config.on_bad_sample``).
            DatasetError: too many samples can't be read, the views are random, or a class has no
                clean sample.
            ScanIncompleteError: another process failed.
            ValueError: the model's outputs don't fit the classes.
        """
        check_clips(self.clip, self.config)  # either may have been changed since
        runtime = Runtime.of(self.accelerator)
        raw = self.raw_view()
        suspicious = self._given_suspicious()
        shape = input_shape(*self.evaluated_view(), raw, unwrapped(self.model))
        for model in (self.model, suspicious):
            if model is not None:
                check_outputs(unwrapped(model), shape, self.class_names)
        options = PassOptions(
            folder=self._cache_folder(runtime), dataset=self._identity(raw),
            num_classes=len(self.class_names), config=self.config, runtime=runtime,
            num_workers=self.num_workers, progress=self.progress,
            overwrite=overwrite,
        )  # fmt: skip
        clip = clip_pass(self.clip, self.class_names, raw, options)
        if suspicious is None:
            readable = torch.ones(len(raw), dtype=torch.bool)
            readable[bad_rows(clip)] = False
            inputs = ModelInputs(raw, shape[1:], shape[0])
            suspect = trained_suspicious_pass(
                unwrapped(self.model), inputs, {"input": list(shape)},
                self.targets, readable.nonzero().squeeze(1), options,
            )  # fmt: skip
        else:
            view = EvaluatedImages(*self.evaluated_view())
            suspect = given_suspicious_pass(suspicious, view, len(raw), options)
        result = ScanResult.of(
            clip, suspect, self.targets, self.config, self.class_names, names_of(self.clip)
        )
        if self.config.depends_on_model:
            result = replace(
                result, class_knowledge=self._knowledge(result.split, raw, shape, runtime)
            )
        for warning in result.warnings if runtime.is_main else ():
            logger.warning("%s", warning)
        runtime.barrier()  # the main process may take a temporary cache away from here on
        self._logits = clip, suspect
        self._adopt(result)
        return self

    def _knowledge(
        self, split: Split, raw: RawImages, shape: tuple[int, int, int], runtime: Runtime
    ) -> float:
        """How well the model knows the classes; the main process', as only it may be loaded."""
        found = 0.0
        if runtime.is_main:
            found = measured_class_knowledge(
                unwrapped(self.model), EvaluatedImages(*self.evaluated_view()),
                lambda: ModelInputs(raw, shape[1:], shape[0]), shape, self.targets, split.clean,
                runtime, seed=self.config.seed, progress=self.progress,
            )  # fmt: skip
        return float(runtime.share(repr(found)))

    def _adopt(self, result: ScanResult) -> None:
        check_clean_classes(
            self.targets, result.split.clean, self.class_names,
            allow_missing=self.config.allow_missing_classes,
        )  # fmt: skip
        self._result, self._view = result, None
        counts = ", ".join(f"{n} {name}" for name, n in result.split.counts().items() if n)
        logger.info("Split of %d samples: %s.", len(self.targets), counts)
        if result.class_knowledge is not None:
            logger.info(
                "On clean samples the model is %.0f%% of the way from chance to perfect: it is %s.",
                100 * max(0.0, result.class_knowledge),
                "repaired" if result.trained else "trained from scratch",
            )  # fmt: skip
        if self.config.guidance_by_agreement and result.guidance_share < 1:
            logger.info(
                "CLIP agrees with %.0f%% of the labels only: its guidance counts %.0f%%.",
                100 * result.agreement, 100 * result.guidance_share,
            )  # fmt: skip
        estimate = self.poison_estimate
        if not estimate.classes:
            logger.info("No sign of an attack: no class stands out.")
        for found in estimate.classes:
            logger.info(
                "An attack seems to aim at %s%s: %.1f%% of its samples look poisoned.",
                self.class_names[found.label],
                ", or many of its labels are wrong" if found.found_by_clip_alone else "",
                100 * found.poisoned,
            )

    def _given_suspicious(self) -> nn.Module | None:
        if isinstance(self.suspicious, (str, Path)):
            return load_checkpoint(self.model, self.suspicious)
        return None if self.suspicious is None else unwrapped(self.suspicious)

    def raw_view(self) -> RawImages:
        """The images as CLIP sees them: RGB, before any transform."""
        if self.clip_dataset is None:
            return RawImages(self.base, self.layout)
        return RawImages(self.clip_dataset, find_layout(self.clip_dataset))

    def evaluated_view(self) -> tuple[Any, SampleLayout]:
        """What the model is evaluated on, ``eval_dataset_view`` or the dataset, and its layout."""
        view = self.eval_dataset_view
        return (self.base, self.layout) if view is None else (view, find_layout(view))

    def _identity(self, raw: RawImages) -> dict[str, Any]:
        return {
            "dataset": dataset_fingerprint(self.base),
            "samples": sample_fingerprint(raw),
            "labels": dataset_fingerprint(self.targets),
        }

    def _cache_folder(self, runtime: Runtime) -> Path:
        if self.cache_dir is not None:
            return self.cache_dir
        if self._temporary_cache is not None:
            self._temporary_cache()
        if not runtime.is_main:
            return Path(runtime.share(""))
        folder = tempfile.mkdtemp(prefix="cgd-wrap-")
        self._temporary_cache = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return Path(runtime.share(folder))

    # --- what the scan found --------------------------------------------------------------------

    @property
    def result(self) -> ScanResult:
        """Everything that the scan found.

        Raises:
            CGDError: before :meth:`scan`.
        """
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
        """CLIP's and the suspicious model's logits of all samples, as the scan stored them.

        Of several CLIPs the combined ones, the mean of their log-softmaxes.

        Raises:
            CGDError: unless this guard made the scan itself.
        """
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
        """An epoch's samples as an ordinary dataset, for hosts that own their sampler.

        Always the same one, so that its ``set_epoch`` reaches every loader of it.
        """
        if self._view is None:
            self._view = BalancedView(self.dataset, self.epoch_indices())
        return self._view

    def epoch_indices(self, seed: int | None = None) -> EpochIndices:
        """Which samples an epoch holds."""
        indices = self._protection(self.config).epoch_indices
        return indices if seed is None else replace(indices, seed=seed)

    def _protection(self, config: CGDConfig) -> Protection:
        """The last one again, where nothing has changed: hosts ask for its parts one by one."""
        kept, result = self._kept, self.result
        if kept is None or kept[1].result is not result or kept[0] != config:
            decided = config.decided(trained=result.trained)
            kept = self._kept = config, Protection(result, self.targets, decided)
        return kept[1]

    def sampler(self, seed: int = 0) -> BalancedSampler:
        """Yields balanced clean samples and all triggered ones, as indices into the dataset."""
        return BalancedSampler(self.epoch_indices(seed))

    def loss(self, criterion: Criterion | None = None) -> CGDLoss:
        """Wrap a criterion: see :class:`CGDLoss`. Default: cross entropy."""
        return self._protection(self.config).loss(criterion)

    def protect(
        self,
        loader: DataLoader[Any],
        criterion: Criterion | None = None,
        *,
        epochs: int | None = None,
    ) -> tuple[DataLoader[Any], CGDLoss]:
        """The loader over the guarded dataset and its sampler, and the criterion wrapped.

        Every option of the loader is kept, except its order: that is the sampler's.

        Args:
            loader: of the dataset that this guard was made for, not yet prepared by Accelerate.
            criterion: of the user's loop. Default: cross entropy.
            epochs: how many the loop runs: as in :meth:`fit`, the second half then has fewer blends
                in a repair, and the only ones of a fresh model (see ``CGDConfig.early_exposure``).
                Default: all are as the first half.

        Raises:
            TypeError: for a loader that can't be rebuilt.
            ValueError: for a loader of another dataset, or one that Accelerate has prepared.
        """
        return self._protected(loader, criterion, self.config, epochs)

    def _protected(
        self,
        loader: DataLoader[Any],
        criterion: Criterion | None,
        config: CGDConfig,
        epochs: int | None,
    ) -> tuple[DataLoader[Any], CGDLoss]:
        protection = self._protection(config)
        indices = protection.epoch_indices.in_run_of(epochs)
        guarded = guarded_loader(loader, self.base, self.dataset, indices)
        return guarded, protection.loss(criterion)

    def attach(
        self, trainer: Any, *, criterion: Criterion | None = None, tolerance: float | None = None
    ) -> CGDCallback:
        """Guard a Trainer of Hugging Face; see :func:`cgd_wrap.adapters.transformers.attach`.

        Args:
            trainer: before ``trainer.train()``.
            criterion: of the run. Default: cross entropy, with the Trainer's label smoothing.
            tolerance: of the stopping rule. Default: the configuration's.
        """
        from cgd_wrap.adapters.transformers import attach

        return attach(self, trainer, criterion=criterion, tolerance=tolerance)

    def labels(self, targets: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
        """Ordinary labels of tagged targets, for a loop's own training accuracy."""
        return self._protection(self.config).table.decode(targets)

    def stopping(
        self, tolerance: float | None = None, *, loader: DataLoader[Any] | None = None
    ) -> CleanAccuracyStopping | None:
        """The tolerance rule on clean data that isn't trained on.

        Args:
            tolerance: percentage points; default: the configuration's.
            loader: the user's validation data. Default: the part of the clean split that is held
                out, as ``eval_dataset_view`` (or else the dataset) shows it.

        Returns:
            None if there is no loader and nothing is held out.
        """
        if loader is None:
            indices = self.result.held_out.nonzero().squeeze(1).tolist()
            if not indices:
                return None
            view, layout = self.evaluated_view()
            pairs = LabelledImages(EvaluatedImages(view, layout), self.targets)
            loader = DataLoader(
                Subset(pairs, indices), batch_size=self.config.batch_size,
                num_workers=self.num_workers, generator=torch.Generator(),
            )  # fmt: skip
        return CleanAccuracyStopping(
            loader, self.config.tolerance if tolerance is None else tolerance
        )

    def fit(
        self,
        *,
        validation_loader: DataLoader[Any] | None = None,
        on_epoch: Callable[[EpochRecord, nn.Module], None] | None = None,
        **changes: Any,
    ) -> list[EpochRecord]:
        """Train the model in place with the guarded loss; see :func:`cgd_wrap.train.fit.fit`.

        Args:
            validation_loader: for the stopping rule; default: the held-out part.
            on_epoch: called after each epoch, on every process, with its record and the model.
            changes: of configuration fields that concern the training, such as ``epochs=4``.

        Returns:
            A record per epoch.
        """
        from accelerate import Accelerator

        from cgd_wrap.train.fit import fit

        config = self.config.replace(**changes)
        accelerator = self.accelerator or Accelerator(mixed_precision=config.mixed_precision)
        batch_size = max(1, config.batch_size // accelerator.num_processes)
        plain = DataLoader(self.base, batch_size=batch_size, num_workers=self.num_workers)
        loader, criterion = self._protected(plain, None, config, config.epochs)
        return fit(
            self.model, loader, criterion, config, accelerator,
            stopping=self.stopping(config.tolerance, loader=validation_loader),
            image_key=self.layout.image, label_key=self.layout.label,
            on_epoch=on_epoch, progress=self.progress,
        )  # fmt: skip

    def drill(self, attack: str | Attack = "badnets", **options: Any) -> Outcome:
        """Plant a known backdoor in this data set, on copies, and see whether the defence holds.

        Args:
            attack: by name, or an attack.
            options: ``rate``, ``test_dataset`` and others of :func:`cgd_wrap.drill.drill`.

        Returns:
            Clean accuracy, attack success rate and robust accuracy before and after, and more.
        """
        from cgd_wrap.drill import drill

        return drill(self, attack, **options)

    # --- what stays -----------------------------------------------------------------------------

    @kept_rng()
    def report(self, folder: str | Path, **details: Any) -> dict[str, Path]:
        """Write figure, HTML page, CSV and JSON; see :func:`cgd_wrap.report.write_report`.

        Args:
            folder: made where it is missing.
            details: further arguments of ``write_report``, such as ``poisoned`` and ``figures``.

        Raises:
            MissingExtraError: without the extra ``report``.
        """
        from cgd_wrap.report import write_report

        paths = [image_path(self.base, index) for index in range(len(self.targets))]
        return write_report(
            folder,
            entropy_map=self.entropy_map, split=self.split, class_names=self.class_names,
            labels=self.targets, paths=paths if any(paths) else None, images=self.raw_view(),
            bad=self.result.bad,
            sigma_clean=self.config.sigma_clean, sigma_triggered=self.config.sigma_triggered,
            sigma_slow=self.config.sigma_slow, corner_cut=self.config.corner_cut,
            poison_cut=self.config.poison_cut, auto=self.config.sigma == "auto",
            estimate=self.poison_estimate, warnings=self.result.warnings,
            teachers=self.result.teachers,
            **details,
        )  # fmt: skip

    def export(self, folder: str | Path) -> dict[str, Path]:
        """Write what other tools of CGD read: the reference's files, and the logits.

        ``clean_indices.json`` (balanced, with repeats), ``entropy_score.json``, and
        ``logits.safetensors`` in place of the reference's pickle.

        Raises:
            CGDError: unless this guard made the scan itself, as for :attr:`logits`.
        """
        from cgd_wrap.report import write_clean_indices, write_entropy_score, write_logits

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        clip, suspicious = (
            torch.cat([values for _, values, _ in stored.units()]) for stored in self.logits
        )
        generator = torch.Generator().manual_seed(self.config.seed)
        clean = balanced_indices(self.targets, self.split.clean, generator=generator)
        return {
            "clean_indices": write_clean_indices(folder / "clean_indices.json", clean.tolist()),
            "entropy_score": write_entropy_score(
                folder / "entropy_score.json", self.entropy_map, None
            ),
            "logits": write_logits(folder / "logits.safetensors", clip, suspicious, self.targets),
        }

    def save(self, folder: str | Path) -> None:
        """Keep the scan's outcome, for :meth:`load`; the models and images are not in it."""
        folder = Path(folder)
        self.result.save(folder, self._saved_identity())
        self.config.to_yaml(folder / "config.yaml")

    @classmethod
    def load(cls, folder: str | Path, model: nn.Module, dataset: Any, **options: Any) -> CGDGuard:
        """A guard that goes on from a saved scan.

        Args:
            folder: written by :meth:`save`.
            model: as for :class:`CGDGuard`.
            dataset: the same data.
            options: further arguments of :class:`CGDGuard`; ``config`` defaults to the saved one.

        Raises:
            CacheMismatchError: the folder belongs to other data or class names; they are named.
        """
        folder = Path(folder)
        options.setdefault("config", CGDConfig.from_yaml(folder / "config.yaml"))
        guard = cls(model, dataset, **options)
        guard._adopt(ScanResult.load(folder, guard._saved_identity(), guard.config.calibration))
        return guard

    def _saved_identity(self) -> dict[str, Any]:
        thresholds = (
            "sigma", "sigma_clean", "sigma_triggered", "sigma_slow", "corner_cut", "poison_cut",
            "holdout_fraction",
        )  # fmt: skip
        return {
            "dataset": dataset_fingerprint(self.base),
            "labels": dataset_fingerprint(self.targets),
            "class_names": list(self.class_names),
            "scaled_clip_logits": self.config.scaled_clip_logits,
            "calibration": asdict(self.config.calibration),
            **{name: getattr(self.config, name) for name in thresholds},
        }
