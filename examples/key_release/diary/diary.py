"""An enclave that remembers how often it was started, and has nothing to do with where its keys come from."""

from __future__ import annotations

import logging

import adyton

_log = logging.getLogger("diary")


class Diary(adyton.TrustedApplication):
    def initialize(self, config: adyton.EnclaveConfig) -> None:
        with self.context.store("diary") as store, store.transaction() as change:
            starts = int(change.get("starts") or b"0") + 1
            change["starts"] = str(starts).encode()
        _log.info("start number %d", starts)
