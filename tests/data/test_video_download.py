"""Downloading videos from a server on loopback that fails in every way: only complete videos are kept, and all of
them arrive."""

import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import av
import pytest

from tests.launch import ROOT
from tests.video_server import VideoServer, video_bytes, write_sound
from training.data.video_download import VideoFacts, download_videos, find_videos, probe_video
from training.media.pictures import UnreadablePictures


GOOD = ("91D23ZVV6NS", "A1P+0ZhMAiS", "91-2Ab+dE-S")
VIDEOS = {video_id: video_bytes(seed) for seed, video_id in enumerate(GOOD)}
FIRST = GOOD[0]


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with VideoServer(VIDEOS) as server:
        yield server


def download(server, folder, video_ids=GOOD, **settings):
    return download_videos(video_ids, folder, base_url=server.base_url, **{"backoff": 0.01, "retries": 2} | settings)


def read(folder, name):
    return json.loads((folder / name).read_text())


def files_of(folder):
    return sorted(path.name for path in folder.iterdir())


def assert_all_good(folder, video_ids=GOOD, videos=VIDEOS):
    """Check that the folder holds exactly these videos, both lists and the lock."""
    assert files_of(folder) == sorted(
        [".lock", "manifest.json", "missing.json", *(f"{name}.mp4" for name in video_ids)]
    )
    for video_id in video_ids:
        assert (folder / f"{video_id}.mp4").read_bytes() == videos[video_id]


def test_facts_of_a_video(tmp_path):
    (tmp_path / "a.mp4").write_bytes(video_bytes(num_frames=5, size=(32, 48), fps=12.5))
    assert probe_video(tmp_path / "a.mp4") == VideoFacts(fps=12.5, width=32, height=48, num_frames=5)


def test_a_file_without_pictures_is_named_as_such(tmp_path):
    write_sound(tmp_path / "a.mp4", "aac")
    with pytest.raises(UnreadablePictures, match="got 'a.mp4': it has sound, but no pictures"):
        probe_video(tmp_path / "a.mp4")
    content = VIDEOS[FIRST].replace(b"avc1", b"xyz1")
    (tmp_path / "c.mp4").write_bytes(content)
    with pytest.raises(UnreadablePictures, match="got 'c.mp4': FFmpeg does not know its codec"):
        probe_video(tmp_path / "c.mp4")
    os.mkfifo(tmp_path / "b.mp4")
    with pytest.raises(UnreadablePictures, match="got 'b.mp4': it is not a file"):
        probe_video(tmp_path / "b.mp4")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html></html>",
        b"#EXTM3U\n#EXTINF:1,\n/etc/hostname\n",
        VIDEOS[FIRST][:-200],
        VIDEOS[FIRST][:3000] + bytes(3000) + VIDEOS[FIRST][6000:],
    ],
    ids=["empty", "html", "playlist", "cut", "damaged"],
)
def test_broken_files_are_refused(tmp_path, content):
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(UnreadablePictures, match="A video must be a readable mp4, got 'a.mp4'"):
        probe_video(tmp_path / "a.mp4")


def packet_places(path):
    """Return the sorted offsets of a video's packets in its file."""
    with av.open(path) as container:
        return sorted(packet.pos for packet in container.demux(video=0) if packet.size)


def test_a_video_cut_between_two_frames_is_refused(tmp_path):
    """Such a file, with its index in front, holds only complete frames."""
    (tmp_path / "a.mp4").write_bytes(VIDEOS[FIRST])
    with av.open(tmp_path / "a.mp4") as source:
        with av.open(tmp_path / "whole.mp4", "w", options={"movflags": "faststart"}) as container:
            stream = container.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    container.mux(packet)
    assert probe_video(tmp_path / "whole.mp4") == probe_video(tmp_path / "a.mp4")
    content = (tmp_path / "whole.mp4").read_bytes()
    places = packet_places(tmp_path / "whole.mp4")
    assert len(places) == 6 and content.index(b"moov") < places[0]
    for num_frames, place in enumerate(places):
        (tmp_path / "cut.mp4").write_bytes(content[:place])
        with pytest.raises(UnreadablePictures, match=f"got 'cut.mp4': it is cut, with {num_frames} of 6 frames"):
            probe_video(tmp_path / "cut.mp4")


def overwritten(content, box, offset, value):
    """Replace four bytes of one of a file's boxes; `offset` counts from the end of the box's name."""
    start = content.index(box) + len(box) + offset
    return content[:start] + value.to_bytes(4, "big") + content[start + 4 :]


def test_a_video_whose_edit_list_hides_frames_is_complete(tmp_path):
    """The list shows 100 ms of six frames of 1/30 s each."""
    (tmp_path / "a.mp4").write_bytes(overwritten(VIDEOS[FIRST], b"elst", 8, 100))
    assert probe_video(tmp_path / "a.mp4") == VideoFacts(fps=30, width=32, height=48, num_frames=3)


def test_a_video_without_a_frame_rate_is_refused(tmp_path):
    (tmp_path / "a.mp4").write_bytes(overwritten(video_bytes(num_frames=2), b"stts", 12, 0))  # frames that last 0 s
    with pytest.raises(UnreadablePictures, match="got 'a.mp4': it has no frame rate"):
        probe_video(tmp_path / "a.mp4")


def test_all_arrive_and_are_pinned(server, tmp_path):
    report = download(server, tmp_path / "new" / "videos")
    folder = tmp_path / "new" / "videos"
    assert report.videos == {video_id: folder / f"{video_id}.mp4" for video_id in GOOD} and report.missing == {}
    assert_all_good(folder)
    assert read(folder, "missing.json") == {}
    assert read(folder, "manifest.json") == {
        video_id: {
            "url": f"{server.base_url}/{video_id}.mp4",
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        for video_id, content in VIDEOS.items()
    }
    # `+` and `-` reach the server as they are.
    assert sorted(path for path, _ in server.requests) == sorted(f"/I/{video_id}.mp4" for video_id in GOOD)


def test_a_second_run_requests_and_writes_nothing(server, tmp_path):
    first = download(server, tmp_path)
    server.requests.clear()
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert download(server, tmp_path) == first and server.requests == []
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_dead_links_are_listed_and_leave_the_list_when_they_arrive(server, tmp_path):
    dead = {"AAAAAAAAAAA": 404, "BBBBBBBBBBB": 403, GOOD[1]: 500}
    server.faults = {video_id: itertools.repeat(status) for video_id, status in dead.items()}
    report = download(server, tmp_path, [*dead, *GOOD])
    assert list(report.videos) == [GOOD[0], GOOD[2]] and list(report.missing) == list(dead)
    assert read(tmp_path, "missing.json") == report.missing
    assert report.missing["AAAAAAAAAAA"] == "HTTP 404 Not Found"
    assert report.missing[GOOD[1]] == "HTTP 500 Internal Server Error, after 3 attempt(s)"
    assert [len(server.ranges(video_id)) for video_id in dead] == [1, 1, 3], "404 and 403 are final, 500 is retried"
    assert_all_good(tmp_path, [GOOD[0], GOOD[2]])

    server.faults.clear()
    server.requests.clear()
    assert list(download(server, tmp_path, [GOOD[1]]).videos) == [GOOD[1]]
    assert sorted(read(tmp_path, "missing.json")) == ["AAAAAAAAAAA", "BBBBBBBBBBB"], "others stay listed"
    assert sorted(read(tmp_path, "manifest.json")) == sorted(GOOD)
    assert [path for path, _ in server.requests] == [f"/I/{GOOD[1]}.mp4"]


@pytest.mark.parametrize("fault", [500, 503, 429, "refuse"])
def test_a_passing_failure_is_tried_again(server, tmp_path, fault):
    server.faults[FIRST] = [fault, fault]
    assert download(server, tmp_path).missing == {}
    assert len(server.ranges(FIRST)) == 3
    assert_all_good(tmp_path)


def test_with_many_failures_at_once_only_good_videos_stay(server, tmp_path):
    bad = {
        "AAAAAAAAAAA": 404,
        "BBBBBBBBBBB": 500,
        "CCCCCCCCCCC": "cut",
        "DDDDDDDDDDD": "html",
        "EEEEEEEEEEE": "refuse",
    }
    server.videos |= dict.fromkeys(bad, VIDEOS[FIRST])
    server.faults = {video_id: itertools.repeat(fault) for video_id, fault in bad.items()}
    server.faults |= {GOOD[0]: [500, "cut"], GOOD[1]: ["refuse", "cut"], GOOD[2]: ["cut", "whole"]}
    report = download(server, tmp_path, [*bad, *GOOD], num_workers=3)
    assert list(report.videos) == list(GOOD) and list(report.missing) == list(bad)
    for part in tmp_path.glob("*.part*"):
        assert part.name.startswith("CCCCCCCCCCC.part"), "only the beginning of a video stays for the next run"
        part.unlink()
    assert_all_good(tmp_path)


def test_the_pauses_between_attempts_grow(server, tmp_path):
    server.faults[FIRST] = [500] * 3
    start = time.monotonic()
    download(server, tmp_path, [FIRST], retries=3, backoff=0.05)
    assert time.monotonic() - start >= 0.05 + 0.1 + 0.2


def test_a_silent_server_times_out(server, tmp_path):
    server.faults[FIRST] = itertools.repeat("stall")
    report = download(server, tmp_path, timeout=0.1, retries=1)
    assert "timed out" in report.missing[FIRST] and len(report.videos) == 2
    assert not (tmp_path / f"{FIRST}.mp4").exists()


def test_html_instead_of_a_video_is_final(server, tmp_path):
    server.faults[FIRST] = itertools.repeat("html")
    report = download(server, tmp_path)
    assert "must be a readable mp4" in report.missing[FIRST] and len(server.ranges(FIRST)) == 1
    assert_all_good(tmp_path, GOOD[1:])


def test_an_incomplete_body_is_resumed(server, tmp_path):
    server.faults[FIRST] = ["cut", "cut"]
    assert download(server, tmp_path).missing == {}
    size = len(VIDEOS[FIRST])
    half = size // 2
    assert server.ranges(FIRST) == [None, f"bytes={half}-", f"bytes={half + (size - half) // 2}-"]
    assert_all_good(tmp_path)


def test_the_part_of_an_incomplete_body_stays_for_the_next_run(server, tmp_path):
    server.faults[FIRST] = ["cut"]
    report = download(server, tmp_path, retries=0)
    half = len(VIDEOS[FIRST]) // 2
    assert report.missing[FIRST] == f"{half} of {len(VIDEOS[FIRST])} bytes arrived, after 1 attempt(s)"
    assert (tmp_path / f"{FIRST}.part").read_bytes() == VIDEOS[FIRST][:half]
    assert FIRST not in read(tmp_path, "manifest.json") and not (tmp_path / f"{FIRST}.mp4").exists()
    download(server, tmp_path)
    assert server.ranges(FIRST) == [None, f"bytes={half}-"]
    assert_all_good(tmp_path)


@pytest.mark.parametrize("faults", [["cut", "whole"], ["cut", "shifted"], ["anonymous cut"]])
def test_where_resuming_is_impossible_the_whole_body_is_sent_again(server, tmp_path, faults):
    server.faults[FIRST] = faults
    assert download(server, tmp_path).missing == {}
    asked = server.ranges(FIRST)
    assert asked[-1] is None or faults[-1] == "whole"
    assert len(asked) == (3 if "shifted" in faults else 2)
    assert_all_good(tmp_path)


def test_halves_of_two_versions_are_never_joined(server, tmp_path):
    server.faults[FIRST] = ["cut"]
    download(server, tmp_path, retries=0)
    assert (tmp_path / f"{FIRST}.part").exists()
    server.videos[FIRST] = changed = VIDEOS[GOOD[1]][:-8] + b"\0\0\0\x08free"
    assert download(server, tmp_path).missing == {}
    assert_all_good(tmp_path, videos=VIDEOS | {FIRST: changed})


def test_a_remote_file_that_shrank_below_the_part_starts_again(server, tmp_path):
    server.faults[FIRST] = ["cut", 416]
    assert download(server, tmp_path).missing == {}
    assert server.ranges(FIRST)[2] is None
    assert_all_good(tmp_path)


def test_a_part_that_is_shorter_than_requested_is_continued(server, tmp_path):
    server.faults[FIRST] = ["cut", "short"]
    assert download(server, tmp_path).missing == {}
    size = len(VIDEOS[FIRST])
    assert server.ranges(FIRST) == [None, f"bytes={size // 2}-", f"bytes={(size // 2 + size) // 2}-"]
    assert_all_good(tmp_path)


def test_a_part_that_nobody_requested_is_never_taken_as_the_whole(server, tmp_path):
    server.videos[FIRST] = VIDEOS[FIRST] * 2  # half of it is a video too
    server.faults[FIRST] = itertools.repeat("short")
    report = download(server, tmp_path)
    assert report.missing[FIRST] == "the server sent another part than requested, after 3 attempt(s)"
    assert_all_good(tmp_path, GOOD[1:])


def answer(*headers, status="200 OK", body=(b"",)):
    """Return a fault that makes the server send this answer."""
    start = "\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode("latin-1")
    return lambda: itertools.chain([start], body)


def slowly(content):
    """Yield one byte every ten milliseconds."""
    for number in content:
        time.sleep(0.01)
        yield bytes([number])


ODD_ANSWERS = {
    **{
        f"length {length!r}": answer(f"Content-Length: {length}", body=[VIDEOS[FIRST]])
        for length in ("abc", "", "5, 5", "-1", "1e9", "²", "9" * 5000)
    },
    "two lengths": answer("Content-Length: 5", "Content-Length: 6", body=[b"12345"]),
    **{
        f"redirection to {address!r}": answer(f"Location: {address}", "Content-Length: 0", status="302 Found")
        for address in (
            *("http://[::1", "http://127.0.0.1:99999/", "http://127.0.0.1:port/", "http://a b/", "//", "http:", "\0"),
            *("ftp://127.0.0.1/a", "file:///etc/hostname", "data:,", "", "http://\u00a0/", f"http://{'a' * 500}/"),
            f"/I/{FIRST}.mp4",
        )
    },
    "chunk of no size": answer("Transfer-Encoding: chunked", body=[b"x\r\n"]),
    "chunk of negative size": answer("Transfer-Encoding: chunked", body=[b"-5\r\nabcdefgh"]),
    "no HTTP": lambda: [b"220 ready\r\n" * 9],
    "other version": lambda: [b"HTTP/9 200 OK\r\n\r\n"],
    "status of no number": answer(status="abc OK"),
    "status of five digits": answer(status="20000 OK"),
    "no content": answer(status="204 No Content"),
    "long reason": answer(status=f"404 {'x' * 60000}"),
    "many headers": answer(*(f"X-{number}: 1" for number in range(200))),
    "long header": answer(f"X: {'x' * 70000}"),
}


@pytest.mark.parametrize("odd", ODD_ANSWERS.values(), ids=ODD_ANSWERS)
def test_an_odd_answer_is_one_line_and_the_others_arrive(server, tmp_path, odd):
    server.faults[FIRST] = itertools.repeat(odd)
    report = download(server, tmp_path, retries=0, max_video_mb=1)
    assert list(report.missing) == [FIRST] and read(tmp_path, "missing.json") == report.missing
    reason = report.missing[FIRST]
    assert 0 < len(reason) < 600 and reason.isprintable()
    assert not (tmp_path / f"{FIRST}.mp4").exists()
    assert [path.read_bytes() for path in report.videos.values()] == [VIDEOS[video_id] for video_id in GOOD[1:]]


def test_a_version_that_cannot_be_sent_back_does_not_stop_the_next_attempt(server, tmp_path):
    headers = ('ETag: "a\r\n b"', f"Content-Length: {len(VIDEOS[FIRST])}")
    server.faults[FIRST] = [answer(*headers, body=[VIDEOS[FIRST][:1000]])]
    assert download(server, tmp_path).missing == {}
    assert server.ranges(FIRST) == [None, None]
    assert_all_good(tmp_path)


ENDLESS = {
    "body": answer(body=itertools.repeat(bytes(1 << 16))),
    "chunks": answer("Transfer-Encoding: chunked", body=itertools.repeat(b"10000\r\n" + bytes(1 << 16) + b"\r\n")),
    "redirection": answer("Location: /a", status="302 Found", body=itertools.repeat(bytes(1 << 16))),
    "early answers": lambda: itertools.repeat(b"HTTP/1.1 100 Continue\r\n\r\n" * 2000),
}


@pytest.mark.parametrize("endless", ENDLESS.values(), ids=ENDLESS)
def test_an_endless_answer_ends_at_the_limit(server, tmp_path, endless):
    sent = []

    def counted():
        for part in endless():
            sent.append(len(part))
            yield part

    server.faults[FIRST] = itertools.repeat(counted)
    report = download(server, tmp_path, retries=0, max_video_mb=0.2)
    assert list(report.missing) == [FIRST] and sum(sent) < 30e6
    assert_all_good(tmp_path, GOOD[1:])


def test_a_video_above_the_limit_is_refused_before_its_body_is_read(server, tmp_path):
    size = len(VIDEOS[FIRST])
    server.faults[FIRST] = ["cut"]
    download(server, tmp_path, [FIRST], retries=0)
    for limit in (size / 2e6 - 1e-3, size / 1e6 - 1e-6):
        report = download(server, tmp_path, [FIRST], max_video_mb=limit)
        assert report.missing[FIRST].endswith("MB, the limit of `max_video_mb`")
        assert not (tmp_path / f"{FIRST}.part").exists()
    assert len(server.ranges(FIRST)) == 3, "it was requested again"
    assert download(server, tmp_path, max_video_mb=max(map(len, VIDEOS.values())) / 1e6).missing == {}
    assert_all_good(tmp_path)


@pytest.mark.parametrize("slow", ["body", "headers"])
def test_a_slow_sender_is_given_up_at_the_deadline_and_continued_later(server, tmp_path, slow):
    content = VIDEOS[FIRST]
    tag = f'ETag: "{hashlib.sha256(content).hexdigest()[:16]}"'
    start = answer(tag, f"Content-Length: {len(content)}", body=slowly(content))
    server.faults[FIRST] = [start if slow == "body" else lambda: slowly(b"HTTP/1.1 200 OK\r\nX: " + content)]
    began = time.monotonic()
    report = download(server, tmp_path, max_video_seconds=0.3)
    assert 0.3 <= time.monotonic() - began < 10
    assert report.missing[FIRST].startswith("it did not arrive within 0.3 seconds: ")
    assert len(server.ranges(FIRST)) == 1 and len(report.videos) == 2
    if slow == "body":
        num_bytes = (tmp_path / f"{FIRST}.part").stat().st_size
        assert 0 < num_bytes < len(content)
    download(server, tmp_path)
    assert server.ranges(FIRST)[1:] == [f"bytes={num_bytes}-" if slow == "body" else None]
    assert_all_good(tmp_path)


PIN = {"url": "http://a/b.mp4", "bytes": 5, "sha256": "0" * 64}
BROKEN_LISTS = {
    "empty": "",
    "cut": '{"a": {"url"',
    "list": "[1, 2]",
    "number": "5",
    "null": "null",
    "deep": "[" * 100_000,
    "bytes": b"\xff\xfe{}",
    "digits": "{" + f'"{FIRST}": {"9" * 5000}' + "}",
    **{
        f"entry {entry!r:.40}": json.dumps({FIRST: entry})
        for entry in (5, None, [], {}, PIN | {"sha256": 5}, PIN | {"bytes": "5"}, PIN | {"url": None})
    },
}


@pytest.mark.parametrize("name", ["manifest.json", "missing.json"])
@pytest.mark.parametrize("content", BROKEN_LISTS.values(), ids=BROKEN_LISTS)
def test_a_broken_list_is_said_in_one_line_and_made_anew(server, tmp_path, caplog, name, content):
    for video_id, video in VIDEOS.items():
        (tmp_path / f"{video_id}.mp4").write_bytes(video)
    content = content if isinstance(content, bytes) else content.encode()
    (tmp_path / name).write_bytes(content)
    assert download(server, tmp_path).missing == {} and server.requests == []
    assert read(tmp_path, "missing.json") == {} and sorted(read(tmp_path, "manifest.json")) == sorted(GOOD)
    assert read(tmp_path, "manifest.json")[FIRST]["sha256"] == hashlib.sha256(VIDEOS[FIRST]).hexdigest()
    (message,) = caplog.messages
    assert str(tmp_path / name) in message and len(message) < 700 and message.isprintable()
    assert message.endswith(f"It is made anew; the former file is now {name}.rejected.")
    assert (tmp_path / f"{name}.rejected").read_bytes() == content


def test_the_whole_entries_of_a_broken_manifest_stay(server, tmp_path, caplog):
    (tmp_path / "manifest.json").write_text(json.dumps({"other": PIN, "broken": 5}))
    assert download(server, tmp_path).missing == {}
    assert sorted(read(tmp_path, "manifest.json")) == sorted([*GOOD, "other"])
    assert "has broken entries: ['broken']" in caplog.text


def test_a_folder_in_place_of_a_list_is_put_aside(server, tmp_path, caplog):
    (tmp_path / "manifest.json").mkdir()
    assert download(server, tmp_path).missing == {} and (tmp_path / "manifest.json.rejected").is_dir()
    assert sorted(read(tmp_path, "manifest.json")) == sorted(GOOD)


def take_rejected(folder):
    """Return the content of the first video's rejected file, and remove the file."""
    content = (folder / f"{FIRST}.rejected").read_bytes()
    (folder / f"{FIRST}.rejected").unlink()
    return content


def test_a_broken_file_is_replaced_and_a_complete_one_is_pinned_without_a_request(server, tmp_path):
    (tmp_path / f"{FIRST}.mp4").write_bytes(VIDEOS[FIRST][:1000])
    (tmp_path / f"{GOOD[1]}.mp4").write_bytes(VIDEOS[GOOD[1]])
    assert download(server, tmp_path).missing == {}
    assert (len(server.ranges(FIRST)), len(server.ranges(GOOD[1]))) == (1, 0)
    assert sorted(read(tmp_path, "manifest.json")) == sorted(GOOD)
    assert take_rejected(tmp_path) == VIDEOS[FIRST][:1000]
    assert_all_good(tmp_path)


def test_a_refused_file_is_kept_as_rejected_if_its_link_is_dead(server, tmp_path):
    download(server, tmp_path)
    (tmp_path / f"{FIRST}.mp4").write_bytes(VIDEOS[GOOD[1]])  # a good video, but not the one in the manifest
    server.faults[FIRST] = itertools.repeat(404)
    for _ in range(2):
        assert download(server, tmp_path).missing == {FIRST: "HTTP 404 Not Found"}
        assert list(find_videos(GOOD, tmp_path).missing) == [FIRST]
    assert take_rejected(tmp_path) == VIDEOS[GOOD[1]]
    assert_all_good(tmp_path, GOOD[1:])


def test_a_file_damaged_on_disk_is_downloaded_again(server, tmp_path):
    download(server, tmp_path)
    content = bytearray(VIDEOS[FIRST])
    content[-1] ^= 1  # one bit, which no decoder notices
    (tmp_path / f"{FIRST}.mp4").write_bytes(content)
    assert download(server, tmp_path).missing == {}
    assert take_rejected(tmp_path) == content
    assert_all_good(tmp_path)


def test_another_video_than_the_pinned_one_is_refused(server, tmp_path):
    download(server, tmp_path)
    manifest = read(tmp_path, "manifest.json")
    (tmp_path / f"{FIRST}.mp4").unlink()
    server.videos[FIRST] = video_bytes(99)
    report = download(server, tmp_path)
    assert report.missing[FIRST].startswith("its sha256 is ")
    assert read(tmp_path, "manifest.json") == manifest
    assert_all_good(tmp_path, GOOD[1:])


def test_the_number_of_simultaneous_downloads_is_limited(server, tmp_path):
    video_ids = [f"{number:011d}" for number in range(12)]
    server.videos = dict.fromkeys(video_ids, VIDEOS[FIRST])
    download(server, tmp_path, video_ids, num_workers=3)
    assert 1 <= server.most_at_once <= 3
    assert_all_good(tmp_path, video_ids, server.videos)


def test_a_process_waits_for_another_in_the_same_folder(server, tmp_path):
    with ThreadPoolExecutor(2) as pool:
        reports = list(pool.map(lambda _: download(server, tmp_path), range(2)))
    assert reports[0] == reports[1] and reports[0].missing == {}
    assert len(server.requests) == len(GOOD)
    assert_all_good(tmp_path)


def test_a_pipe_with_a_videos_name_is_not_waited_for(server, tmp_path):
    os.mkfifo(tmp_path / f"{FIRST}.mp4")
    assert download(server, tmp_path).missing == {}
    assert_all_good(tmp_path)


def test_an_error_of_the_disk_ends_the_run(server, tmp_path):
    (tmp_path / f"{FIRST}.part").mkdir()
    with pytest.raises(IsADirectoryError):
        download(server, tmp_path)


def test_bad_arguments_are_refused(tmp_path):
    with pytest.raises(ValueError, match="`video_ids` must hold letters, digits, .*, got '../secret'"):
        download_videos(["../secret"], tmp_path / "videos")
    with pytest.raises(ValueError, match="`num_workers` must be at least 1, got 0"):
        download_videos([FIRST], tmp_path / "videos", num_workers=0)
    with pytest.raises(ValueError, match="`retries` must be at least 0, got -1"):
        download_videos([FIRST], tmp_path / "videos", retries=-1)
    for name in ("max_video_mb", "max_video_seconds"):
        for value in (0, -1, float("nan")):
            with pytest.raises(ValueError, match=f"`{name}` must be above 0, got {value}"):
                download_videos([FIRST], tmp_path / "videos", **{name: value})
    with pytest.raises(ValueError, match="`video_dir` must be a folder, got .*videos"):
        find_videos([FIRST], tmp_path / "videos")
    assert not (tmp_path / "videos").exists()


def test_videos_on_disk_are_found(tmp_path):
    (tmp_path / f"{FIRST}.mp4").write_bytes(VIDEOS[FIRST])
    (tmp_path / f"{GOOD[1]}.part").write_bytes(VIDEOS[GOOD[1]])
    report = find_videos(GOOD[:2], tmp_path)
    assert report.videos == {FIRST: tmp_path / f"{FIRST}.mp4"} and list(report.missing) == [GOOD[1]]


def wait_for_two_videos_and_a_half(server, folder):
    """Wait until the server has stalled half way through the first video and the other two are complete."""
    assert server.stalled.wait(60)
    part, half, deadline = folder / f"{FIRST}.part", len(VIDEOS[FIRST]) // 2, time.monotonic() + 30
    while len(list(folder.glob("*.mp4"))) < 2 or not part.exists() or part.stat().st_size < half:
        assert time.monotonic() < deadline, files_of(folder)
        time.sleep(0.02)


def assert_the_next_run_completes(server, folder):
    half = len(VIDEOS[FIRST]) // 2
    assert not (folder / f"{FIRST}.mp4").exists() and (folder / f"{FIRST}.part").stat().st_size == half
    # The run may have ended between a video and its entry in the manifest; the next run adds the entry.
    assert not (folder / "manifest.json").exists() or FIRST not in read(folder, "manifest.json")
    server.requests.clear()
    assert download(server, folder).missing == {}
    assert server.requests == [(f"/I/{FIRST}.mp4", f"bytes={half}-")]
    assert_all_good(folder)


@pytest.mark.slow
def test_a_run_that_is_killed_half_way_is_completed_by_the_next(server, tmp_path):
    server.faults[FIRST] = ["stall"]
    (tmp_path / ".manifest.json.1.partial").write_text("{")  # as left by a run killed while writing the manifest
    code = "import sys; from training.data.video_download import download_videos\n"
    code += "download_videos(sys.argv[3:], sys.argv[1], base_url=sys.argv[2], num_workers=2)"
    command = [sys.executable, "-c", code, str(tmp_path), server.base_url, *GOOD]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        wait_for_two_videos_and_a_half(server, tmp_path)
    finally:
        process.kill()
        process.wait()
    assert_the_next_run_completes(server, tmp_path)


def test_an_interruption_does_not_wait_for_a_silent_server(server, tmp_path):
    server.faults[FIRST] = ["stall"]
    interrupted_at = []

    def interrupt():
        wait_for_two_videos_and_a_half(server, tmp_path)
        interrupted_at.append(time.monotonic())
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        download(server, tmp_path)
    assert time.monotonic() - interrupted_at[0] < 5
    assert_the_next_run_completes(server, tmp_path)
