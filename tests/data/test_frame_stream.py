"""Streamed samples: equal to those of the mapped data set, divided among workers, resumable."""

from collections import Counter
from itertools import islice

import datasets
import pytest
from torch.utils.data import DataLoader

from training.data.frame_pairs import BadRow, FramePairs, LatentShape
from training.data.frame_stream import EndlessFrameStream, FrameStream, take_videos
from training.data.pair_settings import PairSettings


SHAPE = LatentShape(4, 10, 8, 80, 64)


@pytest.fixture(scope="module")
def stream(dataset, tmp_path_factory):
    """The same rows in four parquet shards, of two, two, one and one video."""
    folder = tmp_path_factory.mktemp("shards")
    for number, (start, stop) in enumerate([(0, 12), (12, 24), (24, 30), (30, 36)]):
        dataset.select(range(start, stop)).to_parquet(str(folder / f"train-{number:05d}.parquet"))
    return datasets.load_dataset("parquet", data_dir=str(folder), split="train", streaming=True)


def key(sample):
    """Identify a sample by its pictures and its draws, which are unique."""
    return sample["noise"].numpy().tobytes() + sample["target_image"].numpy().tobytes()


def keys(samples):
    return [key(sample) for sample in samples]


def targets(samples, dataset):
    """Return the rows of the data set that are the targets of these samples."""
    pictures = {FramePairs(dataset, SHAPE, 0).read_image(row).numpy().tobytes(): row for row in range(len(dataset))}
    return [pictures[sample["target_image"].numpy().tobytes()] for sample in samples]


def test_samples_are_those_of_the_mapped_data_set(dataset, stream):
    settings = PairSettings(min_crop_scale=0.7, max_reference_distance=2)
    streamed = FrameStream(stream, SHAPE, 3, settings)
    mapped = FramePairs(dataset, SHAPE, 3, settings)
    expected = set()
    for row, name in enumerate(dataset.select_columns(["video_id", "frame_index"])):
        expected.add(key(mapped.read_sample(row, streamed._generator(name["video_id"], name["frame_index"]))))
    assert len(expected) == 36 and set(keys(streamed)) == expected


def test_an_epoch_has_every_frame_once_video_by_video_in_its_own_order(dataset, stream):
    streamed, rows, draws = FrameStream(stream, SHAPE, 0), [], []
    for epoch in range(2):
        streamed.set_epoch(epoch)
        samples = list(streamed)
        draws.append(set(keys(samples)))
        rows.append(targets(samples, dataset))
    for epoch_rows in rows:
        assert sorted(epoch_rows) == list(range(36))
        videos = [row // 6 for row in epoch_rows]
        assert all(len(set(videos[start : start + 6])) == 1 for start in range(0, 36, 6))
        assert any(epoch_rows[start : start + 6] != sorted(epoch_rows[start : start + 6]) for start in range(0, 36, 6))
    assert rows[0] != rows[1] and not draws[0] & draws[1]
    streamed.set_epoch(1)
    assert set(keys(streamed)) == draws[1]


@pytest.mark.slow
def test_workers_and_processes_share_the_shards_and_change_no_sample(stream):
    alone = Counter(keys(FrameStream(stream, SHAPE, 0)))
    workers = Counter(keys(DataLoader(FrameStream(stream, SHAPE, 0), batch_size=None, num_workers=2)))
    processes = Counter()
    for index in range(2):
        share = FrameStream(stream, SHAPE, 0, process_index=index, num_processes=2)
        processes += Counter(keys(DataLoader(share, batch_size=None, num_workers=2)))
    assert set(alone.values()) == {1} and workers == alone and processes == alone


@pytest.mark.parametrize("num_samples", [0, 6, 8, 15, 33])
def test_resumes_at_the_start_of_a_video(stream, num_samples):
    whole = keys(FrameStream(stream, SHAPE, 0))
    first = FrameStream(stream, SHAPE, 0)
    iterator = iter(first)
    assert keys(islice(iterator, num_samples)) == whole[:num_samples]
    second = FrameStream(stream, SHAPE, 0)
    second.load_state_dict(first.state_dict())
    # A video is finished only when the sample after its last one is requested.
    assert keys(second) == whole[max(num_samples - 1, 0) // 6 * 6 :]


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_finished_epoch_is_not_started_again(stream, num_workers):
    streamed = FrameStream(stream, SHAPE, 0)
    loader = DataLoader(streamed, batch_size=None, num_workers=num_workers)
    first = Counter(keys(loader))
    with pytest.raises(ValueError, match="`set_epoch` must be called before the next epoch; epoch 0 is finished"):
        list(loader)
    streamed.set_epoch(1)
    second = Counter(keys(loader))
    assert len(second) == 36 and not first & second
    streamed.set_epoch(0)
    assert Counter(keys(loader)) == first


def test_a_state_at_the_end_of_an_epoch_is_finished(stream):
    first, second = FrameStream(stream, SHAPE, 0), FrameStream(stream, SHAPE, 0)
    assert len(list(first)) == 36
    second.load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match="`set_epoch` must be called before the next epoch; epoch 0 is finished"):
        next(iter(second))


def test_one_video_is_held_at_a_time(dataset):
    taken = []

    def rows(videos):
        for video in videos:
            for row in range(6 * video, 6 * video + 6):
                taken.append(row)
                yield dataset[row]

    stream = datasets.IterableDataset.from_generator(rows, features=dataset.features, gen_kwargs={"videos": [0, 1, 2]})
    iterator = iter(FrameStream(stream, SHAPE, 0))
    next(iterator)
    assert len(taken) <= 7, "one video and the first row after it"


def test_bad_rows_raise_or_are_counted(dataset):
    rows = list(dataset.select(range(12)).cast_column("image", datasets.Image(decode=False)))
    rows[2]["image"]["bytes"] = rows[2]["image"]["bytes"][:100]
    stream = datasets.Dataset.from_list(rows, features=dataset.features).to_iterable_dataset()
    with pytest.raises(BadRow, match="got frame 2 of video '.*-000000': its `image` cannot be read"):
        list(FrameStream(stream, SHAPE, 0))
    samples = list(FrameStream(stream, SHAPE, 0, PairSettings(bad_rows="skip", reference_frames="first")))
    assert len(samples) == 11 and sum(sample["num_bad_rows"] for sample in samples) == 1


def test_bad_streams_are_refused(dataset, stream):
    with pytest.raises(ValueError, match=r"must have rows with the columns .*, but `stream` lacks \['iuv'\]"):
        FrameStream(stream.remove_columns("iuv"), SHAPE, 0)
    match = "`stream` must have a shard for each worker of each process, got 4 shards for 5"
    with pytest.raises(ValueError, match=match):
        next(iter(FrameStream(stream, SHAPE, 0, num_processes=5)))
    scattered = dataset.select([0, 1, 6, 7, 2, 3]).to_iterable_dataset()
    match = "`stream` must have the rows of a video one after another, but '.*' comes twice"
    with pytest.raises(ValueError, match=match):
        list(FrameStream(scattered, SHAPE, 0))


def endless(stream, **place):
    return EndlessFrameStream(FrameStream(stream, SHAPE, 0, **place))


def positions(samples):
    return [tuple(sample.pop("stream_position").tolist()) for sample in samples]


def test_epochs_follow_one_another_and_samples_hold_the_position_of_their_video(stream):
    samples = list(islice(endless(stream), 80))
    told = positions(samples)
    epochs = FrameStream(stream, SHAPE, 0)
    expected = keys(epochs)
    epochs.set_epoch(1)
    assert keys(samples) == (expected + keys(epochs) + keys(samples)[72:])[:80]
    assert [position[0] for position in told] == [0] * 36 + [1] * 36 + [2] * 8
    starts = [number for number in range(80) if number == 0 or told[number] != told[number - 1]]
    assert starts == list(range(0, 80, 6)), "each position is the start of a video of six frames"
    for start in (0, 6, 30, 36, 42):
        again = endless(stream)
        again.load_positions([told[start]])
        assert keys(islice(again, 10)) == keys(samples[start : start + 10])


def test_each_worker_resumes_at_its_own_position(stream):
    options = {"batch_size": 3, "num_workers": 2}
    batches = list(islice(DataLoader(endless(stream), **options), 12))
    told = [batch["stream_position"][-1].tolist() for batch in batches]
    again = endless(stream)
    again.load_positions(told[4:6])  # each worker's third batch starts its second video
    resumed = list(islice(DataLoader(again, **options), 6))
    for batch, other in zip(batches[4:10], resumed):
        assert batch["noise"].equal(other["noise"])


def test_a_worker_without_samples_is_refused(dataset, tmp_path):
    rows = dataset.select(range(6)).cast_column("image", datasets.Image(decode=False))
    rows = [row | {"image": {"bytes": b"<html>", "path": None}} for row in rows]
    datasets.Dataset.from_list(rows, features=dataset.features).to_parquet(str(tmp_path / "train-00000.parquet"))
    bad = datasets.load_dataset("parquet", data_dir=str(tmp_path), split="train", streaming=True)
    streamed = EndlessFrameStream(FrameStream(bad, SHAPE, 0, PairSettings(bad_rows="skip")))
    with pytest.raises(ValueError, match="`stream` must have a sample for every worker, got none in epoch 0"):
        next(iter(streamed))


def test_the_first_videos_of_a_stream_are_read_into_memory(dataset, stream):
    taken = take_videos(stream, 2)
    assert taken["video_id"][:] == dataset["video_id"][:12] and taken["frame_index"][:] == dataset["frame_index"][:12]
    assert taken[7]["iuv"].tobytes() == dataset[7]["iuv"].tobytes()
    assert len(take_videos(stream, 99)) == len(dataset)
