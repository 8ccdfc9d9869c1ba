"""`edgeproxy serve`: the processes, the sockets that outlive them, and one set of metrics for all.

The supervisor starts the embedded stores and one process per gateway worker, starts again what dies, and stops
everything in order. It handles no request itself and reads nothing that a client sent.
"""
