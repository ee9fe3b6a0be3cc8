"""Batches as a pure function of (seed, step), the same over any number of processes."""

import atexit
import os
import weakref
from collections.abc import Generator, Iterable
from typing import Any

import grain
import numpy as np
from absl import flags

from flaxattn.data.records import RandomTransform, Source, Transform
from flaxattn.errors import InputError

Batch = dict[str, np.ndarray]

# Of training examples: more than any run sees. Grain counts batches in floating point, which is
# exact up to here and for batches of one overflows at the end of an endless data set.
END = 2**53


def train_batches(
    source: Source,
    transform: RandomTransform,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
) -> Generator[Batch, None, None]:
    """Training batches without end: b of the transform's examples, each array one axis more.

    Every epoch is shuffled anew and has each record once; batches run across the ends of epochs.
    The n-th example is a function of (seed, n) alone, augmentation included. So a run continues
    exactly from `start_step` without saved state, and the local batches of all processes, one
    after the other, are the batch of a single process.

    Args:
        batch_size: of all processes together; b = batch_size / process_count.
        start_step: how many batches have been consumed before.
        workers: 0 prefetches with threads of this process; more start as many processes, for
            images whose decoding keeps a processor busy, but never more than this machine has
            processors. They are spawned, so a script that uses them has its work under
            `if __name__ == "__main__":`. The batches are the same.

    Closing or dropping the iterator ends its threads and processes.

    Raises InputError for a batch size that the processes cannot share evenly and for numbers out
    of range, at once; while iterating, for an image that cannot be read, with its name.
    """
    local_size = _local_size(batch_size, process_index, process_count, workers)
    if seed < 0 or start_step < 0:
        raise InputError(f"seed={seed} and start_step={start_step} must not be negative.")
    # Two seeds, and mixed ones: Grain shuffles epoch e by seed + e, so that with 0 and 1 given as
    # they are, one run's second epoch would be the other's first.
    shuffle_seed, augment_seed = np.random.SeedSequence(seed).generate_state(2).tolist()
    dataset = (
        grain.MapDataset.source(source)
        .shuffle(seed=shuffle_seed)
        .repeat()
        .random_map(transform, seed=augment_seed)[start_step * batch_size : END]
        .batch(local_size)[process_index::process_count]
    )
    return _iterate(dataset, workers)


def eval_batches(
    source: Source,
    transform: Transform,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
) -> Generator[Batch, None, None]:
    """Each record once over all processes, in order: the batches of `train_batches` and a mask.

    The last batch is filled up by repeating the last record, and mask (b,) float32 is 0 there and
    1 elsewhere. Every process gets the same number of batches. Arguments and errors are those of
    `train_batches`.
    """
    local_size = _local_size(batch_size, process_index, process_count, workers)
    count = len(source)
    padded_count = -(-count // batch_size) * batch_size

    def masked_example(index: int) -> dict:
        example = transform(source[min(index, count - 1)])
        return {**example, "mask": np.float32(index < count)}

    dataset = (
        grain.MapDataset.range(padded_count)
        .map(masked_example)
        .batch(local_size)[process_index::process_count]
    )
    return _iterate(dataset, workers)


def _local_size(batch_size: int, process_index: int, process_count: int, workers: int) -> int:
    if not 0 <= process_index < process_count:
        raise InputError(
            f"process_index={process_index} is not one of process_count={process_count}: use 0 to "
            f"process_count - 1."
        )
    if batch_size < 1 or batch_size % process_count:
        raise InputError(
            f"a global batch of {batch_size} cannot be shared evenly by {process_count} "
            f"processes: use a multiple of {process_count}, such as "
            f"{-(-max(batch_size, 1) // process_count) * process_count}."
        )
    if workers < 0:
        raise InputError(f"workers={workers} is below 0: use 0 for threads, or more processes.")
    return batch_size // process_count


def _iterate(dataset: grain.MapDataset, workers: int) -> Generator[Batch, None, None]:
    workers = min(workers, os.cpu_count() or 1)
    if workers:
        if not flags.FLAGS.is_parsed():
            # Grain asks a flag of its own whether to profile workers; outside of absl.app nobody
            # has parsed any, and the defaults hold.
            flags.FLAGS.mark_as_parsed()
        # A worker runs ahead of its consumer as it is; threads would only contend within it.
        options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    else:
        threads = min(os.cpu_count() or 1, 8)
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 1)
    batches = dataset.to_iter_dataset(options)
    if workers:
        batches = batches.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        )
    iterator = iter(batches)
    generator = _closing(iterator, map(_copied, iterator) if workers else iterator)
    _open.add(generator)
    return generator


def _closing(iterator: Any, batches: Iterable[Batch]) -> Generator[Batch, None, None]:
    try:
        yield from batches
    finally:
        iterator.close()


# For a program that ends without closing: when the interpreter takes its modules apart and drops
# the generators, Grain can no longer stop its workers and release their memory.
_open: weakref.WeakSet[Generator[Batch, None, None]] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for batches in list(_open):
        batches.close()


def _copied(batch: Batch) -> Batch:
    # Workers send arrays in shared memory, which Grain releases with the last reference: one that
    # is held until the program ends, as the last batch is by Grain's own frames, would be leaked.
    copied = {name: np.array(values) for name, values in batch.items()}
    for values in batch.values():
        if (shared := getattr(values, "shm", None)) is not None:
            shared.unlink()
            values._unlink_on_del = False  # type: ignore[attr-defined]
    return copied
