"""What a user has typed into a form, as the credential that it becomes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from exchange_service.errors import CredentialInvalid, FieldInvalid
from exchange_service.model import SECRET_FIELDS, Credential, ExchangeMetadata, Secret
from exchange_service.plugin_kit.credential_fields import missing_fields, read_form

# Characters: more than the longest private key has. Of what is no secret, such as an account's number, fewer.
_LONGEST_SECRET = 16 * 1024
_LONGEST_TEXT = 1024


def read_fields(metadata: ExchangeMetadata, values: Mapping[str, Secret]) -> Credential:
    """The credential that the values make, in the form that is stored.

    Only the listing's own fields are taken. Raises FieldInvalid with every fault, each named `fields.NAME`; no fault
    repeats a value, nor a name that the listing does not have, which may be a value in the wrong place.
    """
    known = {field.name for field in metadata.credential_fields}
    faults = dict(_faults_of_texts(metadata, values))
    texts = {name: value.reveal().strip() for name, value in values.items() if name in known and name not in faults}
    given = {name: text for name, text in texts.items() if text}
    metadata_values = {name: text for name, text in given.items() if name not in SECRET_FIELDS}
    credential, refused = read_form(metadata, Credential.from_texts(given, metadata_values))
    faults |= {name: _description(name, error) for name, error in refused.items()}
    faults |= {name: "it is required." for name in missing_fields(metadata, credential) if name not in faults}
    violations = [(f"fields.{name}", text) for name, text in faults.items()]
    if values.keys() - known:
        violations.append(("fields", f"it has a name that {metadata.name} does not ask for; {_names(sorted(known))}."))
    if violations:
        raise FieldInvalid(*violations[0], more=violations[1:])
    return credential


def field_fault(error: CredentialInvalid, metadata: ExchangeMetadata) -> FieldInvalid | CredentialInvalid:
    """What the plugin says of a credential, as the fault of a form's field if it begins with the field's name."""
    first = error.message.partition(" ")[0].removeprefix("extra_metadata.")
    if first not in {field.name for field in metadata.credential_fields}:
        return error
    return FieldInvalid(f"fields.{first}", _description(first, error))


def _faults_of_texts(metadata: ExchangeMetadata, values: Mapping[str, Secret]) -> Iterator[tuple[str, str]]:
    """What is wrong with each value as a text, whatever it is for."""
    for field in metadata.credential_fields:
        text = values[field.name].reveal().strip() if field.name in values else ""
        limit = _LONGEST_SECRET if field.secret or field.private_keys else _LONGEST_TEXT
        if len(text) > limit:
            yield field.name, f"it is longer than {limit} characters."
        elif "\0" in text or (field.name not in SECRET_FIELDS and not text.isprintable()):
            yield field.name, "it holds characters that cannot be printed."


def _description(name: str, error: CredentialInvalid) -> str:
    """The plugin's message and advice about the field, without its name at the beginning."""
    text = error.message
    for prefix in (f"extra_metadata.{name} ", f"{name} "):
        if text.startswith(prefix):
            text = f"it {text.removeprefix(prefix)}"
    # Advice about commands is for operators.
    advice = error.advice or ""
    return text if not advice or "exchange-service" in advice else f"{text} {advice}"


def _names(names: Sequence[str]) -> str:
    return f"its fields are {', '.join(names)}" if names else "it has no fields"
