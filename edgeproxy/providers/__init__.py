"""What providers send and want, sans-I/O: bytes in, usage out. Nothing here opens a socket or keeps content."""
