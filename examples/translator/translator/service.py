"""The service: an ordinary gRPC servicer, which knows nothing of enclaves."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path

import grpc

from translator import translator_pb2, translator_pb2_grpc

DICTIONARY = Path(__file__).with_name("dictionary.toml")


class Translator(translator_pb2_grpc.TranslatorServicer):
    def __init__(self, dictionary: dict[str, str]) -> None:
        self._dictionary = dictionary

    @classmethod
    def from_file(cls, path: Path = DICTIONARY) -> Translator:
        return cls(tomllib.loads(path.read_text(encoding="utf-8")))

    def GetTranslation(
        self, request: translator_pb2.GetTranslationRequest, context: grpc.ServicerContext
    ) -> translator_pb2.GetTranslationResponse:
        if not request.input_word:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "No input word given")
        translated = self._dictionary.get(request.input_word.lower())
        if translated is None:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f'No known translation for "{request.input_word}"')
        return translator_pb2.GetTranslationResponse(translated_word=translated)

    def TranslateText(
        self, request_iterator: Iterator[translator_pb2.GetTranslationRequest], context: grpc.ServicerContext
    ) -> Iterator[translator_pb2.GetTranslationResponse]:
        for request in request_iterator:
            word = request.input_word
            yield translator_pb2.GetTranslationResponse(translated_word=self._dictionary.get(word.lower(), word))
