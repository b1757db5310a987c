"""The gateway: Tallygate over HTTP. It holds no state of its own; what it knows it reads from topics.

`mounts.MODULES` is the one place where routes are added: a module there lists its operations, and each gets the same
authentication, limits, metrics and errors. `operations.py` says what an operation is.
"""
