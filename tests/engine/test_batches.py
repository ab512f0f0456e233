"""Batches of a stream: positions are recorded only for yielded batches, and workers resume where they were."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import IterableDataset, get_worker_info

from training.engine.batches import load_batches


class Stream(IterableDataset):
    """Samples that name their worker and number; an epoch has ten."""

    def load_positions(self, positions):
        self.positions = positions

    def __iter__(self):
        worker = get_worker_info()
        worker = 0 if worker is None else worker.id
        epoch, _, start = self.positions[worker]
        number = 10 * epoch + start
        while True:
            position = torch.tensor([number // 10, 0, number % 10])
            yield {"name": torch.tensor([worker, number]), "stream_position": position}
            number += 1


def open_batches(num_workers, saved=None, processes=1, index=0):
    place = {"num_processes": processes, "process_index": index, "device": torch.device("cpu")}
    state = SimpleNamespace(accelerator=SimpleNamespace(**place), stream_positions=None, num_samples=0)
    return state, load_batches(Stream(), state, 5, 3, 1, num_workers, saved)


def test_what_was_handed_out_is_noted_and_no_more():
    state, batches = open_batches(2)
    names = [next(batches)["name"].tolist() for _ in range(3)]
    assert names == [[[0, 0], [0, 1], [0, 2]], [[1, 0], [1, 1], [1, 2]], [[0, 3], [0, 4], [0, 5]]]
    assert state.stream_positions == [[0, 0, 5], [0, 0, 2]], "what the workers read ahead does not count"
    batches.close()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_one_reader_goes_on_at_its_position(num_workers):
    _, batches = open_batches(num_workers, [[[1, 0, 4]]])
    batch = next(batches)
    assert batch["name"].tolist() == [[0, 14], [0, 15], [0, 16]] and "stream_position" not in batch
    batches.close()


def test_each_process_takes_its_own_positions():
    saved = [[[0, 0, 1], [0, 0, 2]], [[3, 0, 3], [3, 0, 4]]]
    state, batches = open_batches(2, saved, processes=2, index=1)
    assert next(batches)["name"].tolist()[0] == [0, 33] and state.stream_positions[1] == [3, 0, 4]
    batches.close()


@pytest.mark.parametrize("num_workers, processes", [(1, 2), (2, 1)])
def test_other_shares_begin_with_the_earliest_epoch(num_workers, processes, caplog):
    saved = [[[3, 0, 1], [2, 0, 2]], [[3, 0, 3], [3, 0, 4]]]
    state, batches = open_batches(num_workers, saved, processes)
    assert next(batches)["name"].tolist()[0] == [0, 20]
    assert f"is now shared by {processes} of {num_workers}: resuming at the start of epoch 2" in caplog.text
    batches.close()
