"""A key of the transit engine of HashiCorp Vault, or of OpenBao, which wraps the keyset.

Vault's address, name space, token and certificates come from its usual variables (VAULT_ADDR and so on). hvac is
imported when Vault is first asked. What Vault answers is never shown: a sentence of ours stands for each answer.

The shapes are those of Vault's API documents: api-docs/secret/transit (encrypt, decrypt, keys), api-docs/auth/token
(lookup-self, renew-self), api-docs/auth/kubernetes and approle (login), and api-docs/index for the codes.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from exchange_service.addresses import is_loopback_host
from exchange_service.credentials.keysets import KeysetInvalid
from exchange_service.credentials.wrapped_keysets import KeysetAway
from exchange_service.settings import MANAGERS_KEY, MANAGERS_LOGIN

# Where Kubernetes puts the token of a pod's account.
_KUBERNETES_TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
# Seconds to connect, and of silence while an answer is awaited.
_TIMEOUT = (3.0, 5.0)
_LARGEST_TOKEN = 16 * 1024
# What a service's keyset is wrapped for; with another text the ciphertext does not open.
_PURPOSE = "exchange-service keyset 1"


@dataclass(frozen=True, slots=True)
class VaultAccess:
    """Where Vault is and how it is entered, by its usual variables; see `read_access`."""

    address: str
    namespace: str
    # True: the authorities of certifi; else a file or a folder of them.
    authorities: str | bool
    client_certificate: tuple[str, str] | None
    login: str
    token_file: Path | None
    secret_id_file: Path | None
    token: str = field(repr=False)
    secret_id: str = field(repr=False)

    def problem(self) -> str:
        """Why Vault cannot be asked this way, a sentence for the operator; empty if it can."""
        if not self.address:
            return "keyset_key is set, and VAULT_ADDR is not: set it to Vault's address, such as https://vault:8200."
        wrong = "VAULT_ADDR is not an address such as https://vault.example:8200."
        try:
            parts = urlsplit(self.address)
        except ValueError:
            return wrong
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            return wrong
        if parts.scheme == "http" and not is_loopback_host(parts.hostname):
            return (
                "VAULT_ADDR leads to another machine in plain text: use https://, and VAULT_CACERT for its authority."
            )
        if self.login or self.token or self.token_file:
            return ""
        return "Nothing says how to enter Vault: set VAULT_TOKEN, VAULT_TOKEN_FILE or keyset_login."

    @property
    def renews_token(self) -> bool:
        """Whether the token is one that only we renew: not the one of an agent's file, nor of a login."""
        return bool(self.token) and not self.login and self.token_file is None


def read_access(login: str, variables: Mapping[str, str] = os.environ) -> VaultAccess:
    """How the variables and the setting `keyset_login` say that Vault is reached."""

    def path(name: str) -> Path | None:
        return Path(variables[name]) if variables.get(name) else None

    certificate = (variables.get("VAULT_CLIENT_CERT", ""), variables.get("VAULT_CLIENT_KEY", ""))
    return VaultAccess(
        address=variables.get("VAULT_ADDR", "").strip().rstrip("/"),
        namespace=variables.get("VAULT_NAMESPACE", "").strip(),
        authorities=variables.get("VAULT_CACERT") or variables.get("VAULT_CAPATH") or True,
        client_certificate=certificate if all(certificate) else None,
        login=login,
        token_file=path("VAULT_TOKEN_FILE"),
        secret_id_file=path("VAULT_SECRET_ID_FILE"),
        token=variables.get("VAULT_TOKEN", "").strip(),
        secret_id=variables.get("VAULT_SECRET_ID", "").strip(),
    )


def unusable(login: str, variables: Mapping[str, str] = os.environ) -> str:
    """Why the service does not start with a `keyset_key`, a sentence for the operator; empty if it does."""
    if find_spec("hvac") is None:
        return "keyset_key needs the package hvac, which is not installed: install exchange-service[vault]."
    if variables.get("VAULT_SKIP_VERIFY", "").lower() not in ("", "0", "f", "false"):
        return "VAULT_SKIP_VERIFY is set, and a Vault whose certificate nobody checks keeps no keys: use VAULT_CACERT."
    return read_access(login, variables).problem()


@dataclass(frozen=True, slots=True)
class TokenState:
    """How long a token is valid: seconds, or None for ever. `renewable`: Vault makes it valid for longer."""

    seconds: float | None
    renewable: bool = False


class TransitKey:
    """A `KeysetWrapping` by a key of the transit engine. Its methods block, so call them in a thread."""

    def __init__(self, url: str, access: VaultAccess) -> None:
        match = MANAGERS_KEY.fullmatch(url)
        assert match is not None, "the settings have checked it"
        self._mount, self._key, label = match["mount"], match["key"], match["label"]
        self.name = match["name"]
        self.identity = "\n".join((access.address, access.namespace, url))
        self.access = access
        purpose = f"{_PURPOSE}\n{label or ''}"
        # Not secret: with it Vault refuses a keyset that was wrapped by the same key for something else.
        self._associated_data = base64.b64encode(purpose.encode()).decode()

    def __repr__(self) -> str:
        return f"TransitKey({self.name})"

    def wrap(self, data: bytes) -> str:
        """See `KeysetWrapping`. The token needs `update` on MOUNT/encrypt/NAME."""
        plain = base64.b64encode(data).decode()

        def encrypt(client: Any) -> Any:
            return client.secrets.transit.encrypt_data(
                self._key, plaintext=plain, associated_data=self._associated_data, mount_point=self._mount
            )

        ciphertext = self._ask(encrypt, "encrypt")["data"].get("ciphertext")
        if not isinstance(ciphertext, str):
            raise KeysetInvalid(self._nonsense())
        return ciphertext

    def unwrap(self, ciphertext: str) -> bytes:
        """See `KeysetWrapping`. The token needs `update` on MOUNT/decrypt/NAME."""

        def decrypt(client: Any) -> Any:
            return client.secrets.transit.decrypt_data(
                self._key, ciphertext=ciphertext, associated_data=self._associated_data, mount_point=self._mount
            )

        try:
            return base64.b64decode(self._ask(decrypt, "decrypt")["data"]["plaintext"], validate=True)
        except (KeyError, TypeError, ValueError):
            # TypeError: it is no text.
            raise KeysetInvalid(self._nonsense()) from None

    def newest_version(self) -> int | None:
        """The newest version of the key; None if the token may not read it. Raises KeysetInvalid or KeysetAway."""
        try:
            reply = self._ask(lambda client: client.secrets.transit.read_key(self._key, self._mount), "keys")
        except KeysetAway:
            raise
        except KeysetInvalid:
            return None
        version = reply["data"].get("latest_version")
        return version if isinstance(version, int) else None

    def look_up_token(self) -> TokenState:
        """How long the token is valid. Raises KeysetInvalid or KeysetAway."""
        state = self._ask(_look_up, "token", whole=True)
        assert isinstance(state, TokenState)
        return state

    def renew_token(self) -> TokenState:
        """Renew the token, if Vault renews it, and say how long it is valid. Raises KeysetInvalid or KeysetAway."""

        def renew(client: Any) -> TokenState:
            state = _look_up(client)
            if not state.renewable:
                return state
            return TokenState(float(client.auth.token.renew_self()["auth"]["lease_duration"]), renewable=True)

        state = self._ask(renew, "token", whole=True)
        assert isinstance(state, TokenState)
        return state

    def _ask(self, ask: Callable[[Any], Any], what: str, *, whole: bool = False) -> Any:
        """What Vault answers. Raises KeysetInvalid, or KeysetAway for what may pass."""
        problem = self.access.problem()
        if problem:
            raise KeysetInvalid(problem)
        import hvac
        import requests

        # Raised after the handlers, so that a library's exception with Vault's answer is not the context of ours.
        failure: KeysetInvalid
        try:
            with requests.Session() as session:
                reply = ask(self._enter(session))
            if whole or (isinstance(reply, dict) and isinstance(reply.get("data"), dict)):
                return reply
            failure = KeysetInvalid(self._nonsense())
            if getattr(reply, "is_redirect", False):
                failure = KeysetInvalid(f"{self._where()} sends us to another host: set VAULT_ADDR to that one.")
        except KeysetInvalid as invalid:
            failure = invalid
        except hvac.exceptions.VaultError as error:
            failure = self._refusal(error, what)
        except requests.exceptions.SSLError:
            failure = KeysetAway(
                f"The certificate of {self._where()} is not trusted: set VAULT_CACERT to its authority's file."
            )
        except requests.exceptions.Timeout:
            failure = KeysetAway(f"{self._where()} does not answer in time.")
        except requests.exceptions.RequestException:
            failure = KeysetAway(f"{self._where()} cannot be reached: check VAULT_ADDR, and whether Vault runs.")
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
            failure = KeysetInvalid(self._nonsense())
        except OSError:
            # requests tests the files of authorities and certificates before it connects.
            failure = KeysetInvalid("A file that VAULT_CACERT, VAULT_CAPATH or VAULT_CLIENT_CERT names cannot be read.")
        raise failure

    def _enter(self, session: Any) -> Any:
        """A client with a token. Nothing of the environment is used but what `access` has: no proxy, no .netrc."""
        import hvac

        access = self.access
        session.trust_env = False
        session.verify, session.cert = access.authorities, access.client_certificate
        client = hvac.Client(
            url=access.address,
            token=access.token,
            namespace=access.namespace or None,
            verify=access.authorities,
            cert=access.client_certificate,
            timeout=_TIMEOUT,
            session=session,
            # The token would go along, to whichever host an answer names.
            allow_redirects=False,
        )
        if access.login:
            client.token = self._log_in(client)
        elif access.token_file is not None:
            # Each time, because an agent writes a new one before the old one ends.
            client.token = _read_secret(access.token_file, "VAULT_TOKEN_FILE")
        return client

    def _log_in(self, client: Any) -> str:
        """A token by the login that the settings name."""
        import hvac

        match = MANAGERS_LOGIN.fullmatch(self.access.login)
        assert match is not None
        method, role, mount = match["method"], match["role"], match["mount"] or match["method"]
        # Not in the handler, so that hvac's exception is not the context of ours.
        with suppress(hvac.exceptions.Forbidden, hvac.exceptions.InvalidRequest, hvac.exceptions.InvalidPath):
            if method == "kubernetes":
                token = _read_secret(_KUBERNETES_TOKEN, "The token of the pod's account")
                reply = client.auth.kubernetes.login(role=role, jwt=token, use_token=False, mount_point=mount)
            else:
                secret = self._secret_id()
                reply = client.auth.approle.login(role_id=role, secret_id=secret, use_token=False, mount_point=mount)
            return str(reply["auth"]["client_token"])
        raise KeysetInvalid(
            f"{self._where()} refuses the login of keyset_login at auth/{mount}: check the role, its mount, and what "
            "proves that it is ours."
        )

    def _secret_id(self) -> str:
        file = self.access.secret_id_file
        return self.access.secret_id if file is None else _read_secret(file, "VAULT_SECRET_ID_FILE")

    def _where(self) -> str:
        return f"Vault at {urlsplit(self.access.address).netloc}"

    def _nonsense(self) -> str:
        return f"{self._where()} answers with something else than Vault does: check VAULT_ADDR."

    def _refusal(self, error: Any, what: str) -> KeysetInvalid:
        """A sentence for an answer that is an error."""
        import hvac

        kinds, where = hvac.exceptions, self._where()
        said = " ".join(map(str, error.errors or ())).lower()
        if isinstance(error, kinds.Forbidden):
            return KeysetInvalid(
                f"{where} refuses us: the token has ended, or its policy lacks `update` on "
                f"{self._mount}/{what}/{self._key}."
            )
        if isinstance(error, kinds.InvalidPath):
            return KeysetInvalid(f"{where} has no transit engine at {self._mount}, or this token may not see it.")
        if isinstance(error, kinds.InvalidRequest):
            return KeysetInvalid(self._refused_keyset(said))
        if isinstance(error, kinds.VaultNotInitialized | kinds.VaultDown):
            return KeysetAway(f"{where} is sealed, or down for maintenance: unseal it.")
        return KeysetAway(f"{where} cannot answer now.")

    def _refused_keyset(self, said: str) -> str:
        where, key = self._where(), f"{self._mount}/keys/{self._key}"
        if "too old" in said:
            return (
                f"The keyset was wrapped with a version of {key} that no longer opens: lower its "
                "min_decryption_version, run `exchange-service keys rewrap`, then raise it again."
            )
        if "key not found" in said or "policy not found" in said:
            return f"{where} has no key {key}: create it, as `vault write -f {key}` does."
        return (
            f"{where} does not open the keyset with {key}: it was wrapped by another key, for another label or for "
            "something else, or the file is damaged."
        )


def _look_up(client: Any) -> TokenState:
    data = client.auth.token.lookup_self()["data"]
    # Zero: the token does not end.
    return TokenState(float(data["ttl"]), bool(data["renewable"])) if data["ttl"] else TokenState(None)


def _read_secret(path: Path, name: str) -> str:
    """The one line of a file."""
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST_TOKEN)
    except OSError as error:
        # An agent may write it a moment later.
        raise KeysetAway(f"{name}: {path} cannot be read ({error.strerror}).") from None
    secret = data.decode("utf-8", "replace").strip()
    if not secret or not secret.isprintable():
        raise KeysetAway(f"{name}: {path} is empty, or no token.")
    return secret
