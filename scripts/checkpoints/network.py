"""Whether the hub of weights answers: asked once and briefly, so that a machine without a network does not wait for each file."""

from __future__ import annotations

import http.client
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import MutableMapping
from threading import Thread

HUB = "https://huggingface.co"
SECONDS = 3.0
"""For the whole look; a connection's own limit does not hold for the search of its host's address."""


def settle(environment: MutableMapping[str, str] = os.environ) -> str | None:
    """Have the processes that are started from here on work offline if the hub does not answer; then a line that says so.

    Nothing is asked where `HF_HUB_OFFLINE` is set. What the hub's library says of each of its own retries is turned off.
    """
    environment.setdefault("HF_HUB_VERBOSITY", "error")
    if environment.get("HF_HUB_OFFLINE") or answers(endpoint := environment.get("HF_ENDPOINT") or HUB):
        return None
    environment["HF_HUB_OFFLINE"] = "1"
    return f"{endpoint} does not answer: of what it holds, only what is on this machine can be tried"


def answers(address: str, seconds: float = SECONDS) -> bool:
    """Whether anything answers at an address within a time, through the proxies that the environment names."""
    answered: list[bool] = []
    look = Thread(target=lambda: answered.append(_asked(address, seconds)), daemon=True)
    look.start()
    look.join(seconds)
    return any(answered)


def _asked(address: str, seconds: float) -> bool:
    try:
        request = urllib.request.Request(address, method="HEAD")
        with urllib.request.build_opener().open(request, timeout=seconds):
            return True
    except urllib.error.HTTPError as error:  # of a server that cannot help now, nothing can be had either
        return error.code < 500
    except urllib.error.URLError as error:  # a certificate unknown to Python: the hub's library brings its own
        return isinstance(error.reason, ssl.SSLCertVerificationError)
    except (OSError, http.client.HTTPException, ValueError):
        return False
