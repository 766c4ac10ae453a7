"""The TPM of a virtual machine that has a state folder: the same at each start, or none.

swtpm makes a new TPM wherever it finds no state, without a word, and what was sealed to the old one is lost then. So
the public half of the attestation key, which comes of the TPM's own seed, is kept beside the state and compared.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from adyton.errors import LaunchError
from adyton.host.launch.qemu.vtpm import Vtpm
from adyton.host.launch.qemu.vtpm_authority import VtpmAuthority
from adyton.sealing.disk import sync_folder

FOLDER, KEY = "tpm", "tpm-key.der"
_MOST_BYTES: Final = 4096


def start_kept(state: Path, *, document: bytes | None, authority: VtpmAuthority, uid: int | None) -> Vtpm:
    """The TPM of that state folder, made at the first start. Otherwise as `Vtpm.start`."""
    try:
        vtpm = Vtpm.start(_folder(state), document=document, authority=authority, uid=uid)
    except LaunchError as problem:
        message = f"the TPM in {state / FOLDER} can't be used: {problem.message}"
        raise LaunchError(message, mend=problem.mend or _mend(state)) from problem
    try:
        _check_key(state, vtpm.attestation_key)
        _sync(state / FOLDER)
    except BaseException:
        vtpm.close()
        raise
    return vtpm


def _folder(state: Path) -> Path:
    folder = state / FOLDER
    if not os.path.lexists(folder):
        folder.mkdir(mode=0o700)
    elif folder.is_symlink() or not folder.is_dir():
        raise LaunchError("it should be a folder")
    return folder


def _check_key(state: Path, spki: bytes) -> None:
    file = state / KEY
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        _keep(file, spki)
        return
    with os.fdopen(descriptor, "rb") as source:
        if source.read(_MOST_BYTES) != spki:
            raise LaunchError(f"the TPM in {state / FOLDER} is not the one that was made there", mend=_mend(state))


def _keep(file: Path, spki: bytes) -> None:
    unfinished = file.with_suffix(".new")
    unfinished.unlink(missing_ok=True)
    with unfinished.open("xb") as target:
        target.write(spki)
        target.flush()
        os.fsync(target.fileno())
    unfinished.rename(file)
    sync_folder(file.parent)


def _sync(folder: Path) -> None:
    """swtpm replaces its file whole, so its death damages nothing, but it syncs none: a power cut would."""
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    sync_folder(folder)


def _mend(state: Path) -> str:
    return (
        f"put back {state / FOLDER} and {KEY} as they were; "
        "with both removed there is a new TPM, which unseals nothing of the old one"
    )
