"""Redis and PostgreSQL of our own, under the data directory: real servers for whoever has none yet.

They start and stop with the program that needs them, listen on Unix sockets in a private folder only, and keep nothing
in their own logs that a client sent. This room knows processes, files and permissions (Linux); what the servers hold
is the business of `hotstate` and `store`. It adds no user and changes the mode of no folder that is not its own.
"""
