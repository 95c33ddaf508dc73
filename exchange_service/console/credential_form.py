"""The form by which a user gives a credential: from a listing's fields to inputs, and from what was typed to a request.

A secret goes one way: a form that is shown again after an error has none of the secrets that were typed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from exchange_service.accounts.v1.account_service_pb2 import ConnectAccountRequest, StoredAccount
from exchange_service.addresses import addresses_note
from exchange_service.console.exchange_cards import safe_link
from exchange_service.printable import printable
from exchange_service.v1.exchange_pb2 import CredentialField, Environment, Exchange

FIELD_PREFIX = "field."
PRODUCTION = "production"
# A text that the service refuses is shown again only up to the length of a wallet's address: a longer one may be a key
# that was typed into the wrong field.
_MAX_REFUSED_ECHO = 42
_LINK = re.compile(r"https://[^\s<>\"]+")
_GONE = "What you typed here was not kept. Type it again."
_ENVIRONMENT_LABELS: Mapping[str, str] = {PRODUCTION: "Live account", "sandbox": "Sandbox, for tests"}


@dataclass(frozen=True, slots=True)
class Typed:
    """What a user has sent: values by the fields' names, the environment, and whether to store without trying."""

    values: Mapping[str, str]
    environment: str = ""
    skip_check: bool = False

    def __repr__(self) -> str:
        """Without the values, which are secrets."""
        return f"Typed({', '.join(sorted(self.values))})"

    @classmethod
    def from_form(cls, form: Mapping[str, str], exchange: Exchange) -> Typed:
        """What a form holds for the fields of this listing. Whatever else it holds is left out."""
        names = [field.name for field in exchange.credential_fields]
        values = {name: form.get(FIELD_PREFIX + name, "") for name in names}
        return cls(
            {name: value.replace("\r\n", "\n").strip() for name, value in values.items() if value.strip()},
            form.get("environment", ""),
            form.get("skip_check") == "yes",
        )

    def request(self, user: str, exchange: Exchange) -> ConnectAccountRequest:
        """The request that stores it for a user."""
        return ConnectAccountRequest(
            user_id=user,
            exchange_id=exchange.id,
            environment=self.environment,
            fields=self.values,
            skip_check=self.skip_check,
        )


@dataclass(frozen=True, slots=True)
class FieldInput:
    """One input of the form. `described_by` are the ids of the sentences that describe it."""

    id: str
    name: str
    input_name: str
    label: str
    help: str
    required: bool
    secret: bool
    lines: bool
    value: str
    notice: str
    fault: str
    described_by: str


@dataclass(frozen=True, slots=True)
class EnvironmentChoice:
    """One of the venue's environments; `connected` if the user has stored a credential for it."""

    name: str
    label: str
    aliases: str
    chosen: bool
    connected: bool


@dataclass(frozen=True, slots=True)
class TextPart:
    """A piece of a sentence; `link` is empty, or a URL that a browser may follow."""

    text: str
    link: str = ""


@dataclass(frozen=True, slots=True)
class CredentialForm:
    """All that the page of a form shows of a listing."""

    inputs: tuple[FieldInput, ...]
    environments: tuple[EnvironmentChoice, ...]
    environment: EnvironmentChoice
    instructions: tuple[TextPart, ...]
    credential_url: str
    documentation_url: str
    address_note: str
    outgoing_address: str
    uses_credential_of: str


def credential_form(
    exchange: Exchange,
    *,
    stored: Iterable[StoredAccount] = (),
    outgoing_address: str = "",
    typed: Typed | None = None,
    faults: Mapping[str, str] | None = None,
) -> CredentialForm:
    """The form of a listing, empty or with what was typed and may be shown again. `faults` are by the fields' names."""
    mine = {account.environment for account in stored if account.exchange_id == exchange.id}
    environments = _environments(exchange.environments, typed.environment if typed else "", mine)
    return CredentialForm(
        inputs=tuple(_input(field, typed, (faults or {}).get(field.name, "")) for field in exchange.credential_fields),
        environments=environments,
        environment=next(item for item in environments if item.chosen),
        instructions=tuple(text_parts(exchange.instructions)),
        credential_url=safe_link(exchange.credential_url),
        documentation_url=safe_link(exchange.documentation_url),
        # The addresses stand below it.
        address_note=printable(exchange.ip_whitelist.removesuffix(addresses_note(exchange.outgoing_addresses)).strip()),
        outgoing_address=printable(", ".join(exchange.outgoing_addresses) or outgoing_address),
        uses_credential_of=printable(exchange.credential_of),
    )


def environment_label(name: str) -> str:
    """An environment in words."""
    return _ENVIRONMENT_LABELS.get(name or PRODUCTION, printable(name))


def _venues_words(environment: Environment) -> str:
    """The venue's own names of an environment that our words do not have."""
    label = environment_label(environment.name).lower()
    return ", ".join(printable(alias) for alias in environment.aliases if alias.lower() not in label)


def text_parts(text: str) -> Iterable[TextPart]:
    """A sentence in pieces, so that the https addresses in it can be links."""
    text, end = printable(text), 0
    for match in _LINK.finditer(text):
        url = match[0].rstrip(".,;:!?)")
        yield TextPart(text[end : match.start()])
        yield TextPart(url, safe_link(url))
        end = match.start() + len(url)
    yield TextPart(text[end:])


def field_faults(violations: Mapping[str, str], exchange: Exchange) -> dict[str, str]:
    """What the service says of fields (as `fields.api_key`), by their names; only of those that the form has."""
    names = {field.name for field in exchange.credential_fields}
    said = {path.removeprefix("fields."): _sentence(text) for path, text in violations.items()}
    return {name: sentence for name, sentence in said.items() if name in names}


def _sentence(text: str) -> str:
    return printable(text[:1].upper() + text[1:])


def _input(field: CredentialField, typed: Typed | None, fault: str) -> FieldInput:
    given = typed.values.get(field.name, "") if typed else ""
    identifier = f"field-{re.sub('[^A-Za-z0-9_-]', '-', field.name)}"
    help_text, gone = printable(field.description), _GONE if given and not _may_echo(field, given, fault) else ""
    said = {"fault": fault, "notice": gone, "help": help_text}
    return FieldInput(
        id=identifier,
        name=field.name,
        input_name=FIELD_PREFIX + field.name,
        label=printable(field.label or field.name),
        help=help_text,
        required=field.required,
        secret=field.secret,
        lines=bool(field.private_keys),
        value="" if gone else given,
        notice=gone,
        fault=fault,
        described_by=" ".join(f"{identifier}-{part}" for part, text in said.items() if text),
    )


def _may_echo(field: CredentialField, value: str, fault: str) -> bool:
    """Whether a form may show a value again."""
    return not (field.secret or field.private_keys or (fault and len(value) > _MAX_REFUSED_ECHO))


def _environments(
    environments: Sequence[Environment], wanted: str, connected: set[str]
) -> tuple[EnvironmentChoice, ...]:
    """The choices, the wanted one chosen, by its name or an alias; else the first."""
    known = list(environments) or [Environment(name=PRODUCTION)]
    chosen = next((item for item in known if wanted and wanted in (item.name, *item.aliases)), known[0])
    return tuple(
        EnvironmentChoice(
            item.name,
            environment_label(item.name),
            _venues_words(item),
            item is chosen,
            item.name in connected,
        )
        for item in known
    )
