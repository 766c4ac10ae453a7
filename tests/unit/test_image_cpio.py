"""The archive that Linux unpacks: of one form, whatever order its files came in."""

from __future__ import annotations

import pytest
from image_pieces import read_cpio

from adyton.errors import ConfigurationError
from adyton.host.image.cpio import BLOCK_BYTES, encode_cpio
from adyton.host.image.tree import File

FILES = {
    "usr/bin/program": File(content=b"\x7fELF", executable=True),
    "usr/a": File(content=b"four" * 100),
    "usr-b": File(content=b""),
    "ä": File(content=b"x"),
}


def test_everything_is_there_and_of_root_and_of_no_date() -> None:
    entries = read_cpio(encode_cpio(FILES, folders=["proc"]))
    assert {name: entry.content for name, entry in entries.items() if entry.mode & 0o100000} == {
        name: file.content for name, file in FILES.items()
    }
    assert {entry.other for entry in entries.values()} == {(0, 0, 0, 0, 0, 0, 0)}
    assert entries["usr/bin/program"].mode == 0o100755
    assert entries["usr/a"].mode == 0o100644


def test_each_folder_stands_before_what_lies_in_it() -> None:
    names = list(read_cpio(encode_cpio(FILES, folders=["enclave/data"])))
    assert names == sorted(names)
    assert {"usr", "usr/bin", "enclave", "enclave/data"} <= set(names)
    assert all(name.rpartition("/")[0] in ("", *names[:index]) for index, name in enumerate(names))


def test_no_two_entries_share_an_inode_so_linux_makes_no_hard_link() -> None:
    entries = read_cpio(encode_cpio(FILES)).values()
    assert len({entry.inode for entry in entries}) == len(entries)
    assert {entry.links for entry in entries if entry.mode & 0o100000} == {1}


def test_the_order_of_the_files_changes_nothing() -> None:
    backwards = dict(reversed(FILES.items()))
    assert encode_cpio(backwards, folders=["b", "a"]) == encode_cpio(FILES, folders=["a", "b", "a"])


def test_archives_can_follow_one_another() -> None:
    assert len(encode_cpio(FILES)) % BLOCK_BYTES == 0
    assert len(encode_cpio({})) == BLOCK_BYTES


def test_a_path_can_not_be_both_a_file_and_a_folder() -> None:
    with pytest.raises(ConfigurationError, match="both"):
        encode_cpio({"a": File(content=b""), "a/b": File(content=b"")})
    with pytest.raises(ConfigurationError, match="both"):
        encode_cpio({"a": File(content=b"")}, folders=["a"])
