"""Every error says once what to do next: in its advice, or by the status table, and not in its message too."""

from __future__ import annotations

import ast
import asyncio
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

import grpc
import pytest

from exchange_service import errors
from exchange_service.cli.demo import running_demo
from exchange_service.client import ExchangeServiceClient
from exchange_service.errors import ServiceError
from exchange_service.grpc_server.handler_wrapper import HandlerWrapper
from exchange_service.grpc_server.servicer import SERVICE
from exchange_service.grpc_server.status import TABLE
from tests.harness import settings_for

ROOT = Path(__file__).parent.parent
KINDS = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}
STEPS = {leaf.reason: row.next_step for leaf, row in TABLE.items()}
# A text with its place: the page and line, or the file and line.
Placed = tuple[str, str]


def sources() -> list[Path]:
    paths = [*(ROOT / "exchange_service").rglob("*.py"), *(ROOT / "plugins").glob("*/exchange_service_*/**/*.py")]
    return [path for path in paths if "_pb2" not in path.name]


def texts_in(node: ast.expr, named: Mapping[str, list[ast.expr]]) -> Iterator[str]:
    """The literals of an expression and of the names in it; of an f-string those between the values."""
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part.value
        elif isinstance(part, ast.Name):
            for value in named.get(part.id, ()):
                yield from texts_in(value, {})


def openings_of(node: ast.expr, named: Mapping[str, list[ast.expr]]) -> Iterator[str]:
    """The first literal of each text that an expression can be."""
    if isinstance(node, ast.IfExp):
        yield from openings_of(node.body, named)
        yield from openings_of(node.orelse, named)
    elif isinstance(node, ast.Name):
        for value in named.get(node.id, ()):
            yield from openings_of(value, {})
    else:
        yield next(texts_in(node, {}), "")


def named_texts(tree: ast.Module) -> dict[str, list[ast.expr]]:
    """The texts that a module gives a name, by the name."""
    named: dict[str, list[ast.expr]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant | ast.JoinedStr | ast.IfExp):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    named.setdefault(target.id, []).append(node.value)
    return named


def parts_of(node: ast.AST) -> tuple[list[ast.expr], list[ast.expr]]:
    """Message and advice, if the node makes an error of ours, or is a table's row of class, message and advice."""
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") in KINDS:
        return node.args, [keyword.value for keyword in node.keywords if keyword.arg == "advice"]
    row = node.elts if isinstance(node, ast.Tuple) else node.args if isinstance(node, ast.Call) else []
    if len(row) > 1 and getattr(row[0], "id", "") in KINDS:
        return row[1:2], row[2:3]
    return [], []


@cache
def raised() -> tuple[list[Placed], list[Placed]]:
    """The literals of messages, and the beginnings of advice, wherever an error of ours is made."""
    messages: list[Placed] = []
    advice: list[Placed] = []
    for path in sources():
        tree = ast.parse(path.read_text())
        named = named_texts(tree)
        for node in ast.walk(tree):
            message, step = parts_of(node)
            place = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            messages += [(place, text) for part in message for text in texts_in(part, named)]
            advice += [(place, text) for part in step for text in openings_of(part, named) if text]
    return messages, advice


# Words with which a fact begins: "The service's log says why.", "There is nothing to wait for."
_NO_VERBS = {"If", "The", "There"}


@cache
def advising() -> re.Pattern[str]:
    """The verbs with which advice begins, at the beginning of a sentence, or of a clause after a semicolon or colon."""
    steps = [*STEPS.values(), *(text for _, text in raised()[1])]
    verbs = sorted({step.split()[0] for step in steps} - _NO_VERBS)
    clauses = "|".join(verb.lower() for verb in verbs)
    return re.compile(rf"\b(?:{'|'.join(verbs)})\b|[;:] (?:{clauses})\b")


def advice_count(message: str) -> int:
    """How many sentences and clauses of a message advise."""
    return sum(bool(advising().match(part)) for part in re.split(r"(?<=[.?!]) (?=[A-Z])|(?=[;:] [a-z])", message))


def advising_texts(texts: list[Placed]) -> list[str]:
    return [f"{place}: {text}" for place, text in texts if advising().search(text)]


def test_no_message_of_an_error_holds_advice() -> None:
    messages, advice = raised()
    assert len(messages) > 200
    assert len(advice) > 40
    assert advising_texts(messages) == []


def venue_rows() -> list[tuple[str, str]]:
    page = (ROOT / "docs" / "venues.md").read_text()
    return re.findall(r"^\| .* \| `(\w+)` \| (.*) \| [^|]* \|$", page, re.MULTILINE)


def test_no_line_of_the_page_on_venues_advises_twice() -> None:
    rows = venue_rows()
    assert len(rows) > 30
    # Where the table's step was added, the rest must not advise; elsewhere the error's own advice stands alone.
    with_step = [(reason, text) for reason, text in rows if text.endswith(STEPS[reason])]
    assert advising_texts([(reason, text.removesuffix(STEPS[reason])) for reason, text in with_step]) == []
    assert 0 < len(with_step) < len(rows)
    for reason, text in rows:
        assert text.count(STEPS[reason]) <= 1


@pytest.mark.parametrize("reason", sorted(STEPS))
def test_the_page_on_errors_advises_once_for_each_reason(reason: str) -> None:
    page = (ROOT / "docs" / "errors.md").read_text()
    section = re.search(rf"^## {reason}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    assert section
    meaning, _, facts = section[1].partition("\n- code:")
    assert facts.count("- what to do: ") == 1
    assert STEPS[reason] in facts
    assert advising_texts([(reason, meaning)]) == []


class RaisingHandler:
    """A method of the service that raises an error."""

    def __init__(self) -> None:
        self.error: ServiceError = errors.ServiceFailed("")

    async def unary(self, request: Any, context: Any) -> bytes:
        raise self.error


@asynccontextmanager
async def raising_service() -> AsyncIterator[tuple[RaisingHandler, ExchangeServiceClient]]:
    """A server whose GetBalance raises the handler's error, and a client of it."""
    handler, server = RaisingHandler(), grpc.aio.server()
    method: Any = grpc.unary_unary_rpc_method_handler(HandlerWrapper().wrap("GetBalance", handler.unary))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"GetBalance": method}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with ExchangeServiceClient(f"127.0.0.1:{port}") as client:
            yield handler, client
    finally:
        await server.stop(0)


async def messages_for(client: ExchangeServiceClient, user_id: str, exchange_id: str, **options: Any) -> list[str]:
    """The message with which a call fails, or those of the accounts that could not be read."""
    try:
        reply = await client.get_balance(user_id, exchange_id, **options)
    except ServiceError as error:
        return [error.message]
    faults = [account.error for account in reply.balance.venue_accounts if account.HasField("error")]
    if reply.freshness.HasField("stale"):
        faults.append(reply.freshness.stale)
    return [fault.message for fault in faults]


@pytest.mark.parametrize("advice", [None, "", "Ask the operator for a new one."])
@pytest.mark.parametrize("reason", sorted(STEPS))
async def test_the_status_of_each_reason_advises_once_at_most(reason: str, advice: str | None) -> None:
    async with raising_service() as (handler, client):
        handler.error = errors.from_reason(reason, "It happened.", advice=advice)
        (message,) = await messages_for(client, "user", "oanda")
    step = STEPS[reason] if advice is None else advice
    assert message == f"{reason}: It happened. {step}".rstrip()
    assert advice_count(message) <= 1


async def test_no_trouble_of_the_demo_advises_twice(tmp_path: Path) -> None:
    wrong_requests: list[tuple[str, str, dict[str, Any]]] = [
        ("demo", "onada", {}),
        ("demo", "nowhere", {}),
        ("demo", "oanda", {"environment": "mars"}),
        ("demo", "bullish", {}),
        ("demo", "oanda", {"account_type": "moon"}),
        ("nobody", "oanda", {}),
    ]
    async with (
        running_demo(settings_for(tmp_path)) as demo,
        ExchangeServiceClient(demo.service.address, timeout=5) as client,
    ):
        requests = [
            (user_id, exchange_id, {"max_age": 0})
            for user_id, exchange_ids in demo.users.items()
            for exchange_id in exchange_ids
        ]
        requests += wrong_requests
        results = await asyncio.gather(
            *(messages_for(client, user_id, exchange_id, **options) for user_id, exchange_id, options in requests)
        )
    messages = [message for texts in results for message in texts]
    assert len(messages) > 15
    assert [message for message in messages if advice_count(message) > 1] == []


@pytest.mark.parametrize(
    "text",
    [
        "It is refused. Check the key.",
        "It is refused; call again.",
        "api_key is missing: store it.",
    ],
)
def test_advice_in_a_message_is_noticed(text: str) -> None:
    assert advising_texts([("a.py:1", text)])


@pytest.mark.parametrize(
    ("message", "count"),
    [
        ("REASON: OANDA refuses the token. A token works in one environment only. Check the key.", 1),
        ("REASON: OANDA refuses the token. Check the key. Store a new one.", 2),
        ("REASON: OANDA refuses the token: store another. Check the key.", 2),
        ("REASON: OANDA refuses the token.", 0),
    ],
)
def test_the_advice_of_a_message_is_counted(message: str, count: int) -> None:
    assert advice_count(message) == count
