"""The enclave: one method."""

from __future__ import annotations

import grpc

import adyton
from translator import translator_pb2_grpc
from translator.service import Translator


class TranslatorApplication(adyton.GrpcApplication):
    def add_servicers(self, server: grpc.Server) -> None:
        translator_pb2_grpc.add_TranslatorServicer_to_server(Translator.from_file(), server)
