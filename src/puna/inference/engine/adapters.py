"""A folder of LoRA adapters -> adapters in memory, loaded on the first request and evicted within a memory limit.

Every subfolder is an adapter. Adapters may be added, replaced or removed at any time. A running request keeps the
adapter loaded at the start of the request.
"""

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path

from puna.formats.checkpoint.adapters.adapter import Adapter, open_adapter, read_lora, require_runnable, weights_hint
from puna.formats.checkpoint.adapters.folder import WEIGHTS_NAME, adapter_names, has_adapter
from puna.model.adapters.lora import Lora
from puna.model.config import LlamaConfig
from puna.pipeline.artifacts.artifact import verifying
from puna.pipeline.errors import ArtifactError, CheckpointError, PunaError, RequestError


@dataclass(frozen=True, slots=True)
class AdapterKey:
    """Name of an adapter with the identity of the file; a replaced file has a different identity.

    Example: `Adapters.find`.
    """

    name: str
    identity: tuple[int, ...]


class Adapters:
    """LoRA adapters of a folder, loaded on demand.

    Invariant: all adapters in memory, held adapters included, take at most `max_bytes`.

    `find` is safe in any thread; all further methods belong to the engine's thread.

    Example:
        >>> adapters = Adapters(folder, config, runner.prepare, itemsize=2, max_bytes=1 << 30)
        >>> adapters.names()
        ['customer-1', 'customer-2']
    """

    def __init__(
        self, folder: Path, config: LlamaConfig, prepare: Callable[[Lora], object], *, itemsize: int, max_bytes: int
    ):
        if not folder.is_dir():
            raise CheckpointError(f"{folder} is no directory", expected="a directory with one adapter per subdirectory")
        self.folder, self.max_bytes = folder, max_bytes
        self._config, self._prepare, self._itemsize = config, prepare, itemsize
        self._opened: dict[str, tuple[AdapterKey, Adapter | PunaError]] = {}
        self._lock = threading.Lock()
        self._sizes: dict[AdapterKey, int] = {}
        self._holders: Counter[AdapterKey] = Counter()
        self._loaded: OrderedDict[AdapterKey, object] = OrderedDict()  # least recently used first

    @property
    def num_loaded(self) -> int:
        return len(self._loaded)

    @property
    def loaded_bytes(self) -> int:
        return sum(map(self._sizes.__getitem__, self._loaded))

    def names(self) -> list[str]:
        """Return the names in the folder now, fit for use or not."""
        return adapter_names(self.folder)

    def unfit(self) -> list[str]:
        """Return a line with the reason for every unfit adapter."""
        reasons: list[str] = []
        for name in self.names():
            try:
                self.find(name)
            except RequestError as error:
                reasons.append(str(error))
        return reasons

    def find(self, name: str) -> AdapterKey | None:
        """Return the current adapter `name`, None for an unknown name; RequestError for an unfit adapter.

        The first call reads only headers; `load` reads the weights.
        """
        if not has_adapter(self.folder, name):
            return None
        try:
            return self._open(name)[0]
        except PunaError as error:
            raise RequestError(f"the adapter {name!a} can't be used: {error}", param="model") from None

    def hold(self, key: AdapterKey) -> bool:
        """Hold an adapter until `release`; False if held adapters leave no room."""
        others = self._holders.keys() - {key}
        if sum(map(self._sizes.__getitem__, others)) + self._sizes[key] > self.max_bytes:
            return False
        self._holders[key] += 1
        return True

    def release(self, key: AdapterKey) -> None:
        """Undo a `hold`. The adapter stays in memory until a different adapter needs the space."""
        self._holders[key] -= 1
        if not self._holders[key]:
            del self._holders[key]

    def load(self, key: AdapterKey) -> object:
        """Return a held adapter, prepared by the runner; PunaError if the file is unreadable or was altered."""
        assert key in self._holders
        if key not in self._loaded:
            self._make_room(self._sizes[key])
            self._loaded[key] = self._read(key)
        self._loaded.move_to_end(key)
        return self._loaded[key]

    def check(self) -> None:
        """Assert the invariants."""
        assert self.loaded_bytes <= self.max_bytes
        assert all(count > 0 for count in self._holders.values())

    def _open(self, name: str) -> tuple[AdapterKey, Adapter]:
        """Return the current adapter, examined once per file; errors are remembered and raised again."""
        try:
            file = (self.folder / name / WEIGHTS_NAME).stat()
        except OSError as error:
            hint = weights_hint(self.folder / name)
            raise CheckpointError(
                f"{name}/{WEIGHTS_NAME}: {error.strerror}", expected="a readable file of adapter weights", hint=hint
            ) from None
        key = AdapterKey(name, (file.st_ino, file.st_mtime_ns, file.st_size))
        with self._lock:
            if name not in self._opened or self._opened[name][0] != key:
                self._opened[name] = key, self._examine(key)
            _, adapter = self._opened[name]
        if isinstance(adapter, PunaError):
            raise adapter
        return key, adapter

    def _examine(self, key: AdapterKey) -> Adapter | CheckpointError:
        try:
            adapter = open_adapter(self.folder / key.name)
            require_runnable(adapter, self._config)
        except CheckpointError as error:
            return error
        size = sum(prod(stored.shape) for stored in adapter.layout.values()) * self._itemsize
        if size > self.max_bytes:
            return CheckpointError(f"it takes {size:,} bytes", expected=f"at most {self.max_bytes:,} bytes")
        self._sizes[key] = size
        return adapter

    def _read(self, key: AdapterKey) -> object:
        now, adapter = self._open(key.name)
        if now != key:
            raise CheckpointError(
                f"the adapter {key.name!a} was replaced",
                expected="the same file for the whole request",
                hint="Send the request again",
            )
        try:
            with verifying(self.folder / key.name):
                return self._prepare(read_lora(adapter))
        except (ArtifactError, CheckpointError) as error:
            # Later requests fail at once, without reading the file again.
            with self._lock:
                self._opened[key.name] = key, error
            raise

    def _make_room(self, size: int) -> None:
        for key in [key for key in self._loaded if key not in self._holders]:
            if self.loaded_bytes + size <= self.max_bytes:
                return
            del self._loaded[key]
