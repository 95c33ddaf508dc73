"""docs/calling-typescript.md, the examples, and the package: what a reader would copy, run and install."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import subprocess
import sys
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import PATIENCE
from tests.test_cli import environment
from tests.typescript.program import BUILD, FOLDER, node, run_example

PAGE = Path(__file__).parents[2] / "docs" / "calling-typescript.md"
_SNIPPET = re.compile(r"<!-- (?P<use>runs|compiles): (?P<name>\w+) -->\n```typescript\n(?P<text>.*?)```", re.DOTALL)
# Where the demo serves, in the page, and where a second replica does.
_SERVICE, _SECOND = "127.0.0.1:50051", "127.0.0.1:50061"
# So many accounts the user `demo` has at least.
ACCOUNTS = 8
SNIPPETS = BUILD / "snippets"
# What each prints, line by line; digits may differ.
PRINTED = {
    "first": r"EUR \d+\.\d+\nconfirmed\noanda\n",
    "addresses": r"(\d+n\n){4}",
    "tokens": r"oanda\n",
    "errors": r"CREDENTIAL_MISSING Connect an account first\.\nFIELD_INVALID exchange_id: it is required\.\n"
    r"VENUE_RATE_LIMITED Try again in \d+ seconds\.\nCREDENTIAL_REJECTED CREDENTIAL_REJECTED: .+ \(request \w+\)\n",
    "signal": r"(VENUE_TIMEOUT|DEADLINE_PASSED)\nTimeoutError\n",
    "once": r"(\w+ .+\n){7}",
    "stream": r"((balance \w+ \d+n|error \w+ .+)\n){8,}",
    "known": r"heartbeat\n",
}


def snippets(use: str = "") -> dict[str, str]:
    """The snippets of the page by their names."""
    found = _SNIPPET.finditer(PAGE.read_text())
    return {match["name"]: match["text"] for match in found if use in ("", match["use"])}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A demo on a free port; its address."""
    arguments = ("demo", "--address", "127.0.0.1:0", "--http-address", "127.0.0.1:0")
    command = [sys.executable, "-m", "exchange_service", *arguments]
    home = environment(tmp_path_factory.mktemp("demo"))
    with subprocess.Popen(command, env=home, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        match = re.search(r"listens on (\S+)", process.stdout.readline())
        assert match
        yield match[1]
        process.terminate()
        process.communicate()


async def run(*command: str) -> tuple[int, str]:
    """Run a command to its end: its exit code, and what it printed."""
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=STDOUT, cwd=FOLDER)
    async with asyncio.timeout(4 * PATIENCE):
        output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


def test_every_snippet_of_the_page_is_compiled_or_run() -> None:
    assert PAGE.read_text().count("```typescript") == len(snippets())
    assert snippets("runs").keys() == PRINTED.keys()


async def test_the_snippets_of_the_page_compile_strictly_and_print_what_they_say(demo: str) -> None:
    shutil.rmtree(SNIPPETS, ignore_errors=True)
    SNIPPETS.mkdir(parents=True)
    for name, text in snippets().items():
        (SNIPPETS / f"{name}.ts").write_text(text.replace(_SERVICE, demo))
    settings = {
        "extends": "../../tsconfig.json",
        "compilerOptions": {"rootDir": ".", "outDir": "out"},
        "include": ["."],
    }
    (SNIPPETS / "tsconfig.json").write_text(json.dumps(settings))
    compiled = await run("node_modules/.bin/tsc", "-p", str(SNIPPETS))
    assert compiled == (0, "")
    for name in snippets("runs"):
        code, output = await run(node(), str(SNIPPETS / "out" / f"{name}.js"))
        assert (code, bool(re.fullmatch(PRINTED[name], output))) == (0, True), f"{name}: {output}"


async def test_the_examples_list_read_follow_and_call_steadily(demo: str) -> None:
    address = ("--address", demo)
    code, output = await run_example("list", *address)
    assert code == 0
    assert "oanda\tOANDA\tForex\n" in output
    code, output = await run_example("balance", "demo", "oanda", *address)
    assert (code, bool(re.fullmatch(r"EUR\ttotal \d+\.\d+\tfree \d+\.\d+\n", output))) == (0, True), output
    code, output = await run_example("balance", "nobody", "oanda", *address)
    assert (code, output.partition(":")[0]) == (1, "CREDENTIAL_MISSING")
    code, output = await run_example("balance", "nobody", *address)
    assert (code, output.partition(":")[0]) == (2, "Usage")
    assert await run_example("steady", "0.5", demo) == (0, "calls 10 failed 0\n")
    code, output = await run_example("steady", "0.1", "127.0.0.1:1")
    assert (code, output.splitlines()[-1]) == (1, "calls 2 failed 2")
    code, output = await run_example("follow", "demo", "--address", "127.0.0.1:1")
    assert (code, json.loads(output)) == (1, {"event": "failed", "reason": "UNREACHABLE"})


async def test_following_prints_one_line_for_each_event_and_ends_when_it_is_interrupted(demo: str) -> None:
    command = (node(), str(BUILD / "examples" / "follow.js"), "demo", "--address", demo)
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE)
    assert process.stdout is not None
    accounts = set()
    async with asyncio.timeout(2 * PATIENCE):
        while len(accounts) < ACCOUNTS or "oanda/production" not in accounts:
            line = json.loads(await process.stdout.readline())
            if line["event"] == "balance":
                assert re.fullmatch(r"\d{16}", line["version"])
                accounts.add(line["account"])
        process.send_signal(signal.SIGINT)
        await process.communicate()
    assert process.returncode == 0


def test_the_package_holds_the_built_code_with_its_types_and_nothing_else() -> None:
    done = subprocess.run(
        ["npm", "pack", "--dry-run", "--json"], cwd=FOLDER, capture_output=True, text=True, check=True
    )
    (packed,) = json.loads(done.stdout)
    names = [file["path"] for file in packed["files"]]
    assert {"LICENSE", "README.md", "package.json", "dist/index.js", "dist/index.d.ts"} <= set(names)
    others = [
        name for name in names if not re.fullmatch(r"dist/[\w/]+\.(js|d\.ts)|LICENSE|README\.md|package\.json", name)
    ]
    assert others == []
    assert packed["unpackedSize"] < 1_000_000
    package = json.loads((FOLDER / "package.json").read_text())
    assert package["dependencies"].keys() == {"@bufbuild/protobuf", "@connectrpc/connect", "@connectrpc/connect-node"}
    assert [version for version in package["devDependencies"].values() if not re.fullmatch(r"[\d.]+", version)] == []


async def test_the_package_works_where_it_is_installed(tmp_path: Path) -> None:
    code, packed = await run("npm", "pack", "--silent", "--pack-destination", str(tmp_path))
    assert code == 0, packed
    shutil.copy(FOLDER / ".npmrc", tmp_path)
    (tmp_path / "package.json").write_text('{"private": true, "type": "module"}')
    (tmp_path / "program.js").write_text(
        'import { createClient, ErrorReason } from "exchange-service-client";\n'
        'console.log(typeof createClient({ address: "127.0.0.1:1" }).close, ErrorReason.CREDENTIAL_MISSING);\n'
    )
    code, output = await run("npm", "install", "--silent", "--prefix", str(tmp_path), str(tmp_path / packed.strip()))
    assert code == 0, output
    assert await run(node(), str(tmp_path / "program.js")) == (0, "function 3\n")
    installed = {path.name for path in (tmp_path / "node_modules").glob("[!.]*")}
    assert installed == {"@bufbuild", "@connectrpc", "exchange-service-client"}
