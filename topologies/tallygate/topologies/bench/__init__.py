"""`tallygate bench`: how much of Tallygate a machine or a cluster carries, measured from outside.

Each generator and each observer is a process of its own (`member`), so that nothing that is measured shares an
interpreter with what measures it. Loads are open: they go out when they are due, and every latency counts from then.
"""
