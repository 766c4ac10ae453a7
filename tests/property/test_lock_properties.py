"""requirements.lock however it is laid out: what pip would read of it is read, or it is refused."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.utils import canonicalize_name

from adyton.bundle.lock import LockedDistribution, parse_lock
from adyton.errors import ConfigurationError

pip_lines = pytest.importorskip("pip._internal.req.req_file").preprocess

DIGESTS = st.binary(min_size=32, max_size=32).map(bytes.hex)
LOCKED = st.builds(
    LockedDistribution,
    name=st.from_regex(r"[a-z][a-z0-9]{0,5}", fullmatch=True),
    version=st.from_regex(r"[1-9]\.[0-9]", fullmatch=True),
    wanted=st.booleans(),
    sha256=st.lists(DIGESTS, min_size=1, max_size=3).map(tuple),
)
GAPS = st.sampled_from([" ", "\t", "   ", " \\\n    ", "\\\r\n\t", " \\\n \\\n"])
ENDS = st.sampled_from(["\n", "\r\n", "\r", "  # via b\n", "\t#\n", "\n# made \\\n", "\n\n    # via \\\r\n", " \\\n\n"])
PIECES = st.sampled_from(
    [
        "a==1",
        "b==2",
        "; os_name == 'x'",
        "--hash=sha256:" + "a" * 64,
        "#",
        "\\",
        " ",
        "\t",
        "\n",
        "\r\n",
        "\f",
        "\ufeff",
        "-r x",
    ]
)


@given(st.data(), st.lists(LOCKED, max_size=5))
def test_every_layout_says_the_same(data: st.DataObject, lock: list[LockedDistribution]) -> None:
    text = ""
    for each in lock:
        marker = f"os_name {'==' if each.wanted else '!='} 'vms'"
        text += f"{each.name}=={each.version} ; {marker}"
        text += "".join(f"{data.draw(GAPS)}--hash=sha256:{digest}" for digest in each.sha256) + data.draw(ENDS)
    assert parse_lock(text.encode(), {"os_name": "vms"}) == tuple(lock)


@settings(max_examples=500)
@given(st.lists(PIECES, max_size=16).map("".join))
def test_what_pip_reads_is_read_or_all_is_refused(text: str) -> None:
    try:
        lock = parse_lock(text.encode())
    except ConfigurationError:
        return
    lines = [line for _, line in pip_lines(text)]
    assert len(lock) == len(lines)
    for each, line in zip(lock, lines, strict=True):
        assert each.name == canonicalize_name(re.split("[=; ]", line)[0])
        assert len(each.sha256) == line.count("--hash=")
