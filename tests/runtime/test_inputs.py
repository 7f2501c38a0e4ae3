"""Which videos a run works on, and what their outputs are called."""

import os
from pathlib import Path

import pytest

from vfx_engines.errors import UsageError, shown
from vfx_runtime.inputs import find_videos


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def names(*arguments, root=None):
    return [job.name for job in find_videos(arguments, root)]


def error(*arguments, root=None):
    with pytest.raises(UsageError) as caught:
        find_videos(arguments, root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_is_named_by_its_stem(tmp_path, monkeypatch):
    touch(tmp_path / "deep/a.b.mp4", tmp_path / "notes.pdf")
    assert names(tmp_path / "deep/a.b.mp4", tmp_path / "notes.pdf") == ["a.b", "notes"]
    monkeypatch.chdir(tmp_path)
    (job,) = find_videos(["deep/../deep/a.b.mp4"])
    assert (job.path, job.name) == (tmp_path / "deep/a.b.mp4", "a.b")


def test_a_missing_video_is_a_job_and_a_missing_folder_an_error(tmp_path):
    assert names(tmp_path / "gone.MP4") == ["gone"]
    assert "no such file or folder" in error(tmp_path / "gone")
    assert "no such list" in error(tmp_path / "gone.txt")
    assert "empty text" in error("")
    assert "no videos given" in error()


def test_a_folder_is_searched_in_order_without_hidden_and_other_files(tmp_path):
    top = tmp_path / "clips"
    touch(top / "b/2.MKV", top / "b/1.webm", top / "a.mp4", top / "readme.md", top / ".x.mp4")
    touch(top / ".cache/y.mp4", top / "b.avi", tmp_path / "elsewhere.mp4")
    (top / "link.mp4").symlink_to(tmp_path / "elsewhere.mp4")
    (top / "dangling.mp4").symlink_to(tmp_path / "nowhere")
    os.mkfifo(top / "pipe.mp4")
    assert names(top) == ["a", "b", "b/1", "b/2", "dangling", "link"]
    assert names(top / "b", root=tmp_path) == ["clips/b/1", "clips/b/2"]


def test_links_to_folders_are_followed_but_loops_end(tmp_path):
    touch(tmp_path / "top/x.mp4", tmp_path / "other/y.mp4")
    (tmp_path / "top/up").symlink_to(tmp_path / "top")
    (tmp_path / "top/other").symlink_to(tmp_path / "other")
    (tmp_path / "other/back").symlink_to(tmp_path / "top")
    assert names(tmp_path / "top") == ["other/y", "x"]


def test_a_link_to_itself_hides_nothing(tmp_path):
    touch(tmp_path / "clips/a.mp4", tmp_path / "clips/z.mp4")
    for name in ("b.mp4", "notes", "0"):
        (tmp_path / "clips" / name).symlink_to(name)
    # A link that is named like a video counts as a video that cannot be read.
    assert names(tmp_path / "clips") == ["a", "b", "z"]
    (tmp_path / "clips/list.txt").write_text("a\nz\n")
    assert [job.path.name for job in find_videos([tmp_path / "clips/list.txt"])] == ["a.mp4", "z.mp4"]


def test_a_folder_without_videos_is_an_error(tmp_path):
    touch(tmp_path / "a.txt")
    assert "no video in this folder" in error(tmp_path)


def test_listed_paths_are_relative_to_the_list(tmp_path):
    listing = tmp_path / "data/list.txt"
    touch(tmp_path / "data/sub/a.mp4")
    far = tmp_path / "far/away/c.mp4"
    listing.write_text(f"sub/a.mp4\n\n  \n./b.mp4\n{far}\n../up.mp4\nsub/../d.mp4\n")
    jobs = find_videos([listing])
    assert [job.name for job in jobs] == ["sub/a", "b", "c", "up", "d"]
    assert [job.path for job in jobs] == [
        tmp_path / "data/sub/a.mp4",
        tmp_path / "data/b.mp4",
        far,
        tmp_path / "up.mp4",
        tmp_path / "data/d.mp4",
    ]


def test_an_absolute_path_below_the_list_keeps_its_folders(tmp_path):
    (tmp_path / "list.txt").write_text(f"{tmp_path}/sub/a.mp4\n/{tmp_path}/sub/b.mp4")
    assert names(tmp_path / "list.txt") == ["sub/a", "sub/b"]


def test_no_name_leaves_the_output_folder(tmp_path):
    (tmp_path / "list.txt").write_text("../../../../../../etc/a.mp4\n/b.mp4\nx/../../c.mp4\n..mp4\n")
    assert names(tmp_path / "list.txt") == ["a", "b", "c", "..mp4"]


def test_parent_folders_behind_links_are_the_kernels(tmp_path):
    touch(tmp_path / "real/deep/a.mp4", tmp_path / "real/b.mp4", tmp_path / "b.mp4")
    (tmp_path / "link").symlink_to(tmp_path / "real/deep")
    (tmp_path / "list.txt").write_text("link/../b.mp4\nlink/a.mp4")
    jobs = find_videos([tmp_path / "list.txt"])
    assert [(job.name, job.path.resolve()) for job in jobs] == [
        ("real/b", tmp_path / "real/b.mp4"),
        ("link/a", tmp_path / "real/deep/a.mp4"),
    ]


@pytest.mark.parametrize("line", ["sub/", ".", "..", "a/.."])
def test_a_listed_folder_is_an_error(tmp_path, line):
    (tmp_path / "list.txt").write_text(f"a.mp4\n{line}\n")
    assert "line 2" in error(tmp_path / "list.txt")


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbfa.mp4\r\nb \xc3\xa9.mp4\r\n",
        "a.mp4\r\nb é.mp4\r\n".encode("utf-16"),
        "a.mp4\nb é.mp4".encode(),
    ],
)
def test_lists_of_other_systems(tmp_path, data):
    (tmp_path / "list.TXT").write_bytes(data)
    assert names(tmp_path / "list.TXT") == ["a", "b é"]


def test_odd_names_in_a_list(tmp_path):
    touch(tmp_path / "#1.mp4", tmp_path / " padded.mp4 ")
    lines = ["#1.mp4", "# a comment.mp4", " padded.mp4 ", " stray.mp4\t", "a\u2028b.mp4", "'q\".mp4"]
    (tmp_path / "list.txt").write_bytes("\n".join(lines).encode() + b"\nnot-utf8-\xff.mp4")
    jobs = find_videos([tmp_path / "list.txt"])
    assert [job.name for job in jobs[:5]] == ["#1", " padded", "stray", "a\u2028b", "'q\""]
    assert os.fsencode(jobs[5].path).endswith(b"/not-utf8-\xff.mp4")


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n"])
def test_an_empty_list_is_an_error(tmp_path, text):
    (tmp_path / "list.txt").write_text(text)
    assert "list is empty" in error(tmp_path / "list.txt")


def test_a_binary_list_is_an_error(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"\0\0\0\x18ftypmp42\n")
    assert "line 1: not text" in error(tmp_path / "list.txt")


@pytest.mark.parametrize(
    "text",
    [
        "a.mp4,1\nb c.mp4,2\n",
        "id,Video \n1,a.mp4\n2,b c.mp4\n",
        'path,label\r\n"a.mp4",x\r\n\r\nb c.mp4,y\r\n',
        "video_path,feature_path\na.mp4,a.npy\nb c.mp4,b.npy\n",
    ],
)
def test_csv_columns(tmp_path, text):
    (tmp_path / "list.csv").write_text(text)
    assert names(tmp_path / "list.csv") == ["a", "b c"]


def test_csv_quotes_and_short_rows(tmp_path):
    (tmp_path / "list.csv").write_text('"new\nline, ""x"".mp4",1\n')
    assert names(tmp_path / "list.csv") == ['new\nline, "x"']
    (tmp_path / "short.csv").write_text("id,video\n1,a.mp4\n2\n")
    assert "line 3: no path in column 2" in error(tmp_path / "short.csv")
    (tmp_path / "head.csv").write_text("id,video\n")
    assert "list is empty" in error(tmp_path / "head.csv")


@pytest.mark.parametrize("suffix", [".csv", ".txt"])
def test_a_list_of_slowfast_feature_extractor(tmp_path, suffix):
    """``video_list.csv`` has one path per line, without suffix and without a header."""
    touch(tmp_path / "day 1/a.MP4", tmp_path / "day 1/b.c.mp4", tmp_path / "d.mkv", tmp_path / "d.jpg")
    touch(tmp_path / "e", tmp_path / "e.mp4", tmp_path / "f.1", tmp_path / "g/h.mp4", tmp_path / "sub/i.mp4")
    (tmp_path / "sub/i").mkdir()
    listing = tmp_path / f"video_list{suffix}"
    listing.write_text("d\n\nday 1/a\nday 1/b.c\n\ne\nf.1\ngone\nnowhere/j\nsub/i\n")
    jobs = find_videos([listing])
    assert [job.name for job in jobs] == ["d", "day 1/a", "day 1/b.c", "e", "f", "gone", "nowhere/j", "sub/i"]
    files = ["d.mkv", "day 1/a.MP4", "day 1/b.c.mp4", "e", "f.1", "gone", "nowhere/j", "sub/i.mp4"]
    assert [job.path for job in jobs] == [tmp_path / file for file in files]


def test_a_video_called_video_is_no_header(tmp_path):
    listing = tmp_path / "list.csv"
    touch(tmp_path / "video/a.mp4")
    listing.write_text("video\nvideo/a\n")
    assert names(listing) == ["video/a"]
    touch(tmp_path / "video.mp4")
    assert names(listing) == ["video", "video/a"]
    listing.write_text("video,label\nvideo/a,1\n")
    assert names(listing) == ["video/a"]


def test_a_path_without_suffix_that_stands_for_two(tmp_path):
    touch(tmp_path / "sub/a.mp4", tmp_path / "sub/a.avi", tmp_path / "a.wav")
    (tmp_path / "list.csv").write_text("sub/b\nsub/a\n")
    assert "line 2: a may be a.avi or a.mp4: write the suffix" in error(tmp_path / "list.csv")
    (tmp_path / "list.csv").write_text("a\n")
    assert find_videos([tmp_path / "list.csv"])[0].path == tmp_path / "a"
    assert find_videos([tmp_path / "list.csv"], sound=True)[0].path == tmp_path / "a.wav"


def test_one_file_given_twice_is_done_once(tmp_path):
    touch(tmp_path / "sub/a.mp4")
    (tmp_path / "list.txt").write_text("sub/a.mp4\n./sub//a.mp4\n")
    assert names(tmp_path / "list.txt", tmp_path / "sub/a.mp4", tmp_path / "sub") == ["sub/a"]


def test_two_videos_of_one_output_are_refused(tmp_path):
    touch(tmp_path / "a.mp4", tmp_path / "a.avi", tmp_path / "x/b.mp4", tmp_path / "y/b.mp4")
    text = error(tmp_path / "a.mp4", tmp_path / "a.avi")
    assert "a.mp4" in text
    assert "a.avi" in text
    assert "--root" not in text
    text = error(tmp_path / "x", tmp_path / "y")
    assert f"--root {tmp_path} keeps" in text
    assert names(tmp_path / "x", tmp_path / "y", root=tmp_path) == ["x/b", "y/b"]


def test_root_must_hold_every_video(tmp_path):
    touch(tmp_path / "x/b.mp4", tmp_path / "xy/c.mp4")
    assert f"--root {tmp_path}/x" in error(tmp_path / "xy/c.mp4", root=tmp_path / "x")
    assert names("/a/b.mp4", root=Path("/")) == ["a/b"]


def test_adding_a_line_renames_nothing(tmp_path):
    lines = ["a/1.mp4", "/data/b/2.mp4", "../3.mp4"]
    listing = tmp_path / "list.txt"
    listing.write_text("\n".join(lines))
    before = names(listing)
    listing.write_text("\n".join(["/other/place/4.mp4", *lines]))
    assert names(listing) == ["4", *before]


def test_shown_is_one_line():
    assert shown("a b/é.mp4") == "a b/é.mp4"
    assert shown("a\nb") == "'a\\nb'"
    assert shown("a\udcff") == "'a\\udcff'"
    assert shown(" a") == "' a'"
