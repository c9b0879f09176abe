"""Consumer groups of the double of Event Hubs: Kafka's classic group protocol, with static members and no disk."""

import asyncio
import uuid
from dataclasses import dataclass, field
from typing import Any

ILLEGAL_GENERATION, INCONSISTENT_PROTOCOL, UNKNOWN_MEMBER, REBALANCING, FENCED_INSTANCE = 22, 23, 25, 27, 82


@dataclass
class Member:
    """`joined` and `synced` are what its waiting requests wait for."""

    id: str
    instance: str | None
    protocols: list[tuple[str, bytes]]
    session: float
    seen: float
    joined: asyncio.Future | None = None
    synced: asyncio.Future | None = None


@dataclass
class Group:
    """One group; every method runs in the double's event loop, and gives the fields of the answer."""

    members: dict[str, Member] = field(default_factory=dict)
    assignments: dict[str, bytes] = field(default_factory=dict)
    offsets: dict[tuple[str, int], tuple[int, str]] = field(default_factory=dict)
    generation: int = 0
    leader: str = ""
    protocol: str = ""
    state: str = "empty"

    async def join(self, request: Any) -> dict[str, Any]:
        now = asyncio.get_running_loop().time()
        protocols = [(protocol.name, bytes(protocol.metadata)) for protocol in request.protocols]
        instance = request.group_instance_id
        if request.member_id and (error := self._unknown(request.member_id, instance)):
            return {"error_code": error, "member_id": request.member_id, "protocol_name": ""}
        common = {name for name, _ in protocols}.intersection(*({name for name, _ in other.protocols} for other in self.members.values()))
        if not common:
            return {"error_code": INCONSISTENT_PROTOCOL, "member_id": request.member_id, "protocol_name": ""}
        before = self.members.get(request.member_id) or next(
            (one for one in self.members.values() if instance and one.instance == instance), None
        )
        member = Member(request.member_id or f"member-{uuid.uuid4()}", instance, protocols, request.session_timeout_ms / 1000, now)
        if before is not None:
            del self.members[before.id]
            self.assignments[member.id] = self.assignments.pop(before.id, b"")
            if before.joined is not None and not before.joined.done():
                before.joined.set_result({"error_code": FENCED_INSTANCE, "member_id": before.id, "protocol_name": ""})
        self.members[member.id] = member
        unchanged = before is not None and before.protocols == protocols and (member.id != before.id or before.id != self.leader)
        if self.state == "stable" and unchanged:
            if before.id == self.leader:
                self.leader = member.id
            # Without the list of members it does what a follower does: it asks for what it had.
            return {**self._joined(member), "leader": "" if self.leader == member.id else self.leader}
        if self.state != "joining":
            self._rebalance()
        member.joined = asyncio.get_running_loop().create_future()
        self._complete()
        return await member.joined

    async def sync(self, request: Any) -> dict[str, Any]:
        if error := self.check(request):
            return {"error_code": error}
        member = self.members[request.member_id]
        if self.state == "syncing" and request.member_id == self.leader:
            self.assignments = {one.member_id: bytes(one.assignment) for one in request.assignments}
            self.state = "stable"
            for other in self.members.values():
                if other.synced is not None and not other.synced.done():
                    other.synced.set_result(0)
        elif self.state == "syncing":
            member.synced = asyncio.get_running_loop().create_future()
            if error := await member.synced:
                return {"error_code": error}
        kind = {"protocol_type": "consumer", "protocol_name": self.protocol}
        return {"error_code": 0, **kind, "assignment": self.assignments.get(member.id, b"")}

    def check(self, request: Any) -> int:
        """The error of a request that names a member and a generation, and a sign of life if there is none."""
        generation = request.generation_id if hasattr(request, "generation_id") else request.generation_id_or_member_epoch
        if error := self._unknown(request.member_id, request.group_instance_id):
            return error
        if generation != self.generation:
            return ILLEGAL_GENERATION
        self.members[request.member_id].seen = asyncio.get_running_loop().time()
        return REBALANCING if self.state == "joining" else 0

    def leave(self, member_id: str, instance: str | None) -> int:
        found = next((one for one in self.members.values() if one.id == member_id or (instance and one.instance == instance)), None)
        if found is None:
            return UNKNOWN_MEMBER
        self._remove(found)
        return 0

    def expire(self, now: float) -> None:
        """Let go of members that were silent for longer than their session."""
        for member in list(self.members.values()):
            waits = member.joined is not None and not member.joined.done()
            if not waits and now - member.seen > member.session:
                self._remove(member)

    def _unknown(self, member_id: str, instance: str | None) -> int:
        if member_id in self.members:
            return 0
        return FENCED_INSTANCE if instance and any(one.instance == instance for one in self.members.values()) else UNKNOWN_MEMBER

    def _remove(self, member: Member) -> None:
        del self.members[member.id]
        self.assignments.pop(member.id, None)
        if not self.members:
            self.state = "empty"
            return
        if self.state != "joining":
            self._rebalance()
        self._complete()

    def _rebalance(self) -> None:
        self.state = "joining"
        for member in self.members.values():
            member.joined = None
            if member.synced is not None and not member.synced.done():
                member.synced.set_result(REBALANCING)

    def _complete(self) -> None:
        """Begin the next generation once every member has joined."""
        if self.state != "joining" or any(member.joined is None for member in self.members.values()):
            return
        self.generation += 1
        self.state = "syncing"
        first = next(iter(self.members.values()))
        self.leader = self.leader if self.leader in self.members else first.id
        everyone = [{name for name, _ in member.protocols} for member in self.members.values()]
        self.protocol = next(name for name, _ in first.protocols if all(name in names for names in everyone))
        for member in self.members.values():
            member.seen = asyncio.get_running_loop().time()
            if member.joined is not None and not member.joined.done():
                member.joined.set_result(self._joined(member))

    def _joined(self, member: Member) -> dict[str, Any]:
        listed = self.members.values() if member.id == self.leader and self.state == "syncing" else ()
        return {
            "error_code": 0,
            "generation_id": self.generation,
            "protocol_type": "consumer",
            "protocol_name": self.protocol,
            "leader": self.leader,
            "member_id": member.id,
            "members": [
                {"member_id": one.id, "group_instance_id": one.instance, "metadata": dict(one.protocols)[self.protocol]} for one in listed
            ],
        }
