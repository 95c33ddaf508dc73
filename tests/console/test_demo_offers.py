"""What a demo offers in the console: its users, and a key for each of its venues."""

from __future__ import annotations

from pathlib import Path

from exchange_service.plugin_api import CredentialField
from tests.console.consoles import console_of, signed_in
from tests.harness import ScriptedPlugin, listing, registry_of, serving


async def test_only_a_demo_offers_users_and_keys(tmp_path: Path) -> None:
    plugin = ScriptedPlugin(listing("fakex", credential_fields=(CredentialField("api_key", "Key"),)))
    async with serving(tmp_path, registry=registry_of(plugin), manage_accounts=True) as running:
        console = console_of(running)
        browser = await signed_in(console)
        accounts, form = await browser.get("/accounts"), await browser.get("/connect/fakex")
        assert "demo" not in accounts.text
        assert "demo" not in form.text
        console.demonstrate({"demo-slow": "a slow venue"}, {"fakex": [{"api_key": "a-key-to-type"}]})
        accounts, form = await browser.get("/accounts"), await browser.get("/connect/fakex")
        assert '<a href="/accounts?user=demo-slow">demo-slow</a>' in accounts.text
        assert "a-key-to-type" in form.text
