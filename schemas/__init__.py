"""The on-disk contract of pairloom and the code that reads and writes it.

Imports neither torch nor ray nor deepspeed, so that any process can read a data set.
"""
