"""Rules for Intel SGX and TDX; facts from `VerifiedSgx`, `VerifiedTdx`, and the `DcapPlatform` in both."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from adyton.policy.insecurity import Insecurity
from adyton.policy.readings import (
    ANY,
    at_least,
    hex_bytes,
    none_but,
    not_older_than,
    one_of,
    whole_number,
    within,
    word,
)
from adyton.policy.rules._common import LAUNCHED_WITH_IT, events, listed, of, zero_unless_listed
from adyton.policy.schema import Field, Schema

INIT_MODE64_KSS: Final = 0x1 | 0x4 | 0x80
"""Attribute flags of an ordinary enclave: not DEBUG, not the keys of Intel's own enclaves (SDM volume 3D, 35.7.1)."""
SGX_DEBUG: Final = 0x2
TD_DEBUG: Final = 1 << 0
TD_MIGRATABLE: Final = 1 << 29
SEPT_VE_DISABLE: Final = 1 << 28
"""The only attribute of an ordinary TD (TDX Module ABI, ATTRIBUTES)."""
UP_TO_DATE: Final = "UpToDate"
TCB_STATUSES: Final = (
    UP_TO_DATE,
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "TDRelaunchAdvised",
    "TDRelaunchAdvisedConfigurationNeeded",
)
"""Intel's words for a TCB level that a rule can list. Revoked is not among them: nothing makes that acceptable."""


def _outdated(status: str) -> Insecurity | None:
    return Insecurity.OUT_OF_DATE if status.startswith(("OutOfDate", "TDRelaunch")) else None


def _sgx_debug(attributes: int) -> Insecurity | None:
    return Insecurity.DEBUG if attributes & SGX_DEBUG else None


def _td_insecurity(attributes: int) -> Insecurity | None:
    if attributes & TD_DEBUG:
        return Insecurity.DEBUG
    return Insecurity.MIGRATABLE if attributes & TD_MIGRATABLE else None


_PLATFORM: Final = (
    Field(
        key="tcb_statuses",
        read=one_of(word(*TCB_STATUSES), or_any=False),
        fact=of("platform_tcb.tcb_status"),
        default=[UP_TO_DATE],
        insecurity=_outdated,
        mend="update the platform's BIOS, microcode and TDX module; or list the status, and know why",
    ),
    Field(
        key="advisories",
        read=none_but(word()),
        fact=of("platform_tcb.advisories"),
        default=[],
        mend="update the platform; or list the advisories that do not matter to you",
    ),
    Field(
        key="min_tcb_evaluation",
        read=at_least(32),
        fact=of("platform_tcb.tcb_evaluation_number"),
        mend="staple newer collateral, or lower the floor",
        suggested=ANY,
    ),
    Field(
        key="max_tcb_age_days",
        read=not_older_than(timedelta(days=1)),
        fact=lambda verified, now: now - verified.platform_tcb.tcb_date,
        mend="update the platform, or raise the limit",
        suggested=ANY,
    ),
    Field(
        key="platforms",
        read=one_of(hex_bytes({16})),
        fact=lambda verified, _: bytes.fromhex(verified.platform),
        mend="add this machine if it is one of yours, by its platform instance id, or its PPID if it has none",
        suggested=ANY,
    ),
)

SGX: Final = Schema(
    tee="sgx",
    fields=(
        listed("mrenclave", 32, "add the measurement if this is code that you built", path="measurement"),
        listed("mrsigner", 32, "add the signer if you trust all that it signs", suggested=ANY),
        Field(
            key="isv_prod_id",
            read=one_of(whole_number(16)),
            fact=of("isv_prod_id"),
            mend="add the product's number if it is yours",
            suggested=ANY,
        ),
        Field(
            key="min_isv_svn",
            read=at_least(16),
            fact=of("isv_svn"),
            mend="run a newer version, or lower the floor",
            suggested=ANY,
        ),
        zero_unless_listed("isv_ext_prod_id", 16),
        zero_unless_listed("isv_family_id", 16),
        zero_unless_listed("config_id", 64),
        Field(
            key="config_svn",
            read=one_of(whole_number(16)),
            fact=of("config_svn"),
            default=[0],
            mend=LAUNCHED_WITH_IT,
        ),
        Field(
            key="attributes",
            read=within,
            fact=of("attributes"),
            default=INIT_MODE64_KSS,
            insecurity=_sgx_debug,
            mend="build the enclave without the flag; or allow it, and know why",
        ),
        *_PLATFORM,
    ),
)


def _rtmr(index: int) -> Field:
    return Field(
        key=f"rtmr{index}",
        read=one_of(hex_bytes({48})),
        fact=lambda verified, _: verified.rtmrs[index],
        mend="add the value if this is what you meant to boot",
    )


TDX: Final = Schema(
    tee="tdx",
    fields=(
        listed("mrtd", 48, "add the measurement if this is firmware that you trust", path="measurement"),
        *map(_rtmr, range(4)),
        events("rtmr_events", "events", "sha384", 48, 4),
        zero_unless_listed("mr_config_id", 48),
        zero_unless_listed("mr_owner", 48),
        zero_unless_listed("mr_owner_config", 48),
        zero_unless_listed("mr_signer_seam", 48, "zero is Intel's TDX module; list a signer only if you are it"),
        Field(
            key="td_attributes",
            read=one_of(whole_number(64)),
            fact=of("td_attributes"),
            default=[SEPT_VE_DISABLE],
            insecurity=_td_insecurity,
            mend="launch the TD without them; or list the value, and know why",
        ),
        Field(
            key="xfam",
            read=one_of(whole_number(64)),
            fact=of("xfam"),
            mend="list the value if these are the CPU features that your TD needs",
        ),
        *_PLATFORM,
    ),
)
