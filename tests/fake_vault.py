"""A Vault on loopback that answers as Vault's API documents say: transit, tokens, two logins, and being sealed.

The shapes are those of hashicorp/vault's website/content/api-docs: index.mdx (codes, errors), secret/transit.mdx,
auth/token.mdx, auth/kubernetes.mdx, auth/approle.mdx, system/health.mdx. The texts of errors are those of its source,
such as sdk/helper/keysutil/policy.go. The ciphertexts are real: AES-GCM with a key for each version.
"""

from __future__ import annotations

import base64
import json
import secrets
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

TOKEN = "hvs.canary-token-of-vault"
KEY = "vault://transit/keys/exchange-service"


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class TransitEngineKey:
    """A key of the transit engine, with all its versions."""

    def __init__(self) -> None:
        self.versions = [AESGCM(secrets.token_bytes(32))]
        self.least_version = 1

    def rotate(self) -> None:
        self.versions.append(AESGCM(secrets.token_bytes(32)))

    def encrypt(self, plain: bytes, associated: bytes) -> str:
        nonce = secrets.token_bytes(12)
        sealed = nonce + self.versions[-1].encrypt(nonce, plain, associated)
        return f"vault:v{len(self.versions)}:{base64.b64encode(sealed).decode()}"

    def decrypt(self, ciphertext: str, associated: bytes) -> bytes:
        prefix, version, data = ciphertext.split(":", 2)
        if prefix != "vault" or not version.startswith("v"):
            raise Refused(400, "invalid ciphertext: no prefix")
        number = int(version[1:])
        if number > len(self.versions):
            raise Refused(400, "invalid ciphertext: version is too new")
        if number < self.least_version:
            raise Refused(400, "ciphertext or signature version is disallowed by policy (too old)")
        sealed = base64.b64decode(data)
        try:
            return self.versions[number - 1].decrypt(sealed[:12], sealed[12:], associated)
        except InvalidTag:
            raise Refused(400, "cipher: message authentication failed") from None


class FakeVault:
    """The state of the server, which a test changes, and what it was asked."""

    def __init__(self) -> None:
        self.keys = {"exchange-service": TransitEngineKey()}
        self.namespace = ""
        # What each token may do, by the first part of the path behind the mount.
        self.tokens: dict[str, set[str]] = {TOKEN: {"encrypt", "decrypt", "keys"}}
        # Of TOKEN; zero is for ever.
        self.ttl, self.renewable = 0, True
        self.sealed = False
        self.redirects_to = ""
        self.logins: dict[str, Mapping[str, str]] = {}
        self.requests: list[str] = []
        self.asked = threading.Condition()
        self.server: ThreadingHTTPServer | None = None
        self.url = ""

    @property
    def key(self) -> TransitEngineKey:
        return self.keys["exchange-service"]

    def wait_for(self, check: Callable[[], Any]) -> None:
        """Wait until a request has made this true."""
        with self.asked:
            assert self.asked.wait_for(check, timeout=20), self.requests

    def answer(self, method: str, path: str, headers: Mapping[str, str], body: Mapping[str, Any]) -> dict[str, Any]:
        """The body of the answer. Raises Refused."""
        if self.sealed:
            raise Refused(503, "Vault is sealed")
        if headers.get("X-Vault-Namespace", "") != self.namespace:
            raise Refused(404, "no handler for route")
        parts = path.removeprefix("/v1/").split("/")
        if parts[0] == "auth" and parts[-1] == "login":
            return {"auth": {"client_token": self._log_in(parts[1], body), "lease_duration": 600}}
        token = headers.get("X-Vault-Token", "")
        rights = self.tokens.get(token)
        if rights is None:
            raise Refused(403, "permission denied")
        if parts[:2] == ["auth", "token"]:
            return self._of_token(parts[2])
        if parts[0] != "transit":
            raise Refused(404, f'no handler for route "{path}"')
        if parts[1] not in rights:
            raise Refused(403, "1 error occurred:\n\t* permission denied\n\n")
        return {"data": self._transit(parts[1], parts[2], body)}

    def _log_in(self, method: str, body: Mapping[str, str]) -> str:
        for token, expected in self.logins.items():
            if dict(body) == dict(expected):
                return token
        if method == "approle":
            raise Refused(400, "invalid role or secret ID")
        raise Refused(403, "permission denied")

    def _of_token(self, action: str) -> dict[str, Any]:
        if action == "renew-self":
            if not self.renewable:
                raise Refused(400, "lease is not renewable")
            return {"auth": {"lease_duration": self.ttl, "renewable": True}}
        return {"data": {"ttl": self.ttl, "renewable": self.renewable and bool(self.ttl)}}

    def _transit(self, action: str, name: str, body: Mapping[str, str]) -> dict[str, Any]:
        key = self.keys.get(name)
        if key is None:
            raise Refused(400, "encryption key not found")
        associated = base64.b64decode(body.get("associated_data", ""))
        if action == "encrypt":
            return {"ciphertext": key.encrypt(base64.b64decode(body["plaintext"]), associated)}
        if action == "decrypt":
            return {"plaintext": base64.b64encode(key.decrypt(body["ciphertext"], associated)).decode()}
        return {"name": name, "latest_version": len(key.versions), "min_decryption_version": key.least_version}

    def start(self, port: int = 0, context: ssl.SSLContext | None = None) -> None:
        """Listen on loopback."""
        self.server = ThreadingHTTPServer(("127.0.0.1", port), _handler_of(self))
        if context is not None:
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.url = f"{'http' if context is None else 'https'}://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> int:
        """Listen no more. Returns the port."""
        assert self.server is not None
        self.server.shutdown()
        self.server.server_close()
        port, self.server = self.server.server_port, None
        return port

    def variables(self, **more: str) -> dict[str, str]:
        """Vault's own variables for this server."""
        return {"VAULT_ADDR": self.url, "VAULT_TOKEN": TOKEN, **more}


def _handler_of(vault: FakeVault) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length) or b"{}")
            try:
                code, reply = 200, vault.answer(self.command, self.path, dict(self.headers), body)
            except Refused as refused:
                code, reply = refused.code, {"errors": [str(refused)]}
            data = json.dumps(reply).encode()
            self.send_response(307 if vault.redirects_to else code)
            if vault.redirects_to:
                self.send_header("Location", f"{vault.redirects_to}{self.path}")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
            with vault.asked:
                vault.requests.append(f"{self.command} {self.path}")
                vault.asked.notify_all()

        do_GET = do_POST = do_PUT = _serve

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


@contextmanager
def running_vault(context: ssl.SSLContext | None = None) -> Iterator[FakeVault]:
    """A Vault that listens until the block ends."""
    vault = FakeVault()
    vault.start(context=context)
    try:
        yield vault
    finally:
        if vault.server is not None:
            vault.stop()
