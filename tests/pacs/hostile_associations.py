"""Hostile peers: `KINDS` take moments, `SLOW_KINDS` take seconds each."""

from pacs import hostile_commands, hostile_connections, hostile_instances, hostile_requests
from pacs.hostile_peer import KINDS, SLOW_KINDS, Kind, Peer

# Each of these adds to the tables when it is imported.
SOURCES = (hostile_commands, hostile_connections, hostile_instances, hostile_requests)

__all__ = ["KINDS", "SLOW_KINDS", "Kind", "Peer"]
