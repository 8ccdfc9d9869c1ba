"""Looks at an installation as its operator would: what is found, how bad it is, and what to do about it.

First facts are gathered, each within a bounded time; then plain functions judge them. It changes nothing, and tells no
secret: no key, no pepper, no address with a password, no text of a library that may quote one.
"""
