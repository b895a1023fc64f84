"""Sockets -> HTTP requests: bounds on connections, time limits, half-closed clients, the server's log."""
