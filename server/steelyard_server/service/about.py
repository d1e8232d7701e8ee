"""What this server is and can do, for clients that are older or newer than it."""

from __future__ import annotations

from importlib import metadata

from steelyard.v1 import server_pb2 as pb

CAPABILITIES = ("mix", "once")
"""Sorted. server.proto says what each means; one that is new has its line there."""


class ServerService:
    def __init__(self, instance: str) -> None:
        self._instance = instance

    def GetServer(self, request: pb.GetServerRequest) -> pb.GetServerResponse:
        return pb.GetServerResponse(
            version=metadata.version("steelyard"), instance=self._instance, capabilities=CAPABILITIES
        )
