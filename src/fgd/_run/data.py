"""What data is: arrays, arrays in a file that no memory need hold, or a stream of batches."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from fgd._checks import PyTree


class Stream(NamedTuple):
    """Data that comes batch by batch, as it is.

    Attributes:
      batches: what a run takes them from.
      source: the iterator or loader that was given, if it may know where it stands.
    """

    batches: Iterator[PyTree]
    source: Any = None


class Mapped(NamedTuple):
    """Arrays in files, whose rows are read when a step wants them.

    Attributes:
      arrays: a pytree of NumPy arrays, `numpy.memmap` among them.
    """

    arrays: PyTree


def as_data(caller: str, data: Any) -> PyTree | Stream:
    """`data` as it is, if it is a tree of arrays, or as a Stream, if it can be iterated over."""
    if isinstance(data, list) and data and all(isinstance(x, tuple | list | dict) for x in data):
        raise TypeError(
            f"{caller}: data is a list of {len(data)} {type(data[0]).__name__}s; give arrays whose "
            "leading axis is rows, or, to train, iter() of a list of batches to train on each in "
            "turn"
        )
    if hasattr(data, "with_format") and hasattr(data, "__len__"):  # Hugging Face's
        raise TypeError(
            f"{caller}: data is a {type(data).__name__} of rows; "
            'data.with_format("numpy")[:] is a dict of arrays, '
            'data.with_format("numpy").iter(batch_size) a stream of batches for train'
        )
    is_leaf = jax.tree_util.all_leaves([data])
    is_array = hasattr(data, "shape") or isinstance(data, str | bytes)
    if is_leaf and not is_array and hasattr(data, "__iter__"):
        return _as_stream(data)
    return data


def _as_stream(data: Any) -> Stream:
    """An iterator as it stands; a loader from its beginning, again and again."""
    if hasattr(data, "load_state_dict"):  # torchdata's, and datasets': moved before they begin
        if not hasattr(data, "with_format"):
            return Stream(_Loader(data), data)
        begin = data.state_dict()  # to which datasets' must be taken back, or resume once more
        return Stream(_Loader(data, again=lambda: data.load_state_dict(begin)), data)
    batches = iter(data)
    if batches is data:
        return Stream(batches, batches)
    loader = _Loader(data, batches)
    return Stream(loader, loader if hasattr(batches, "get_state") else None)  # as Grain's have


class _Loader:
    """Epoch after epoch of a loader.

    Attributes:
      loader: what is iterated over.
      batches: of the epoch that is under way; None: it has not begun.
      again: called between two epochs.
    """

    def __init__(
        self, loader: Any, batches: Any = None, again: Callable[[], None] = lambda: None
    ) -> None:
        self.loader, self.again = loader, again
        self.batches: Any = batches

    def __iter__(self) -> "_Loader":
        return self

    def __next__(self) -> PyTree:
        for _ in range(2):  # one may stand at the end of an epoch; two that are empty are the end
            if self.batches is None:
                self.batches = iter(self.loader)
            try:
                return next(self.batches)
            except StopIteration:
                self.batches = None
                self.again()
        raise StopIteration

    def get_state(self) -> Any:
        return self.batches.get_state()

    def set_state(self, place: Any) -> None:
        self.batches.set_state(place)


def arrays_of(data: PyTree | Mapped) -> PyTree:
    """The arrays, in files or not."""
    return data.arrays if isinstance(data, Mapped) else data


def as_mapped(data: PyTree | Stream, batch_size: Any) -> PyTree | Stream | Mapped:
    """`data`, as Mapped if it has a memory-mapped array and steps see batches of it."""
    if isinstance(data, Stream) or batch_size is None:
        return data
    if any(isinstance(leaf, np.memmap) for leaf in jax.tree.leaves(data)):
        return Mapped(data)
    return data
