"""Pages of the KV cache: who holds which, and which hold the same beginnings. Knows no tensors and no requests.

A page is free, held (by one or more), or kept: nobody holds it, but what it contains may be asked for again, until it
is needed for something else. The least recently released goes first.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence

PAGE_LEN = 16  # Positions of a page; the compiled kernels know no other length.
KEY_BYTES = 16


class PagePool:
    """Invariant: free + held + kept = `num_pages`; a key names at most one page."""

    def __init__(self, num_pages: int):
        self.num_pages = num_pages
        self._free = list(range(num_pages - 1, -1, -1))
        self._holders: dict[int, int] = {}
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._page_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}

    @property
    def num_held(self) -> int:
        return len(self._holders)

    @property
    def num_free(self) -> int:
        """Pages whose contents nobody can find."""
        return len(self._free)

    @property
    def num_available(self) -> int:
        """Pages that can be taken: free ones, and kept ones, whose contents are then forgotten."""
        return len(self._free) + len(self._cached)

    def allocate(self) -> int | None:
        """Return a page that nobody holds, now held once; None if there is none."""
        if self._free:
            page = self._free.pop()
        elif self._cached:
            page, _ = self._cached.popitem(last=False)
            self.evict(page)
        else:
            return None
        self._holders[page] = 1
        return page

    def lookup(self, key: bytes) -> int | None:
        """Return the page with these contents, or None. It is not held yet."""
        return self._page_of.get(key)

    def is_cached(self, page: int) -> bool:
        """Whether nobody holds a page that was found."""
        return page in self._cached

    def hold(self, page: int) -> None:
        """Hold a page that was found."""
        assert page in self._holders or page in self._cached
        self._cached.pop(page, None)
        self._holders[page] = self._holders.get(page, 0) + 1

    def publish(self, page: int, key: bytes) -> None:
        """Tell what a full page contains; if another page has the same already, that one stays the one to find."""
        assert page in self._holders
        if key not in self._page_of and page not in self._key_of:
            self._page_of[key], self._key_of[page] = page, key

    def evict(self, page: int) -> None:
        """Let nobody find this page any more."""
        key = self._key_of.pop(page, None)
        if key is not None:
            del self._page_of[key]

    def release(self, page: int) -> bool:
        """Hold a page once less; return whether nobody holds it any more."""
        self._holders[page] -= 1
        if self._holders[page]:
            return False
        del self._holders[page]
        if page in self._key_of:
            self._cached[page] = None
        else:
            self._free.append(page)
        return True

    def check(self) -> None:
        """Assert what the counts tell, however many pages there are."""
        assert len(self._free) + len(self._holders) + len(self._cached) == self.num_pages
        assert len(self._page_of) == len(self._key_of)

    def check_all(self) -> None:
        """Assert the invariants page by page."""
        self.check()
        assert len({*self._free, *self._holders, *self._cached}) == self.num_pages
        assert all(count > 0 for count in self._holders.values())
        assert all(page in self._key_of for page in self._cached)
        assert all(self._page_of[key] == page for page, key in self._key_of.items())
        assert not any(page in self._key_of for page in self._free)


def extend_keys(keys: list[bytes], tokens: Sequence[int], salt: bytes) -> None:
    """Append a key for each further full page of `tokens`; each names all tokens up to its page's end.

    NOTE: keys must not be guessable: who could make two texts share a key would read another's answers. Tenants have
    their own `salt`, so that none can learn from the time an answer takes what another has asked.
    """
    while (len(keys) + 1) * PAGE_LEN <= len(tokens):
        start = len(keys) * PAGE_LEN
        page = array("i", tokens[start : start + PAGE_LEN]).tobytes()
        previous = keys[-1] if keys else b""
        keys.append(hashlib.blake2b(previous + page, digest_size=KEY_BYTES, key=salt).digest())


def num_pages_for(num_tokens: int) -> int:
    """Return how many pages so many positions take."""
    return -(-num_tokens // PAGE_LEN)
