"""Work that takes more than a few milliseconds -> threads, so that the event loop and small requests never wait."""
