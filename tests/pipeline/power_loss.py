"""A recorder of file operations, and the disks that a power loss may leave at each of them.

POSIX promises little without fsync: of a file its last fsynced bytes, of a directory its last fsynced names. Whatever
came later may be lost or kept, for each file and each name on its own, and a kept file may be torn.
"""

import os
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

EVENTS = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.truncate"}
WRITING = os.O_WRONLY | os.O_RDWR

# An entry of a directory: its inode, and what it holds: bytes, or a directory's own entries.
Tree = dict[str, Any]
# What is kept of the operations after the last fsync: (names, bytes) of each file, each True, False or "torn".
Policy = Callable[[], tuple[bool, bool | str]]


@dataclass
class Disk:
    """What a directory shows, and what of it is durable."""

    root: Path
    durable_bytes: dict[int, bytes] = field(default_factory=dict)
    durable_names: dict[int, dict[str, int]] = field(default_factory=dict)
    shown: dict[int, Any] = field(default_factory=dict)
    held: list[int] = field(default_factory=list)

    def look(self) -> None:
        """Read every file and directory; what is gone from the tree stays known by its inode."""
        for path in (self.root, *self.root.rglob("*")):
            try:
                number = path.lstat().st_ino
                if path.is_dir():
                    self.shown[number] = {each.name: each.lstat().st_ino for each in path.iterdir()}
                else:
                    self.shown[number] = path.read_bytes()
            except FileNotFoundError:
                continue

    def sync(self, descriptor: int) -> None:
        number = os.fstat(descriptor).st_ino
        # NOTE: a descriptor that stays open keeps the number of a removed file from being given to another.
        self.held.append(os.dup(descriptor))
        self.look()
        what = self.shown.get(number)
        if isinstance(what, bytes):
            self.durable_bytes[number] = what
        elif what is not None:
            self.durable_names[number] = dict(what)

    def sync_all(self) -> None:
        """Take all that is shown for durable."""
        self.look()
        self.held += [os.open(path, os.O_RDONLY) for path in (self.root, *self.root.rglob("*"))]
        for number, what in self.shown.items():
            if isinstance(what, bytes):
                self.durable_bytes[number] = what
            else:
                self.durable_names[number] = dict(what)

    def after_power_loss(self, policy: Policy) -> Tree:
        return self._directory(self.root.stat().st_ino, policy)

    def _directory(self, number: int, policy: Policy) -> Tree:
        durable, shown = self.durable_names.get(number, {}), self.shown.get(number, {})
        found: Tree = {}
        for name in sorted({*durable, *shown}):
            keeps_name, keeps_bytes = policy()
            child = (shown if keeps_name else durable).get(name)
            if child is None:
                continue
            if isinstance(self.shown.get(child), dict):
                found[name] = self._directory(child, policy)
            else:
                found[name] = self._bytes(child, keeps_bytes)
        return found

    def _bytes(self, number: int, keeps_bytes: bool | str) -> bytes:
        durable, shown = self.durable_bytes.get(number, b""), self.shown.get(number, b"")
        if keeps_bytes == "torn" and shown != durable:
            same = len(durable) if shown.startswith(durable) else 0
            half = (same + len(shown)) // 2
            return shown[:half] + bytes(len(shown) - half)
        return shown if keeps_bytes else durable


def policies(seed: int) -> Iterator[tuple[str, Policy]]:
    """Yield the ways in which unsynced operations may end."""
    yield "all lost", lambda: (False, False)
    yield "all kept", lambda: (True, True)
    yield "names kept, bytes lost", lambda: (True, False)
    yield "names kept, bytes torn", lambda: (True, "torn")
    for number in range(2):
        chance = random.Random(f"{seed} {number}")
        yield f"mixed {number}", lambda chance=chance: (chance.random() < 0.5, chance.choice([True, False, "torn"]))


class Recorder:
    """Records a block that writes below `root`; `states` are the different disks that a power loss may leave.

    What stands in `root` before is durable. Of the points only every `1 / share`-th counts. `acknowledged` are the
    disks after the block.
    """

    def __init__(self, root: Path, monkeypatch: Any, share: float = 1.0):
        self._disk, self._monkeypatch, self._step = Disk(root), monkeypatch, max(1, round(1 / share))
        self._is_on, self.num_points, self.states = False, 0, dict[str, tuple[str, Tree]]()
        self.acknowledged: list[Tree] = []

    def __enter__(self) -> "Recorder":
        sync = os.fsync

        def watched(descriptor: int) -> None:
            self._point("fsync")
            sync(descriptor)
            if self._is_on:
                self._disk.sync(descriptor)
            self._point("after fsync")

        self._monkeypatch.setattr(os, "fsync", watched)
        self._disk.sync_all()
        self._is_on = True
        sys.addaudithook(self._heard)
        return self

    def __exit__(self, *_: object) -> None:
        self._is_on = False
        self._disk.look()
        self.acknowledged = [self._disk.after_power_loss(policy) for _, policy in policies(0)]
        self._monkeypatch.undo()
        for descriptor in self._disk.held:
            os.close(descriptor)

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._is_on:
            return
        if event in EVENTS:
            self._point(event)
        elif event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING:
            self._point("open")

    def _point(self, name: str) -> None:
        if not self._is_on:
            return
        self._is_on = False  # what the recorder itself does is no operation
        try:
            self._disk.look()
            self.num_points += 1
            if self.num_points % self._step == 0:
                for policy, keeps in policies(self.num_points):
                    tree = self._disk.after_power_loss(keeps)
                    self.states.setdefault(repr(tree), (f"{self.num_points} {name}, {policy}", tree))
        finally:
            self._is_on = True


def write_tree(tree: Tree, path: Path) -> None:
    """Lay a disk out as files."""
    path.mkdir(parents=True)
    for name, value in tree.items():
        if isinstance(value, dict):
            write_tree(value, path / name)
        else:
            (path / name).write_bytes(value)
