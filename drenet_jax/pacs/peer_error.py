"""The error of a peer, without what it takes to reach one."""


class PeerError(Exception):
    """A peer that cannot be reached, or does not do what is requested; in a few words."""
