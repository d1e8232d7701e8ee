"""Signs tokens, as an identity provider does."""

from __future__ import annotations

import time
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

AUDIENCE = "steelyard-tests"


class Issuer:
    """Signs tokens."""

    def __init__(self) -> None:
        self.private = rsa.generate_private_key(65537, 2048)

    @property
    def public_pem(self) -> bytes:
        return self.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def token(self, algorithm: str = "RS256", key: Any = None, headers: Any = None, **claims: Any) -> str:
        now = int(time.time())
        said = {"sub": "trainer", "aud": AUDIENCE, "iat": now, "exp": now + 600, **claims}
        said = {name: value for name, value in said.items() if value is not None}
        return jwt.encode(said, self.private if key is None else key, algorithm, headers)
