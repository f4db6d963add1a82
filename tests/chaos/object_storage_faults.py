"""What goes wrong with an object store: it is cut off, hangs, refuses, and breaks off what it sends and receives."""

from __future__ import annotations

from tests.chaos.faults import Ending, Kind, Victim
from tests.chaos.object_proxy import ObjectProxy, Trouble
from tests.chaos.stores import Objects


def _proxy(victim: Victim) -> ObjectProxy:
    store = victim.cluster.store
    assert isinstance(store, Objects)
    return store.proxy


def _strike(victim: Victim, *troubles: Trouble, share: float, shortest: float, longest: float) -> Ending:
    proxy = _proxy(victim)
    proxy.strike(*troubles, share=share)
    return victim.random.uniform(shortest, longest), proxy.restore


def _cut(victim: Victim, shortest: float, longest: float) -> Ending:
    proxy = _proxy(victim)
    proxy.cut()
    return victim.random.uniform(shortest, longest), proxy.restore


def cut_store(victim: Victim) -> Ending:
    """It refuses connections for some seconds."""
    return _cut(victim, 5, 20)


def cut_store_for_long(victim: Victim) -> Ending:
    """The same for one or two minutes."""
    return _cut(victim, 60, 120)


def hang_store(victim: Victim) -> Ending:
    """It takes connections and answers nobody; in the end it carries out what it was once asked for."""
    return _strike(victim, Trouble.HANG, share=1.0, shortest=20, longest=60)


def delay_answers(victim: Victim) -> Ending:
    """It does what it is asked for, and half of its answers come when nobody waits for them any more."""
    return _strike(victim, Trouble.DELAY, share=0.5, shortest=10, longest=40)


def slow_down(victim: Victim) -> Ending:
    """503 SlowDown for most requests, as for a bucket that is asked too often."""
    return _strike(victim, Trouble.SLOW_DOWN, share=0.8, shortest=5, longest=30)


def fail_store(victim: Victim) -> Ending:
    """500 for every request."""
    return _strike(victim, Trouble.FAIL, share=1.0, shortest=5, longest=30)


def rotate_credentials(victim: Victim) -> Ending:
    """403 for every request, as with credentials that were replaced before everybody had the new ones."""
    return _strike(victim, Trouble.DENY, Trouble.UNKNOWN_KEY, share=1.0, shortest=5, longest=60)


def reset_uploads(victim: Victim) -> Ending:
    """Connections are reset in the middle of most bodies that are sent."""
    return _strike(victim, Trouble.RESET_UPLOAD, share=0.7, shortest=5, longest=20)


def reset_downloads(victim: Victim) -> Ending:
    """Connections are reset in the middle of most bodies that are received."""
    return _strike(victim, Trouble.RESET_DOWNLOAD, share=0.7, shortest=5, longest=20)


def truncate_answers(victim: Victim) -> Ending:
    """Most bodies that are received end in the middle."""
    return _strike(victim, Trouble.TRUNCATE, share=0.7, shortest=5, longest=20)


def lose_answers(victim: Victim) -> Ending:
    """Half of the writes are carried out, and nobody is told so."""
    return _strike(victim, Trouble.LOSE_ANSWER, share=0.5, shortest=5, longest=20)


def keep_objects(victim: Victim) -> Ending:
    """Nothing is deleted that is to be deleted together with others, though the answer is 200."""
    return _strike(victim, Trouble.KEEP_OBJECTS, share=1.0, shortest=5, longest=20)


def flaky_store(victim: Victim) -> Ending:
    """One request in four fails, each in another way."""
    every = [trouble for trouble in Trouble if trouble is not Trouble.HANG]
    return _strike(victim, *every, share=0.25, shortest=10, longest=40)


STORE_KINDS: tuple[Kind, ...] = (
    cut_store,
    cut_store_for_long,
    hang_store,
    delay_answers,
    slow_down,
    fail_store,
    rotate_credentials,
    reset_uploads,
    reset_downloads,
    truncate_answers,
    lose_answers,
    keep_objects,
    flaky_store,
)
