"""What the simulators of this plugin share: the situations in which a venue gives trouble."""

from __future__ import annotations

from exchange_service.testing import DemoVenue, Fault


def misbehave(venue: DemoVenue, situation: str, account: str) -> None:
    """Let the venue limit the account, be slow, or fail after one good answer, as the demo's situation says."""
    if situation == "limited":
        venue.fail(Fault.rate_limited("30")).account = account
    elif situation == "slow":
        venue.fail(Fault(delay=3.0, pass_on=True, account=account))
    elif situation == "stale":
        venue.fail(Fault.html(503)).account = account
        venue.fail(Fault(pass_on=True, account=account, times=1))
