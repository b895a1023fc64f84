"""Allocation of KV cache pages, with prefix caching. Tensors and requests lie elsewhere.

A page is free, held by requests, or cached. A cached page belongs to no request, but a prefix lookup can still find the
contents. Allocation evicts the least recently released cached page.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence

PAGE_LEN = 16  # Positions of a page; the compiled kernels know no other length.
KEY_BYTES = 16


class PagePool:
    """Reference counts and contents of all pages.

    Invariant: free + held + cached = `num_pages`; a key names at most one page.

    Example:
        >>> pool = PagePool(2)
        >>> pool.allocate(), pool.num_held, pool.num_available
        (0, 1, 1)
    """

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
        """Number of pages without cached contents."""
        return len(self._free)

    @property
    def num_available(self) -> int:
        """Number of allocatable pages: free pages and cached pages."""
        return len(self._free) + len(self._cached)

    def allocate(self) -> int | None:
        """Allocate a page with a single holder, evicting cached contents if needed; None if every page is held."""
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
        """Return the page with the contents of `key`, or None; `hold` claims the page."""
        return self._page_of.get(key)

    def is_cached(self, page: int) -> bool:
        """Whether a page found by `lookup` has no holder."""
        return page in self._cached

    def hold(self, page: int) -> None:
        """Add a holder to a page found by `lookup`."""
        assert page in self._holders or page in self._cached
        self._cached.pop(page, None)
        self._holders[page] = self._holders.get(page, 0) + 1

    def publish(self, page: int, key: bytes) -> None:
        """Enter a full page in the prefix index; the first page with the same contents stays in the index."""
        assert page in self._holders
        if key not in self._page_of and page not in self._key_of:
            self._page_of[key], self._key_of[page] = page, key

    def evict(self, page: int) -> None:
        """Remove a page from the prefix index."""
        key = self._key_of.pop(page, None)
        if key is not None:
            del self._page_of[key]

    def release(self, page: int) -> bool:
        """Remove a holder; return whether no holder is left."""
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
        """Assert the invariants of the counts in constant time."""
        assert len(self._free) + len(self._holders) + len(self._cached) == self.num_pages
        assert len(self._page_of) == len(self._key_of)

    def check_all(self) -> None:
        """Assert the invariants of every page."""
        self.check()
        assert len({*self._free, *self._holders, *self._cached}) == self.num_pages
        assert all(count > 0 for count in self._holders.values())
        assert all(page in self._key_of for page in self._cached)
        assert all(self._page_of[key] == page for page, key in self._key_of.items())
        assert not any(page in self._key_of for page in self._free)


def extend_keys(keys: list[bytes], tokens: Sequence[int], salt: bytes) -> None:
    """Append keys of further full pages; a key is a hash of all tokens up to the end of the page.

    NOTE: keys must not be guessable. Two texts with equal keys would share cached keys and values, and leak answers.
    Every tenant has a different `salt`, since latency would reveal cached prompts of other tenants.
    """
    while (len(keys) + 1) * PAGE_LEN <= len(tokens):
        start = len(keys) * PAGE_LEN
        page = array("i", tokens[start : start + PAGE_LEN]).tobytes()
        previous = keys[-1] if keys else b""
        keys.append(hashlib.blake2b(previous + page, digest_size=KEY_BYTES, key=salt).digest())


def num_pages_for(num_tokens: int) -> int:
    """Return the number of pages for a number of positions."""
    return -(-num_tokens // PAGE_LEN)
