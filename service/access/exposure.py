"""A service without API keys must not be reachable from other machines."""

from __future__ import annotations

import logging
from ipaddress import ip_address

from sqlalchemy import Engine

from service.access.keys import any_key
from service.foundation.settings import Settings

_log = logging.getLogger(__name__)


class Exposed(RuntimeError):
    """The settings would let anybody in."""


def check_exposure(settings: Settings, engine: Engine) -> None:
    """Log who may call; raises `Exposed` if anybody could and the settings do not allow it."""
    if any_key(engine):
        return
    if settings.allow_unauthenticated:
        _log.warning("no API key is configured: whoever reaches this service may use it")
    elif is_loopback(settings.host):
        _log.warning("no API key is configured: serving this machine only")
    else:
        raise Exposed(
            f"No API key is configured, so GaitID does not serve {settings.host}. Make a key with "
            "`gaitid keys add`, serve 127.0.0.1, or set GAITID_ALLOW_UNAUTHENTICATED=true where "
            "something in front of the service keeps strangers out."
        )


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine, by address or as `localhost`."""
    if host == "localhost":
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
