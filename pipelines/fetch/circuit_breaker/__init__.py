"""Separates failures of the own network from failures of hosts, so that no shard fills with false drop reasons.

When nearly all of the last exchanges failed, far more than before, the circuit opens: no request starts, and a few
hosts that answered before are probed over new connections with new name look-ups. If they answer, the URLs were bad
and the fetch continues. If they do not, the network is down: the circuit stays open until a probe is answered, and
rows that failed meanwhile are fetched again. If no probe is answered in time, the shard is not done.

A shard in which nothing showed that the network works (no response of any status, no refused or reset connection) is
tested as well, before its failures are reported: by probes of hosts that answered this or any other worker of the run,
of the failed hosts themselves, and by look-ups of names that do not exist. Any answer makes the failures real.
"""

from pairloom.pipelines.fetch.circuit_breaker._breaker import CircuitBreaker, NetworkDownError
from pairloom.pipelines.fetch.circuit_breaker._name_probe import NameProbe

__all__ = ["CircuitBreaker", "NameProbe", "NetworkDownError"]
