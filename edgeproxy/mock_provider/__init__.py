"""The mock provider: a stand-in for the real ones, for `demo`, for tests and for load tests.

It answers in the providers' own wire shapes, misbehaves on request (the model name says how: `directives`) and
counts what it served, so that a test can compare the gateway's books with the truth. It must not import any
part of the gateway's request path: what it counts has to be independent of what it checks.
"""
