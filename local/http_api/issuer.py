"""Issue tokens for the local cloud, as an identity provider would: RS256, with a public JWKS."""

import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

AUDIENCE = "lambda-pg-local"
TOKEN_SECONDS = 3600


@dataclass(frozen=True, slots=True)
class Issuer:
    """A key, and the URL where its documents are served."""

    url: str
    key: rsa.RSAPrivateKey = field(repr=False)
    key_id: str = "local"

    @classmethod
    def create(cls, url: str) -> "Issuer":
        """Make an issuer with a new key."""
        return cls(url, rsa.generate_private_key(public_exponent=65537, key_size=2048))

    @classmethod
    def load(cls, url: str, path: Path) -> "Issuer":
        """Read the key that `save` has written."""
        # The check of the key's numbers takes 43 ms, and `save` has written what `create` has made.
        key = serialization.load_pem_private_key(
            path.read_bytes(), password=None, unsafe_skip_rsa_key_validation=True
        )
        assert isinstance(key, rsa.RSAPrivateKey)  # noqa: S101 - it is what `create` makes
        return cls(url, key)

    def save(self, path: Path) -> None:
        """Write the key where only this account can read it."""
        path.touch(mode=0o600)
        path.write_bytes(
            self.key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )

    def token(
        self,
        subject: str,
        *,
        scope: str = "",
        audience: str = AUDIENCE,
        seconds: float = TOKEN_SECONDS,
        claims: Mapping[str, Any] | None = None,
    ) -> str:
        """Sign a token for a subject; `scope` is a list separated by spaces."""
        now = int(time.time())
        payload = {
            "iss": self.url,
            "sub": subject,
            "aud": audience,
            "iat": now,
            "nbf": now,
            "exp": int(now + seconds),
            "jti": str(uuid.uuid4()),
            **({"scope": scope} if scope else {}),
            **(claims or {}),
        }
        return jwt.encode(payload, self.key, algorithm="RS256", headers={"kid": self.key_id})

    def jwks(self) -> dict[str, Any]:
        """Return the public key set."""
        public = json.loads(RSAAlgorithm.to_jwk(self.key.public_key()))
        return {"keys": [{**public, "kid": self.key_id, "use": "sig", "alg": "RS256"}]}

    def discovery(self) -> dict[str, Any]:
        """Return the OpenID discovery document."""
        return {
            "issuer": self.url,
            "jwks_uri": f"{self.url}/.well-known/jwks.json",
            "id_token_signing_alg_values_supported": ["RS256"],
            "response_types_supported": ["token"],
            "subject_types_supported": ["public"],
        }
