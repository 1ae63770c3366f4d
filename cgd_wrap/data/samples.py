"""Reading whole samples of the user's dataset; whatever fails says which sample it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.data import Dataset

from cgd_wrap.data.failures import bad_sample
from cgd_wrap.data.paths import ImagePaths, image_path
from cgd_wrap.data.pixels import check_file
from cgd_wrap.data.probes import spread
from cgd_wrap.data.reading import SampleReader
from cgd_wrap.data.sources import checked, is_table, locate
from cgd_wrap.data.workers import BadSamples, Workers

PROBES = 8


class Samples(Dataset[Any]):
    """What a function makes of each sample; every failure is a :class:`BadSampleError`.

    No bomb (see :func:`~cgd_wrap.data.pixels.check_size`) is shown to a transform: the transforms
    that the dataset holds are replaced or left out in ``source``. Where none is found, files are
    refused by their headers before the dataset's code reads them.

    Args:
        dataset: the user's dataset.
        source: what is read: the dataset, or a copy of it. Default: the
            :func:`~cgd_wrap.data.sources.checked` copy.
        of: sample -> value. Default: the sample itself.
    """

    def __init__(
        self, dataset: Any, source: Any = None, of: Callable[[Any], Any] | None = None
    ) -> None:
        self.dataset, self.of = dataset, of
        self.source = checked(dataset) if source is None else source
        # The path of a table's row is slow to find, and tables mostly hold the files' bytes.
        self.check_files = (
            self.source is dataset
            and not is_table(locate(dataset, 0)[0])
            and any(map(ImagePaths(dataset).of, probes_of(dataset)))
        )

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        try:
            if self.check_files:
                check_file(image_path(self.dataset, index))
            sample = self.source[index]
            return sample if self.of is None else self.of(sample)
        except (KeyboardInterrupt, SystemExit, GeneratorExit):  # meant for the whole process
            raise
        except BaseException as error:  # the panic of a decoder in Rust is no Exception
            raise bad_sample(error, index, self.dataset) from error


def probes_of(dataset: Any) -> list[int]:
    """Indices of the few samples that are looked at to find out what a dataset is like."""
    return spread(len(dataset), PROBES)


def fatal_probes(
    dataset: Any,
    workers: Workers,
    known: BadSamples | None = None,
    probes: Sequence[int] | None = None,
) -> BadSamples:
    """Find the probes that kill or stall the process that reads them, at no risk to this process.

    Args:
        dataset: any map-style dataset.
        workers: the processes that read; without any, none is found.
        known: samples that are known to be bad; gets those that are found.
        probes: indices of the samples. Default: those of :func:`probes_of`.

    Returns:
        ``known``, or a new dict.
    """
    reader = SampleReader(Samples(dataset, of=_nothing), Workers(1, workers.timeout), known)
    if workers.count:
        indices = probes_of(dataset) if probes is None else probes
        reader.read([[index] for index in indices], lambda number, samples: None)
    return reader.bad


def _nothing(sample: Any) -> None:
    """Forget a sample: that it could be read is all that is asked."""
