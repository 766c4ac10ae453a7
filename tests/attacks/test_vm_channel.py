"""The channel's attackers once more, between a client and an enclave in a virtual machine: the same tests, by import.

They are those in which whoever has the network, or the enclave's host, can do something to the bytes or has the leaked
key. Left out are the attacks on a client's own process, on a client's patience, and those by clients: there the
enclave's technology takes no part.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from attacks.test_channel_attacks import (
    test_a_certificate_for_another_name,
    test_a_genuine_server_goes_by_its_names_only,
    test_a_relay_under_another_name,
    test_an_attacker_that_only_passes_bytes_on_learns_nothing,
    test_an_attacker_that_takes_over_when_a_client_on_asyncio_connects_again,
    test_an_attacker_that_takes_over_when_the_client_connects_again,
    test_an_attacker_with_a_certificate_of_its_own_is_not_of_the_pinned_ca,
    test_an_attacker_with_a_certificate_of_its_own_relays_in_vain,
    test_an_attacker_with_the_leaked_key_that_takes_over_between_attestations,
    test_an_old_answer_of_the_genuine_server,
    test_at_level_connection_a_relay_with_the_leaked_key_fails,
    test_at_level_key_a_relay_with_the_leaked_key_reads_everything,
    test_one_server_for_the_probe_and_another_for_the_connection,
    test_the_leaked_key_and_the_clients_certificate_are_not_the_clients_key,
    test_with_the_leaked_key_it_matters_only_who_has_the_connection,
    test_without_the_one_dial_the_attack_works,
)
from attacks.test_hostile_servers import (
    test_a_connection_over_tls_1_2,
    test_a_connection_without_tls_after_a_genuine_probe,
    test_a_server_that_speaks_tls_1_2_only,
)
from attacks.test_hostile_surroundings import (
    test_a_hostile_address_after_a_genuine_one_is_never_dialled,
    test_a_hostile_address_before_a_genuine_one_is_refused,
)
from machines import boots
from vm_parties import VmServer, vm_server

__all__ = [
    "test_a_certificate_for_another_name",
    "test_a_connection_over_tls_1_2",
    "test_a_connection_without_tls_after_a_genuine_probe",
    "test_a_genuine_server_goes_by_its_names_only",
    "test_a_hostile_address_after_a_genuine_one_is_never_dialled",
    "test_a_hostile_address_before_a_genuine_one_is_refused",
    "test_a_relay_under_another_name",
    "test_a_server_that_speaks_tls_1_2_only",
    "test_an_attacker_that_only_passes_bytes_on_learns_nothing",
    "test_an_attacker_that_takes_over_when_a_client_on_asyncio_connects_again",
    "test_an_attacker_that_takes_over_when_the_client_connects_again",
    "test_an_attacker_with_a_certificate_of_its_own_is_not_of_the_pinned_ca",
    "test_an_attacker_with_a_certificate_of_its_own_relays_in_vain",
    "test_an_attacker_with_the_leaked_key_that_takes_over_between_attestations",
    "test_an_old_answer_of_the_genuine_server",
    "test_at_level_connection_a_relay_with_the_leaked_key_fails",
    "test_at_level_key_a_relay_with_the_leaked_key_reads_everything",
    "test_one_server_for_the_probe_and_another_for_the_connection",
    "test_the_leaked_key_and_the_clients_certificate_are_not_the_clients_key",
    "test_with_the_leaked_key_it_matters_only_who_has_the_connection",
    "test_without_the_one_dial_the_attack_works",
]

pytestmark = [*boots, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def genuine(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VmServer]:
    """Instead of the one that is a process: one machine for all of them."""
    with vm_server(tmp_path_factory.mktemp("confidant")) as server:
        yield server


@pytest.fixture(scope="module")
def policy(genuine: VmServer) -> bytes:
    """It accepts what runs in `genuine`."""
    return genuine.policy()
