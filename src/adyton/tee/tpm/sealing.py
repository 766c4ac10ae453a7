"""Inside a machine with a TPM 2.0: sealing keys that this TPM alone computes, for a machine in a certain state alone.

A key is the HMAC of a constant by a key that the TPM has made up, and that it gives out only encrypted. It is not a
secret that was sealed (TPM2_Unseal), for those can be sealed *to* a policy by anybody who boots another system on the
same TPM: he would know the key, and what he sealed with it would look like the enclave's own. A key of fixedTPM and
sensitiveDataOrigin nobody has ever seen, and its HMACs only whom the policy lets in.

On its way to this process the HMAC is encrypted, for a session that is salted to the TPM's storage key. That stops who
only listens on the bus; not who sits on it, puts a storage key of his own in place of the TPM's, or resets the TPM and
measures what he likes. A host that emulates the TPM has its seeds: from that host nothing here keeps a secret.

What is lost when: TPM2_Clear (often a switch in the firmware's setup) makes a new storage key, and everything that was
sealed is gone; so is what another TPM sealed. An update of the TPM's own firmware keeps it, unless its maker says that
it clears.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from adyton.errors import ConfigurationError, UnsealError, UnsupportedError
from adyton.tee._kernel import Kernel, LinuxKernel
from adyton.tee._tpm_commands import SHA256_BYTES
from adyton.tee._tpm_policies import Policy, check_sealing_pcrs, digest_of
from adyton.tee._tpm_sealing import SealingTpm, opened_for_sealing
from adyton.tee.sealing import LABEL_BYTES, Binding, FreshnessRegister, SealingKey, SealPolicy
from adyton.tee.tpm.approvals import Approvals, parse_approvals
from adyton.tee.tpm.register import TpmRegister
from adyton.tee.tpm.sealing_request import SealingRequest, parse_request

SEALING_PCRS: Final = tuple(range(10))
"""What is measured before Linux runs, with firmware and without.

A launch without firmware is measured into PCR 0, and 1 to 9 stay zero. Firmware measures itself, its settings and what
it loads into 0 to 7; the kernel, its command line and its initrd are in 4 and 9. Evidence quotes 11 to 15 besides, but
they change while a system runs: systemd extends 11 from one phase to the next, and the others when it comes to them.

With firmware, 0 and 1 hold what it learned of the machine too: with more memory it may be another. SIGNER helps.
"""
REGISTER_VERSION: Final = 1
"""A register for SIGNER lets in whoever has this version's approval, which every release has: so a later one can write
what an earlier one made. And an earlier one, should it be broken, what a later one made."""

_MESSAGE: Final = b"adyton-tpm-sealing/1"


class TpmSealing:
    """A `KeySource` at /dev/tpmrm0. Any call raises `UnsupportedError` if there is no TPM; else as `KeySource` says.

    MEASUREMENT: `subject` is the digest of TPM2_PolicyPCR: SHA-256 over 32 zero bytes, 0x0000017f, the selection of
    `pcrs` as a TPML_PCR_SELECTION of the SHA-256 bank, and the SHA-256 of their values in order. `pcrs` are 0 and any
    of 1 to 15, else `ValueError`; data that was sealed for others is not opened. Where PCR 0 is zero, nothing was
    measured, and there is no measurement: `UnsupportedError`.

    SIGNER: `signer` is the SHA-256 of the DER SubjectPublicKeyInfo of the key (P-256) whose approvals are believed. It
    must be measured with the code: whoever chooses it gets what is sealed. `approvals` may come from anywhere, several
    for several firmwares; one that is not of that signer is a `ConfigurationError`. Of those that fit the PCRs, the
    highest version counts. When firmware is updated, the signer approves the new PCRs, and nothing is lost.
    """

    name: Final = "tpm"

    def __init__(
        self,
        *,
        kernel: Kernel | None = None,
        pcrs: Collection[int] = SEALING_PCRS,
        approvals: Sequence[bytes] = (),
        signer: bytes = b"",
    ) -> None:
        self._kernel = kernel or LinuxKernel()
        self._pcrs = check_sealing_pcrs(pcrs)
        self._signer = signer
        self._approvals = tuple(map(parse_approvals, approvals))
        for approved in self._approvals:
            if approved.signer != signer:
                theirs, ours = approved.signer.hex(), signer.hex() or "nobody"
                raise ConfigurationError(f"the approvals are by the signer {theirs}; {ours} is believed")

    @classmethod
    def believing(
        cls, signers: Sequence[bytes], approvals: Sequence[bytes], *, kernel: Kernel | None = None
    ) -> TpmSealing:
        """The one that believes the first of `signers` who has approved anything.

        `signers` are measured, `approvals` may be anything: those of others, and what are none, count for nothing.
        """
        by_signer: dict[bytes, list[bytes]] = {}
        for document in approvals:
            with contextlib.suppress(ConfigurationError):
                by_signer.setdefault(parse_approvals(document).signer, []).append(document)
        signer = next((each for each in signers if each in by_signer), b"")
        return cls(kernel=kernel, approvals=by_signer.get(signer, ()), signer=signer)

    @property
    def policies(self) -> frozenset[SealPolicy]:
        """MEASUREMENT; and SIGNER if there are approvals, whether or not one fits."""
        return frozenset({SealPolicy.MEASUREMENT} | ({SealPolicy.SIGNER} if self._approvals else set()))

    def check_present(self) -> None:
        """`UnsupportedError` unless there is a TPM."""
        with opened_for_sealing(self._kernel):
            pass

    def current(self, policy: SealPolicy) -> Binding:
        """As `KeySource` says; also `UnsupportedError` if the signer has not approved the PCRs as they are."""
        self._check_supported(policy)
        with opened_for_sealing(self._kernel) as tpm:
            return self._identity(tpm, policy)[0]

    def new_key(self, policy: SealPolicy) -> SealingKey:
        """As `KeySource` says; fresh each time."""
        self._check_supported(policy)
        with opened_for_sealing(self._kernel) as tpm, tpm.storage_key() as parent:
            binding, let_in, pcrs = self._identity(tpm, policy)
            kept = tpm.create_key(parent, let_in.digest)
            key = tpm.hmac(parent, kept, let_in, _MESSAGE)
            tcb = f"TPM firmware 0x{tpm.firmware_version():016x}"
        request = SealingRequest(policy=policy, parent_sha256=parent.public_sha256, pcrs=pcrs, kept=kept)
        return SealingKey(key=key, binding=binding, request=request.encode(), tcb=tcb)

    def same_key(self, binding: Binding, request: bytes) -> bytes:
        """As `KeySource` says. `UnsealError` names measurement, signer, product or version; or that the TPM is another.

        For MEASUREMENT it names the PCRs that differ.
        """
        parsed = parse_request(request, binding)
        with opened_for_sealing(self._kernel) as tpm:
            let_in = self._let_in(tpm, binding, parsed.pcrs)
            with tpm.storage_key() as parent:
                if parent.public_sha256 != parsed.parent_sha256:
                    raise UnsealError("the TPM is another than that which sealed the data, or was cleared since")
                return tpm.hmac(parent, parsed.kept, let_in, _MESSAGE)

    def register(self, binding: Binding, label: bytes) -> FreshnessRegister:
        """As `KeySource` says; an NV index. For SIGNER all versions of the product share it, whatever the binding's.

        `UnsealError` as `same_key`.
        """
        if len(label) != LABEL_BYTES:
            raise ValueError(f"a register's label has {LABEL_BYTES} bytes, not {len(label)}")
        self._check_supported(binding.policy)
        with opened_for_sealing(self._kernel) as tpm:
            return TpmRegister(self._kernel, self._let_in(tpm, binding, {}, label=label))

    def _check_supported(self, policy: SealPolicy) -> None:
        if policy not in self.policies:
            if policy is not SealPolicy.SIGNER:
                raise UnsupportedError(f"this TPM has no keys for {policy.name.lower()}")
            raise UnsupportedError(
                "this TPM has no keys for a signer: nobody whom this code knows has approved it",
                mend="`adyton sign` makes approvals; sealing.signers in enclave.toml says whose count",
            )

    def _identity(self, tpm: SealingTpm, policy: SealPolicy) -> tuple[Binding, Policy, Mapping[int, bytes]]:
        """What this enclave is, what lets it in, and for MEASUREMENT the PCRs' values."""
        if policy is SealPolicy.MEASUREMENT:
            values = self._measured(tpm)
            let_in = Policy(pcrs=self._pcrs, pcr_digest=digest_of(values))
            return Binding(policy=policy, subject=let_in.digest), let_in, values
        approved = self._approved(tpm)
        if approved is None:
            raise UnsupportedError(_unapproved(self._approvals), mend="have the signer approve these PCRs")
        return approved.binding, approved.policy(approved.version), {}

    def _measured(self, tpm: SealingTpm) -> Mapping[int, bytes]:
        values = tpm.read_pcrs(self._pcrs)
        if values[0] == bytes(SHA256_BYTES):
            raise UnsupportedError("nothing was measured when this machine was started: its PCR 0 is zero")
        return values

    def _approved(self, tpm: SealingTpm) -> Approvals | None:
        """The approvals of the highest version that are for the PCRs as they are."""
        values = tpm.read_pcrs({index for each in self._approvals for index in each.pcrs}) if self._approvals else {}
        fitting = (
            each
            for each in self._approvals
            if each.pcr_digest == digest_of({index: values[index] for index in each.pcrs})
        )
        return max(fitting, key=lambda each: each.version, default=None)

    def _let_in(
        self, tpm: SealingTpm, binding: Binding, sealed_at: Mapping[int, bytes], *, label: bytes = b""
    ) -> Policy:
        """What satisfies the binding's policy here; `UnsealError` if nothing does."""
        if binding.policy is SealPolicy.MEASUREMENT:
            values = self._measured(tpm)
            let_in = Policy(pcrs=self._pcrs, pcr_digest=digest_of(values), label=label)
            if binding.subject != let_in.branches[0]:
                raise UnsealError(_other_measurement(sealed_at, values))
            return let_in
        self._check_signer(binding)
        approved = self._approved(tpm)
        if approved is None:
            raise UnsealError(f"the signer has to let this machine in: {_unapproved(self._approvals)}")
        _check_release(binding, approved)
        return approved.policy(REGISTER_VERSION if label else binding.version, label=label)

    def _check_signer(self, binding: Binding) -> None:
        if binding.subject != self._signer:
            ours = self._signer.hex() or "nobody"
            raise UnsealError(f"the signer is {ours}; the data was sealed for {binding.subject.hex()}")


def _check_release(binding: Binding, approved: Approvals) -> None:
    if binding.product != approved.product:
        raise UnsealError(f"the product is {approved.product!r}; the data was sealed for {binding.product[:64]!r}")
    if not 1 <= binding.version <= approved.version:
        found = approved.version
        raise UnsealError(f"the version is {found}; the data was sealed for {binding.version} or later")


def _other_measurement(sealed_at: Mapping[int, bytes], values: Mapping[int, bytes]) -> str:
    if not sealed_at:
        return "the measurement is another than the register's"
    if sealed_at.keys() != values.keys():
        return (
            f"the measurement is of the PCRs {_listed(values)}; the data was sealed for those of {_listed(sealed_at)}"
        )
    changed = [index for index in values if values[index] != sealed_at[index]]
    return f"the measurement is another than the data was sealed for: PCR {_listed(changed)} changed"


def _unapproved(approvals: Sequence[Approvals]) -> str:
    return f"none of the {len(approvals)} approvals is for the PCRs that this machine has"


def _listed(pcrs: Collection[int]) -> str:
    return ", ".join(map(str, sorted(pcrs)))
