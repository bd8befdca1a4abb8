"""Who may talk to the guard: the kernel's word on the other end of the socket, against its own list."""

from __future__ import annotations

import grp
import os
import pwd
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass

_SO_PEERGROUPS = 59  # Linux 4.13; not in the socket module before Python 3.14
_MAX_BYTES = 1024  # what getsockopt of Python takes: 256 groups
_INT = struct.calcsize("i")


@dataclass(frozen=True, slots=True)
class Peer:
    """Process, user, primary and further groups, as of the moment it connected."""

    pid: int
    uid: int
    gids: frozenset[int]


@dataclass(frozen=True, slots=True)
class Allowed:
    """Users and groups that may ask for clocks; root and the guard's own user always may."""

    uids: frozenset[int] = frozenset()
    gids: frozenset[int] = frozenset()

    def admits(self, peer: Peer) -> bool:
        return may_operate(peer) or peer.uid in self.uids or bool(self.gids & peer.gids)


def may_operate(peer: Peer) -> bool:
    """Whether it is the operator: root, or the user the guard runs as."""
    return peer.uid in (0, os.geteuid())


def peer_of(channel: socket.socket) -> Peer:
    """Raises OSError when the kernel does not tell, or for a user of more than 256 groups."""
    pid, uid, gid = struct.unpack("3i", channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 3 * _INT))
    further = channel.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MAX_BYTES)
    gids = struct.unpack(f"{len(further) // _INT}I", further)
    return Peer(pid, uid, frozenset({gid, *gids}))


def user_id(name: str) -> int:
    """By name or number. Raises KeyError."""
    return int(name) if name.isdigit() else pwd.getpwnam(name).pw_uid


def group_id(name: str) -> int:
    """By name or number. Raises KeyError."""
    return int(name) if name.isdigit() else grp.getgrnam(name).gr_gid


def ids(users: Sequence[str], groups: Sequence[str]) -> Allowed:
    """Raises KeyError for a name that this machine does not know."""
    return Allowed(frozenset(map(user_id, users)), frozenset(map(group_id, groups)))
