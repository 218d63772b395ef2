"""From what clients and sessions do to the seed's catalogue of events, for handlers of the user."""

from crucible_tinkex.telemetry.bridge.bridge import Bridge
from crucible_tinkex.telemetry.bridge.catalogue import BridgeEvent, Handler, stored_kinds
from crucible_tinkex.telemetry.bridge.teller import Teller

__all__ = [
    "Bridge",
    "BridgeEvent",
    "Handler",
    "Teller",
    "stored_kinds",
]
