"""Writes the generated parts of docs/: `make docs`. The tests call `generated` to see that they are current."""

from __future__ import annotations

import re
from pathlib import Path

from exchange_service.cli.flags import default_text
from exchange_service.grpc_server.status import TABLE
from exchange_service.settings import ENVIRONMENT_PREFIX, Settings
from exchange_service.v1 import error_reason_pb2

ROOT = Path(__file__).parent.parent
_REASON = re.compile(r"  // (?P<text>[^\n]*(?:\n  // [^\n]*)*)\n  ERROR_REASON_(?P<name>[A-Z_]+) = \d+;")

# Demo users that show a reason, as the command to type.
_DEMO = {
    "EXCHANGE_UNKNOWN": "balance --user demo --exchange onada",
    "FIELD_INVALID": "balance --user demo --exchange oanda --environment mars",
    "CREDENTIAL_MISSING": "balance --user nobody --exchange oanda",
    "CREDENTIAL_REJECTED": "balance --user demo-refused --exchange oanda",
    "VENUE_RATE_LIMITED": "balance --user demo-limited --exchange oanda",
    "VENUE_UNAVAILABLE": "balance --user demo-stale --exchange oanda, twice, the second time with --max-age 0",
    "VENUE_TIMEOUT": "balance --user demo-slow --exchange oanda --max-age 0 --timeout 2",
    "ACCOUNT_UNKNOWN": "balance --user demo-partly --exchange oanda",
    "NOT_SUPPORTED": "balance --user demo --exchange tradier",
}


def settings_table() -> str:
    """Every setting, with its environment variable, default and meaning."""
    lines = ["| setting | environment | default | meaning |", "|---|---|---|---|"]
    for name, field in Settings.model_fields.items():
        variable = f"`{ENVIRONMENT_PREFIX}{name.upper()}`"
        meaning = (field.description or "").replace("|", "\\|")
        lines.append(f"| `{name}` | {variable} | {default_text(name, field)} | {meaning} |")
    return "\n".join(lines)


def reasons_page() -> str:
    """docs/errors.md: every reason, what it means, who acts, what to do, how to see it."""
    meanings = _meanings()
    by_reason = {leaf.reason: (leaf, row) for leaf, row in TABLE.items()}
    parts = [_PAGE_HEAD]
    for name in error_reason_pb2.ErrorReason.keys():  # noqa: SIM118 - an enum wrapper is no dict
        reason = name.removeprefix("ERROR_REASON_")
        if reason == "UNSPECIFIED":
            continue
        leaf, row = by_reason[reason]
        delay = "" if leaf.default_retry_after is None else ", after the delay in `RetryInfo`"
        retry = f"yes{delay}" if row.retry else "no"
        lines = [f"## {reason}", "", f"{meanings[reason]}", ""]
        lines += [f"- code: `{row.code.name}`", f"- who acts: {row.who}", f"- try again: {retry}"]
        lines.append(f"- what to do: {row.next_step}")
        if reason in _DEMO:
            lines.append(f"- see it in the demo: `exchange-service {_DEMO[reason]}`")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


_PAGE_HEAD = """# Errors

Generated from the status table by `make docs`.

Every failed call carries a `google.rpc.Status` in the trailer `grpc-status-details-bin`, with exactly one `ErrorInfo`:
its domain is `exchange-service`, its reason one of the names below. A bad field comes with a `BadRequest`, a delay with
a `RetryInfo` and the trailer `grpc-retry-pushback-ms`, which gRPC's own retries obey. The same reason and what to do
stand in the message. In a stream, and beside the accounts that could be read, the same reasons come as an
`AccountFault`."""


def _meanings() -> dict[str, str]:
    """The comments of error_reason.proto, without the code that stands before the colon."""
    text = (ROOT / "protos" / "exchange_service" / "v1" / "error_reason.proto").read_text()
    found = {}
    for match in _REASON.finditer(text):
        sentence = " ".join(line.strip().removeprefix("//").strip() for line in match["text"].splitlines())
        meaning = sentence.partition(": ")[2] or sentence
        found[match["name"]] = meaning[0].upper() + meaning[1:]
    return found


def with_settings(text: str) -> str:
    """A document with the settings table between its marks."""
    begin, end = "<!-- settings: begin -->\n", "\n<!-- settings: end -->"
    head, found, rest = text.partition(begin)
    _, closed, tail = rest.partition(end.lstrip())
    if not found or not closed:
        raise ValueError("operations.md has lost the marks around its settings")
    return head + begin + settings_table() + end + tail


def generated() -> dict[Path, str]:
    """Every file with generated parts, as it should be."""
    operations = ROOT / "docs" / "operations.md"
    return {
        operations: with_settings(operations.read_text()),
        ROOT / "docs" / "errors.md": reasons_page(),
    }


if __name__ == "__main__":
    for path, text in generated().items():
        path.write_text(text)
