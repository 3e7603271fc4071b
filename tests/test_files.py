"""Files are written whole or not at all, and only regular files of a bounded size are read."""

import errno
import os
import resource
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mobilenet.common.files import check_target, read_regular, shown, write_atomic
from mobilenet.errors import DataError, MobileNetError


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for data in (b"", b"x", bytes(range(256)) * 5000):
        write_atomic(path, data)
        assert read_regular(path, len(data)) == data
    write_atomic(path, memoryview(b"view"))
    assert path.read_bytes() == b"view"
    assert os.listdir(tmp_path) == ["a"]


def test_a_written_file_has_the_ordinary_permissions(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        write_atomic(tmp_path / "a", b"x")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_a_link_is_replaced_and_its_target_left_alone(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "link").symlink_to("target")
    write_atomic(tmp_path / "link", b"new")
    assert (tmp_path / "target").read_bytes() == b"old"
    assert not (tmp_path / "link").is_symlink()


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        for refuse in (check_target, lambda path: write_atomic(path, b"new")):
            with pytest.raises(
                MobileNetError, match=f"{name}: can't be written: is a FIFO, needed is the name of a file"
            ):
                refuse(tmp_path / name)
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "link").is_symlink()


def test_a_target_that_can_not_be_written_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_target(tmp_path / "new")
    with pytest.raises(MobileNetError, match=r"new: can't be written: the folder \S+none is missing; make it"):
        check_target(tmp_path / "none" / "new")
    monkeypatch.setattr("mobilenet.common.files.os.access", lambda *_: False)  # which root never gets
    with pytest.raises(MobileNetError, match=r"new: can't be written: nothing may be written into "):
        check_target(tmp_path / "new")


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES])
def test_after_a_failure_the_old_file_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(f"mobilenet.common.files.os.{call}", fail)
        with pytest.raises(MobileNetError, match=f"a: can't be written: {os.strerror(code)}"):
            write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_disk_that_fills_up_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(MobileNetError, match="a: can't be written: File too large"):
            write_atomic(path, bytes(1_000_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_ctrl_c_while_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mobilenet.common.files.os.fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_atomic(tmp_path / "a", b"new")
    assert os.listdir(tmp_path) == []


def test_data_is_on_the_disk_before_it_gets_its_name_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        calls.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "data")
        real_fsync(descriptor)

    def replace(source: Path, target: Path) -> None:
        calls.append("name")
        real_replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("mobilenet.common.files.os.fsync", fsync)
        patch.setattr("mobilenet.common.files.os.replace", replace)
        write_atomic(tmp_path / "a", b"x")
    assert calls == ["data", "name", "folder"]


@pytest.mark.parametrize("name", ["missing/a", "n" * 300, "a\0b", "\ud800"])
def test_a_path_that_can_not_be_written_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(MobileNetError, match="can't be written"):
        write_atomic(tmp_path / name, b"x")
    assert os.listdir(tmp_path) == []


def test_the_limit_is_inclusive(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert read_regular(tmp_path / "a", 5) == b"12345"
    with pytest.raises(DataError, match="a: has 5 bytes, at most 4 are allowed"):
        read_regular(tmp_path / "a", 4)


def test_a_link_is_followed_unless_told_not_to(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "link").symlink_to("a")
    assert read_regular(tmp_path / "link", 9) == b"x"
    assert read_regular(tmp_path / "a", 9, follow_symlinks=False) == b"x"
    with pytest.raises(DataError, match="link: can't be read"):
        read_regular(tmp_path / "link", 9, follow_symlinks=False)


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's name is limited to 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda _: None, "No such file"),
        (Path.mkdir, "is a folder, a regular file is needed"),
        (os.mkfifo, "is a FIFO, a regular file is needed"),
        (_loop, "symbolic links"),
        (_socket, "No such device"),
        (lambda path: path.symlink_to("/dev/zero"), "is a device, a regular file is needed"),
    ],
)
@pytest.mark.timeout(120)
def test_only_regular_files_are_read_and_nothing_hangs(
    tmp_path: Path, make: Callable[[Path], None], reason: str
) -> None:
    make(tmp_path / "a")
    with pytest.raises(DataError, match=f"a: .*{reason}"):
        read_regular(tmp_path / "a", 100)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").touch(mode=0)
    with pytest.raises(DataError, match="a: can't be read: Permission denied"):
        read_regular(tmp_path / "a", 100)


@pytest.mark.parametrize("name", ["n" * 300, os.fsdecode(b"\xff\xfe.jpg"), "a\0b", "\ud800", "line\nbreak\x1b[31m"])
def test_a_strange_name_gives_a_printable_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError) as caught:
        read_regular(tmp_path / name, 100)
    text = str(caught.value)
    assert text.isprintable()
    assert len(text.encode("utf-8")) < 500


def test_a_name_that_is_not_utf8_is_read(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff.jpg")
    try:
        path.write_bytes(b"x")
    except OSError:
        pytest.skip("this file system holds UTF-8 names only")
    assert read_regular(path, 9) == b"x"
    assert shown(path).endswith("\\xff.jpg")


def test_names_are_shown_as_they_are_when_they_can_be() -> None:
    assert shown("photos/Käfer.jpg") == "photos/Käfer.jpg"
    assert len(shown("n" * 1000)) == 201


@pytest.mark.parametrize("size", [3, 7])
def test_a_file_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    real = os.fstat

    def change(descriptor: int) -> os.stat_result:
        status = real(descriptor)
        os.truncate(path, size)
        return status

    with monkeypatch.context() as patch:
        patch.setattr("mobilenet.common.files.os.fstat", change)
        with pytest.raises(DataError, match="a: changed while it was read"):
            read_regular(path, 100)


def test_a_read_that_comes_in_parts_is_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    real = os.read
    with monkeypatch.context() as patch:
        patch.setattr("mobilenet.common.files.os.read", lambda descriptor, count: real(descriptor, min(count, 2)))
        assert read_regular(tmp_path / "a", 9) == b"12345"
