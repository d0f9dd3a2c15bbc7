"""Drives a server through its JSON gateway with the Python packages etcd3gw and tooz: gateway_client.py HOST PORT. Exit status 0 if all of it
held."""

import sys
import threading

import etcd3gw
from tooz import coordination


def kv(client):
    assert client.put("gw/a", "1") is True
    assert client.get("gw/a") == [b"1"]
    for name in "bcd":
        client.put(f"gw/{name}", name * 3)
    found = [(value, meta["key"], meta["version"]) for value, meta in client.get_prefix("gw/", sort_order="descend")]
    assert [key for _, key, _ in found] == [b"gw/d", b"gw/c", b"gw/b", b"gw/a"], found
    assert client.get("gw/none") == []
    assert client.create("gw/new", "1") is True
    assert client.create("gw/new", "2") is False
    assert client.replace("gw/new", "1", "3") is True
    assert client.replace("gw/new", "1", "4") is False
    assert client.delete("gw/new") is True
    assert client.delete("gw/new") is False
    binary = bytes(range(256))
    client.put(binary, binary)
    assert client.get(binary) == [binary]
    assert client.delete_prefix("gw/") is True


def lease(client):
    lease = client.lease(ttl=60)
    client.put("gw/lease", "x", lease=lease)
    assert 0 < lease.ttl() <= 60
    assert lease.keys() == [b"gw/lease"], lease.keys()
    assert lease.refresh() == 60
    assert lease.revoke() is True
    assert client.get("gw/lease") == []


def lock(client):
    lock = client.lock(id="room", ttl=60)
    assert lock.acquire() is True and lock.is_acquired()
    assert client.lock(id="room", ttl=60).acquire() is False
    assert lock.refresh() == 60
    assert lock.release() is True
    with client.lock(id="room", ttl=60) as again:
        assert again.is_acquired()


def watch(client):
    events, cancel = client.watch_prefix("gw/w", start_revision=client_revision(client) + 1)
    client.put("gw/w1", "1")
    client.put("gw/w1", "2")
    client.delete("gw/w1")
    seen = [next(events) for _ in range(3)]
    cancel()
    assert [event.get("type", "PUT") for event in seen] == ["PUT", "PUT", "DELETE"], seen
    assert [event["kv"].get("value") for event in seen] == [b"1", b"2", None], seen
    put = threading.Timer(0.5, lambda: client.put("gw/once", "now"))
    put.start()
    event = client.watch_once("gw/once", timeout=20)
    put.join()
    assert event["kv"]["value"] == b"now", event


def client_revision(client):
    return int(client.status()["header"]["revision"])


def refused(client):
    try:
        client.transaction({"success": [{"request_put": {"key": "YQ==", "lease": "77"}}]})
    except etcd3gw.exceptions.Etcd3Exception as error:
        assert str(error) == "Not Found" and "requested lease not found" in error.detail_text, error
    else:
        raise AssertionError("a lease that is not there")


def members(client):
    assert client.status()["version"] == "3.7.3"
    (member,) = client.members()
    assert member["name"] == "default" and member["clientURLs"], member


def groups(host, port):
    """What OpenStack's services do."""
    first, second = (
        coordination.get_coordinator(f"etcd3+http://{host}:{port}", name) for name in (b"first", b"second")
    )
    for coordinator in (first, second):
        coordinator.start(start_heart=True)
    first.create_group(b"group").get()
    assert first.get_groups().get() == [b"group"]
    first.join_group(b"group", capabilities={"n": 1}).get()
    second.join_group(b"group").get()
    assert first.get_members(b"group").get() == {b"first", b"second"}
    assert second.get_member_capabilities(b"group", b"first").get() == {"n": 1}
    lock = first.get_lock(b"door")
    assert lock.acquire() and not second.get_lock(b"door").acquire(blocking=False)
    first.heartbeat()
    assert lock.release()
    for coordinator in (second, first):
        coordinator.leave_group(b"group").get()
    first.delete_group(b"group").get()
    for coordinator in (first, second):
        coordinator.stop()


def main():
    host, port = sys.argv[1:]
    client = etcd3gw.client(host=host, port=int(port), timeout=20)
    assert client.api_path == "/v3/", client.api_path
    for scenario in (kv, lease, lock, watch, refused, members):
        scenario(client)
        print(f"ok {scenario.__name__}")
    groups(host, port)
    print("ok groups")


main()
