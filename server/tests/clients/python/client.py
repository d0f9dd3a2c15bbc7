"""Drives a server through the Python package etcd3: client.py HOST PORT. Exit status 0 if all of it held.

By TLS, if CLIENT_CACERT, CLIENT_CERT and CLIENT_KEY name files; as a user, if CLIENT_USER and CLIENT_PASSWORD are there."""

import os
import queue
import sys
import threading

import etcd3


def kv(client):
    client.put("python/a", "1")
    value, meta = client.get("python/a")
    assert value == b"1" and meta.version == 1, (value, meta)
    previous = client.put("python/a", "2", prev_kv=True).prev_kv
    assert previous.value == b"1", previous
    for name in "bcd":
        client.put(f"python/{name}", name)
    found = [meta.key for _, meta in client.get_prefix("python/", sort_order="descend")]
    assert found == [b"python/d", b"python/c", b"python/b", b"python/a"], found
    assert [m.key for _, m in client.get_range("python/b", "python/d")] == [b"python/b", b"python/c"]
    assert client.delete("python/a") is True
    assert client.delete("python/a") is False
    assert client.get("python/a") == (None, None)
    assert client.delete_prefix("python/").deleted == 3
    assert client.put_if_not_exists("python/new", "1") is True
    assert client.put_if_not_exists("python/new", "2") is False
    assert client.replace("python/new", "1", "3") is True
    assert client.replace("python/new", "1", "4") is False


def txn(client):
    txns = client.transactions
    client.put("python/txn", "1")
    succeeded, responses = client.transaction(
        compare=[txns.value("python/txn") == "1", txns.version("python/txn") > 0],
        success=[txns.put("python/txn", "2"), txns.get("python/txn")],
        failure=[txns.delete("python/txn")],
    )
    assert succeeded and responses[1][0][0] == b"2", responses
    succeeded, _ = client.transaction(
        compare=[txns.create("python/txn") == 0],
        success=[txns.put("python/txn", "never")],
        failure=[txns.delete("python/txn")],
    )
    assert not succeeded and client.get("python/txn")[0] is None


def watch(client):
    events, cancel = client.watch_prefix("python/watch/")
    seen = queue.Queue()

    def read():
        for event in events:
            seen.put(event)

    reader = threading.Thread(target=read)
    reader.start()
    client.put("python/watch/a", "1")
    client.delete("python/watch/a")
    first, second = seen.get(timeout=30), seen.get(timeout=30)
    assert isinstance(first, etcd3.events.PutEvent) and first.value == b"1", first
    assert isinstance(second, etcd3.events.DeleteEvent) and second.key == b"python/watch/a", second
    cancel()
    reader.join(timeout=30)
    assert not reader.is_alive()

    _, meta = client.get("python/new")
    events, cancel = client.watch("python/new", start_revision=meta.create_revision)
    assert next(events).value == b"1"
    assert next(events).value == b"3"
    cancel()


def lease(client):
    lease = client.lease(60)
    client.put("python/lease", "1", lease=lease)
    assert lease.granted_ttl == 60 and 0 < lease.remaining_ttl <= 60 and lease.keys == [b"python/lease"]
    (answer,) = lease.refresh()
    assert answer.TTL == 60, answer
    lease.revoke()
    assert client.get("python/lease")[0] is None


def lock(client):
    # A contended acquire() of this client fails in its own retry library, whatever the server: so one after the other.
    first, second = client.lock("python", ttl=30), client.lock("python", ttl=30)
    assert first.acquire(timeout=30) and first.is_acquired() and not second.is_acquired()
    assert not second.release()
    assert first.release()
    assert second.acquire(timeout=30)
    assert second.release()


def maintenance(client):
    status = client.status()
    assert status.leader is not None and status.db_size > 0 and status.version.startswith("3."), status
    assert [member.id for member in client.members] == [status.leader.id]
    assert list(client.list_alarms()) == []
    # This client sends no token with that call.
    if "CLIENT_USER" not in os.environ:
        assert client.hash() > 0
    client.defragment()
    revision = client.get_response("python/new").header.revision
    client.compact(revision)
    try:
        client.watch_response("python/new", start_revision=1)[0].__next__()
    except etcd3.exceptions.RevisionCompactedError as error:
        assert error.compacted_revision == revision, error
    else:
        raise AssertionError("a watch below the compact revision goes on")


def main():
    tls = {}
    if "CLIENT_CACERT" in os.environ:
        files = (os.environ[f"CLIENT_{name}"] for name in ("CACERT", "CERT", "KEY"))
        tls = dict(zip(("ca_cert", "cert_cert", "cert_key"), files))
    user = {}
    if "CLIENT_USER" in os.environ:
        user = {"user": os.environ["CLIENT_USER"], "password": os.environ["CLIENT_PASSWORD"]}
    client = etcd3.client(host=sys.argv[1], port=int(sys.argv[2]), timeout=30, **tls, **user)
    for scenario in (kv, txn, watch, lease, lock, maintenance):
        scenario(client)
        print("ok", scenario.__name__, flush=True)
    client.close()


main()
