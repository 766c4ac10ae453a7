"""An ordinary client, which gives itself a name: `python client.py ADDRESS POLICY NAME WORD...`."""

from __future__ import annotations

import sys

from translator import translator_pb2, translator_pb2_grpc

import adyton


def main(address: str, policy: str, name: str, *words: str) -> None:
    with adyton.connect(address, policy, allow_insecure=["simulated"]) as channel:
        stub = translator_pb2_grpc.TranslatorStub(channel)
        for word in words:
            request = translator_pb2.GetTranslationRequest(input_word=word)
            response, call = stub.GetTranslation.with_call(request, timeout=10, metadata=(("client-name", name),))
            told = dict(call.trailing_metadata())
            print(f"{word} → {response.translated_word}; words of {name}: {told.get('usage-count', 'not counted')!s}")


if __name__ == "__main__":
    main(*sys.argv[1:])
