"""`mcp`: the service for assistants, by the Model Context Protocol on standard input and output. Read-only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any

import typer

from exchange_service import __version__
from exchange_service.cli.calls import Target, calling
from exchange_service.cli.outcome import ExitCode, fail, messages, run
from exchange_service.environment import ENVIRONMENT_PREFIX

if TYPE_CHECKING:
    # Only with the extra [mcp].
    from mcp.server.lowlevel import Server

    from exchange_service.cli.assistant import Assistant, Tool


@calling
def mcp(
    target: Target,
    user: Annotated[
        list[str] | None,
        typer.Option(
            "--user",
            "-u",
            envvar=f"{ENVIRONMENT_PREFIX}USER",
            help="A user that the assistant may read; can be repeated. With one, it cannot name any.",
        ),
    ] = None,
    all_users: Annotated[
        bool, typer.Option("--all-users", help="The assistant may read every user that the service lets you read.")
    ] = False,
) -> None:
    """Let an assistant list exchanges and accounts, read balances and wait for a change.

    It speaks the Model Context Protocol on standard input and output, as assistants' programs start it. It changes
    nothing, and shows no credential and no whole account number. Needs the extra [mcp].
    """
    if bool(user) == all_users:
        fail("say which users the assistant may read, by --user or by --all-users", ExitCode.USAGE)
    if find_spec("mcp") is None:
        fail("the package mcp is not installed: pip install 'exchange-service[mcp]'", ExitCode.MISSING)
    run(_serve(target, list(dict.fromkeys(user or ()))))


async def _serve(target: Target, users: Sequence[str]) -> None:
    # Late: they take most of a second, and the extra may be missing.
    from mcp.server.stdio import stdio_server

    from exchange_service.cli.assistant import Assistant

    async with target.client() as client:
        server = _server(Assistant(client, users))
        # While it lasts, what anything else prints goes to standard error.
        async with stdio_server() as (reader, writer):
            await server.run(reader, writer, server.create_initialization_options())


def _server(assistant: Assistant) -> Server[Any]:
    import mcp_types
    from mcp.server.lowlevel import Server

    from exchange_service.cli.assistant import INSTRUCTIONS

    tools = {tool.name: tool for tool in assistant.tools()}

    async def list_tools(_context: Any, _params: Any) -> mcp_types.ListToolsResult:
        return mcp_types.ListToolsResult(tools=[_described(tool) for tool in tools.values()])

    async def call_tool(_context: Any, params: mcp_types.CallToolRequestParams) -> mcp_types.CallToolResult:
        answer, failed = await _answer(tools, params.name, params.arguments or {})
        text = json.dumps(answer, ensure_ascii=False, separators=(",", ":"))
        content: list[mcp_types.ContentBlock] = [mcp_types.TextContent(type="text", text=text)]
        return mcp_types.CallToolResult(content=content, structured_content=answer, is_error=failed)

    return Server(
        "exchange-service",
        version=__version__,
        title="Balances at exchanges and brokers",
        instructions=INSTRUCTIONS,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )


def _described(tool: Tool) -> Any:
    """A tool as the protocol describes it."""
    import mcp_types

    schema = tool.arguments.model_json_schema()
    # They describe the class in our code.
    schema = {name: value for name, value in schema.items() if name not in ("title", "description")}
    return mcp_types.Tool(
        name=tool.name,
        title=tool.title,
        description=tool.description,
        input_schema=schema,
        annotations=mcp_types.ToolAnnotations(
            title=tool.title, read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=True
        ),
    )


async def _answer(tools: dict[str, Tool], name: str, arguments: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """The answer of a tool, and whether it is an error."""
    from pydantic import ValidationError

    from exchange_service.cli.assistant import describe_error
    from exchange_service.errors import FieldInvalid, ServiceError, ServiceFailed

    try:
        if name not in tools:
            raise FieldInvalid("tool", f"is not one of {', '.join(tools)}")
        tool = tools[name]
        return await tool.answer(tool.arguments.model_validate(arguments)), False
    except ValidationError as invalid:
        # Without the values, which may be anything.
        wrong = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in invalid.errors())
        error: ServiceError = FieldInvalid("arguments", wrong)
    except ServiceError as raised:
        error = raised
    except Exception as broken:
        # Its text may hold anything.
        messages.print(f"[red]{name} broke:[/] {type(broken).__name__}", soft_wrap=True)
        error = ServiceFailed("The program that connects the assistant to the service broke.")
    return {"error": describe_error(error)}, True


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(mcp)
