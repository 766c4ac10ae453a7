"""The enclave: the service, and where there is a state folder, the count of its use."""

from __future__ import annotations

from collections.abc import Sequence

import grpc

import adyton
from translator import translator_pb2_grpc
from translator.service import Translator
from translator.usage import Usage, UsageInterceptor


class TranslatorApplication(adyton.GrpcApplication):
    def add_servicers(self, server: grpc.Server) -> None:
        translator_pb2_grpc.add_TranslatorServicer_to_server(Translator.from_file(), server)

    def interceptors(self) -> Sequence[grpc.ServerInterceptor]:
        if self.context.state_directory is None:
            return ()  # a count that ends with the enclave is none
        store = self.context.store("usage")
        store.reseal()  # after an update: from now on the code before it can't read or write the counts
        return (UsageInterceptor(Usage(store)),)
