"""The attestation report (ABI, section 7.3): 1184 bytes, little endian, nothing after them. No I/O, nothing trusted.

    000 version            4   090 measurement        48   1A0 chip_id             64
    004 guest_svn          4   0C0 host_data          32   1E0 committed_tcb        8
    008 policy             8   0E0 id_key_digest      48   1E8 current version      3 build, minor, major
    010 family_id         16   110 author_key_digest  48   1EC committed version    3
    020 image_id          16   140 report_id          32   1F0 launch_tcb           8
    030 vmpl               4   160 report_id_ma       32   1F8 launch mitigations   8 from version 5 on
    034 signature_algo     4   180 reported_tcb        8   200 current mitigations  8 from version 5 on
    038 current_tcb        8   188 CPUID               3 family, model, stepping: from version 3 on
    040 platform_info      8
    048 key_info           4   2A0 signature: R and S, 72 bytes each, of ECDSA over bytes 000 to 29F
    050 report_data       64

All between is reserved, and zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from adyton.errors import EvidenceError

REPORT_BYTES: Final = 0x4A0
SIGNED_BYTES: Final = 0x2A0
VERSIONS: Final = (2, 3, 5)
"""AMD has published no layout of version 4, which some machines sent in 2025. Version 6, of ABI revision 1.59, is newer
than this code. In neither can it be known what the reserved bytes mean."""
ECDSA_P384_SHA384: Final = 1
MAX_VMPL: Final = 3

Signer = Literal["VCEK", "VLEK"]
_SIGNERS: Final[Mapping[int, Signer]] = {0: "VCEK", 1: "VLEK"}

_RESERVED: Final = (
    (0x4C, 0x50),
    (0x18B, 0x1A0),
    (0x1EB, 0x1EC),
    (0x1EF, 0x1F0),
    (0x208, SIGNED_BYTES),
    (0x2D0, 0x2E8),  # R has 48 bytes; 72 are there for a longer curve
    (0x318, 0x330),  # S as well
    (0x330, REPORT_BYTES),
)
_CPUID: Final = (0x188, 0x18B)
_MITIGATIONS: Final = (0x1F8, 0x208)
_RESERVED_IN: Final = {
    2: (*_RESERVED, _CPUID, _MITIGATIONS),
    3: (*_RESERVED, _MITIGATIONS),
    5: _RESERVED,
}

_POLICY_BITS: Final = {
    16: "smt",
    18: "migrate_ma",
    19: "debug",
    20: "single_socket",
    21: "cxl_allow",
    22: "mem_aes_256_xts",
    23: "rapl_disabled",
    24: "ciphertext_hiding",
    25: "page_swap_disabled",
}
_PLATFORM_BITS: Final = {
    0: "smt",
    1: "tsme",
    2: "ecc",
    3: "rapl_disabled",
    4: "ciphertext_hiding",
    5: "alias_check_complete",
    6: "iommu_write_safe",
    7: "tio",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestPolicy:
    """What the guest's owner demanded of the firmware at launch (ABI, section 4.3).

    `abi_major` and `abi_minor` are the least ABI version; `smt`, `migrate_ma`, `debug` and `cxl_allow` allow something,
    the rest demands it. `debug` lets the host read and write all of the guest's memory.
    """

    abi_major: int
    abi_minor: int
    smt: bool
    migrate_ma: bool
    debug: bool
    single_socket: bool
    cxl_allow: bool
    mem_aes_256_xts: bool
    rapl_disabled: bool
    ciphertext_hiding: bool
    page_swap_disabled: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformInfo:
    """What is so on the machine: which features are on, and whether the check for aliased memory was passed."""

    smt: bool
    tsme: bool
    ecc: bool
    rapl_disabled: bool
    ciphertext_hiding: bool
    alias_check_complete: bool
    iommu_write_safe: bool
    tio: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpReport:
    """A well-formed report, not verified: every field is only what somebody claims.

    TCB versions are 8 bytes each, whose layout the product decides (`products`). `cpuid` is family, model, stepping;
    None in version 2, as the mitigations are before version 5. Firmware versions are major, minor, build.
    `signed_part` is what R and S are over.
    """

    version: int
    guest_svn: int
    policy: GuestPolicy
    family_id: bytes
    image_id: bytes
    vmpl: int
    current_tcb: bytes
    platform_info: PlatformInfo
    signer: Signer
    mask_chip_key: bool
    author_key_enabled: bool
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    report_id: bytes
    report_id_ma: bytes
    reported_tcb: bytes
    cpuid: tuple[int, int, int] | None
    chip_id: bytes
    committed_tcb: bytes
    current_version: tuple[int, int, int]
    committed_version: tuple[int, int, int]
    launch_tcb: bytes
    launch_mitigations: int | None
    current_mitigations: int | None
    signature_r: int
    signature_s: int
    signed_part: bytes


def parse_snp(data: bytes) -> SnpReport:
    """Parse any bytes; what is not a report of a known version, to the last byte and bit, is an `EvidenceError`."""
    if len(data) != REPORT_BYTES:
        raise EvidenceError(f"the SNP report has {len(data)} bytes, not {REPORT_BYTES}")
    version = _number(data[0x00:0x04])
    _check_head(data, version)
    _check_reserved(data, version)
    key_info = _number(data[0x48:0x4C])
    return SnpReport(
        version=version,
        guest_svn=_number(data[0x04:0x08]),
        policy=_parse_policy(_number(data[0x08:0x10])),
        family_id=data[0x10:0x20],
        image_id=data[0x20:0x30],
        vmpl=_number(data[0x30:0x34]),
        current_tcb=data[0x38:0x40],
        platform_info=_parse_platform_info(_number(data[0x40:0x48])),
        signer=_parse_signer(key_info),
        mask_chip_key=bool(key_info & 2),
        author_key_enabled=bool(key_info & 1),
        report_data=data[0x50:0x90],
        measurement=data[0x90:0xC0],
        host_data=data[0xC0:0xE0],
        id_key_digest=data[0xE0:0x110],
        author_key_digest=data[0x110:0x140],
        report_id=data[0x140:0x160],
        report_id_ma=data[0x160:0x180],
        reported_tcb=data[0x180:0x188],
        cpuid=(data[0x188], data[0x189], data[0x18A]) if version >= 3 else None,
        chip_id=data[0x1A0:0x1E0],
        committed_tcb=data[0x1E0:0x1E8],
        current_version=(data[0x1EA], data[0x1E9], data[0x1E8]),
        committed_version=(data[0x1EE], data[0x1ED], data[0x1EC]),
        launch_tcb=data[0x1F0:0x1F8],
        launch_mitigations=_number(data[0x1F8:0x200]) if version >= 5 else None,
        current_mitigations=_number(data[0x200:0x208]) if version >= 5 else None,
        signature_r=_number(data[0x2A0:0x2D0]),
        signature_s=_number(data[0x2E8:0x318]),
        signed_part=data[:SIGNED_BYTES],
    )


def _number(field: bytes) -> int:
    return int.from_bytes(field, "little")


def _check_head(data: bytes, version: int) -> None:
    if version not in VERSIONS:
        raise EvidenceError(f"the SNP report is of version {version}; known are {', '.join(map(str, VERSIONS))}")
    algorithm = _number(data[0x34:0x38])
    if algorithm != ECDSA_P384_SHA384:
        raise EvidenceError(f"the SNP report is signed with algorithm {algorithm}, not 1, which is ECDSA P-384")
    vmpl = _number(data[0x30:0x34])
    if vmpl > MAX_VMPL:  # the host asked for it (SNP_HV_REPORT_REQ), so it carries nothing that the guest wanted signed
        raise EvidenceError(f"the SNP report is of VMPL {vmpl:#x}; a guest's own are of 0 to {MAX_VMPL}")


def _check_reserved(data: bytes, version: int) -> None:
    for begin, end in _RESERVED_IN[version]:
        if data.count(0, begin, end) != end - begin:
            raise EvidenceError(f"the SNP report's reserved bytes {begin:#x} to {end - 1:#x} are not zero")


def _parse_policy(value: int) -> GuestPolicy:
    if not value & 1 << 17:
        raise EvidenceError(f"the guest policy {value:#x} lacks bit 17, which is always set")
    if value >> 26:
        raise EvidenceError(f"the guest policy {value:#x} has reserved bits set; 26 and up are zero")
    return GuestPolicy(abi_major=value >> 8 & 0xFF, abi_minor=value & 0xFF, **_flags(value, _POLICY_BITS))


def _parse_platform_info(value: int) -> PlatformInfo:
    if value >> 8:  # AMD has given these bits meanings without a new version; one that is not known may be a bad one
        raise EvidenceError(f"the platform info {value:#x} has bits that are not known; 8 and up are zero")
    return PlatformInfo(**_flags(value, _PLATFORM_BITS))


def _parse_signer(key_info: int) -> Signer:
    signing_key = key_info >> 2  # bits 2 to 4; those above are reserved, and zero
    if signing_key not in _SIGNERS:
        raise EvidenceError(f"the SNP report's signing key is {signing_key}, neither 0, a VCEK, nor 1, a VLEK")
    return _SIGNERS[signing_key]


def _flags(value: int, bits: Mapping[int, str]) -> dict[str, bool]:
    return {name: bool(value >> bit & 1) for bit, name in bits.items()}
