"""The client's enclave: it sends words only to an enclave that its policy accepts, and says what it is itself."""

from __future__ import annotations

import grpc
from translator import translator_pb2, translator_pb2_grpc

import adyton
from translation_client import translation_client_pb2


class TranslationClient(adyton.TrustedApplication):
    def run(self, input: adyton.EnclaveInput) -> adyton.EnclaveOutput:
        job = input.Extensions[translation_client_pb2.job]
        output = adyton.EnclaveOutput()
        with adyton.connect(
            job.server_address,
            self.context.policy("server.policy.toml"),
            identity=self.context.identity(role="translation-client"),
            allow_insecure=["simulated"],  # for the demonstration
        ) as channel:
            translated = translate(translator_pb2_grpc.TranslatorStub(channel), list(job.words))
        output.Extensions[translation_client_pb2.translations].words.extend(translated)
        return output


def translate(stub: translator_pb2_grpc.TranslatorStub, words: list[str]) -> list[str]:
    try:
        return [
            stub.GetTranslation(translator_pb2.GetTranslationRequest(input_word=word), timeout=10).translated_word
            for word in words
        ]
    except grpc.RpcError as error:
        raise adyton.ApplicationError(adyton.StatusCode(error.code().value[0]), error.details() or "") from error
