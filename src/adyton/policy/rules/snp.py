"""Rules for AMD SEV-SNP; facts from `VerifiedSnp`."""

from __future__ import annotations

from typing import Final

from adyton.policy.insecurity import Insecurity
from adyton.policy.readings import ANY, at_least, components, none_but, one_of, permitted, required, whole_number, word
from adyton.policy.rules._common import insecure, listed, of, zero_unless_listed
from adyton.policy.schema import Field, Schema

_COMPONENTS: Final = ("fmc", "bootloader", "tee", "snp", "microcode")

SNP: Final = Schema(
    tee="snp",
    fields=(
        listed("measurement", 48, "add the measurement if this is an image that you built"),
        Field(
            key="products",
            read=one_of(word("Milan", "Genoa", "Turin"), or_any=False),
            fact=of("product"),
            mend="run on a listed product. Software can extract the root secret of Milan (arXiv 2605.12990), so no "
            "report of it proves its TCB",
            suggested=["Genoa", "Turin"],
        ),
        Field(
            key="min_tcb",
            read=components(*_COMPONENTS),
            fact=lambda verified, _: {name: getattr(verified.reported_tcb, name) for name in _COMPONENTS},
            mend="update the platform's firmware, or lower the floors",
            suggested=ANY,
        ),
        listed("platforms", 64, "add this chip's id if it is one of yours", path="chip_id", suggested=ANY),
        Field(
            key="vlek_providers",
            read=none_but(word()),
            fact=lambda verified, _: frozenset() if verified.csp_id is None else frozenset({verified.csp_id}),
            default=[],
            mend="list the provider if you trust what it signs with its key in place of the chip's",
        ),
        zero_unless_listed("host_data", 32),
        zero_unless_listed("id_key_digest", 48),
        zero_unless_listed("author_key_digest", 48),
        zero_unless_listed("family_id", 16),
        zero_unless_listed("image_id", 16),
        Field(
            key="min_guest_svn",
            read=at_least(32),
            fact=of("guest_svn"),
            default=0,
            mend="run a newer image, or lower the floor",
        ),
        Field(
            key="vmpl",
            read=one_of(whole_number(2), or_any=False),
            fact=of("vmpl"),
            default=[0],
            mend="list the level if your image runs the workload there",
        ),
        insecure("debug", Insecurity.DEBUG, "launch the guest with a policy that forbids debugging"),
        insecure(
            "migration_agent",
            Insecurity.MIGRATABLE,
            "launch the guest with a policy that forbids a migration agent",
            path="guest_policy.migrate_ma",
        ),
        Field(
            key="smt",
            read=permitted,
            fact=of("guest_policy.smt"),
            default=False,
            mend="launch the guest with a policy that forbids SMT; or permit it, since most clouds have it on",
        ),
        Field(
            key="alias_check",
            read=required,
            fact=of("platform_info.alias_check_complete"),
            default=True,
            mend="update the platform's firmware: without the check, memory may be aliased (CVE-2024-21944)",
        ),
        Field(
            key="ciphertext_hiding",
            read=required,
            fact=of("platform_info.ciphertext_hiding"),
            default=False,
            mend="run on a platform that hides ciphertext from the host",
        ),
        insecure(
            "revocation_unknown",
            Insecurity.REVOCATION_UNKNOWN,
            "staple the current revocation list of AMD's root key",
            path="revocation_checked",
            negated=True,
        ),
    ),
)
