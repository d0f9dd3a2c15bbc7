// jetcd against one server: keys, transactions, watches, leases, locks, elections, members, users.
//
//     java -cp "lib/*:classes" Main http://127.0.0.1:2379
//
// By TLS with the files that CLIENT_CACERT, CLIENT_CERT and CLIENT_KEY name. Prints what it did, and ends with 1 at the first
// answer that is not the one that etcd gives.
import io.etcd.jetcd.ByteSequence;
import io.etcd.jetcd.Client;
import io.etcd.jetcd.ClientBuilder;
import io.etcd.jetcd.Election;
import io.etcd.jetcd.KeyValue;
import io.etcd.jetcd.auth.Permission;
import io.etcd.jetcd.common.exception.EtcdException;
import io.etcd.jetcd.election.CampaignResponse;
import io.etcd.jetcd.kv.GetResponse;
import io.etcd.jetcd.kv.TxnResponse;
import io.etcd.jetcd.lease.LeaseKeepAliveResponse;
import io.etcd.jetcd.op.Cmp;
import io.etcd.jetcd.op.CmpTarget;
import io.etcd.jetcd.op.Op;
import io.etcd.jetcd.options.DeleteOption;
import io.etcd.jetcd.options.GetOption;
import io.etcd.jetcd.options.LeaseOption;
import io.etcd.jetcd.options.PutOption;
import io.etcd.jetcd.options.WatchOption;
import io.etcd.jetcd.watch.WatchEvent;
import io.grpc.stub.StreamObserver;
import java.io.File;
import java.nio.charset.StandardCharsets;
import java.util.List;
import java.util.Objects;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.stream.Collectors;

public final class Main {
    private static final long PATIENCE_SECONDS = 60;
    private static String endpoint;

    public static void main(String[] arguments) throws Exception {
        endpoint = arguments[0];
        try (Client client = builder().build()) {
            keys(client);
            transactions(client);
            watches(client);
            leases(client);
            locks(client);
            elections(client);
            cluster(client);
            compaction(client);
            users(client);
        }
        System.out.println("ok");
        System.exit(0);
    }

    private static ClientBuilder builder() throws Exception {
        ClientBuilder builder = Client.builder().endpoints(endpoint);
        String ca = System.getenv("CLIENT_CACERT");
        if (ca != null) {
            File certificate = new File(System.getenv("CLIENT_CERT"));
            File key = new File(System.getenv("CLIENT_KEY"));
            builder.sslContext(context -> context.trustManager(new File(ca)).keyManager(certificate, key));
        }
        return builder;
    }

    private static ByteSequence bytes(String text) {
        return ByteSequence.from(text, StandardCharsets.UTF_8);
    }

    private static String text(ByteSequence bytes) {
        return bytes.toString(StandardCharsets.UTF_8);
    }

    private static <T> T wait(CompletableFuture<T> future) throws Exception {
        return future.get(PATIENCE_SECONDS, TimeUnit.SECONDS);
    }

    private static void equal(Object found, Object expected) {
        if (!Objects.equals(found, expected)) {
            throw new AssertionError("expected " + expected + ", found " + found);
        }
    }

    // The words of a call that must fail.
    private static void refused(CompletableFuture<?> future, String words) throws Exception {
        try {
            wait(future);
        } catch (ExecutionException error) {
            for (Throwable cause = error; cause != null; cause = cause.getCause()) {
                if (String.valueOf(cause.getMessage()).contains(words)) {
                    return;
                }
            }
            throw error;
        }
        throw new AssertionError("not refused: " + words);
    }

    private static List<String> pairs(List<KeyValue> found) {
        return found.stream().map(pair -> text(pair.getKey()) + "=" + text(pair.getValue())).collect(Collectors.toList());
    }

    private static void keys(Client client) throws Exception {
        var kv = client.getKVClient();
        long first = wait(kv.put(bytes("k/a"), bytes("1"))).getHeader().getRevision();
        wait(kv.put(bytes("k/b"), bytes("2")));
        var put = wait(kv.put(bytes("k/a"), bytes("3"), PutOption.builder().withPrevKV().build()));
        equal(text(put.getPrevKv().getValue()), "1");

        GetResponse one = wait(kv.get(bytes("k/a")));
        equal(pairs(one.getKvs()), List.of("k/a=3"));
        equal(one.getKvs().get(0).getVersion(), 2L);
        equal(one.getKvs().get(0).getCreateRevision(), first);
        equal(one.getKvs().get(0).getModRevision(), first + 2);
        var prefix = GetOption.builder().isPrefix(true);
        equal(pairs(wait(kv.get(bytes("k/"), prefix.build())).getKvs()), List.of("k/a=3", "k/b=2"));
        var past = GetOption.builder().isPrefix(true).withRevision(first).build();
        equal(pairs(wait(kv.get(bytes("k/"), past)).getKvs()), List.of("k/a=1"));
        var descending =
            GetOption.builder().isPrefix(true).withLimit(1).withSortField(GetOption.SortTarget.KEY).withSortOrder(GetOption.SortOrder.DESCEND);
        GetResponse limited = wait(kv.get(bytes("k/"), descending.build()));
        equal(pairs(limited.getKvs()), List.of("k/b=2"));
        equal(limited.isMore(), true);
        equal(limited.getCount(), 2L);
        var count = GetOption.builder().isPrefix(true).withCountOnly(true).build();
        equal(wait(kv.get(bytes("k/"), count)).getCount(), 2L);
        refused(kv.get(bytes("k/a"), GetOption.builder().withRevision(1L << 40).build()), "required revision is a future revision");
        refused(kv.put(bytes(""), bytes("1")), "key is not provided");

        var delete = DeleteOption.builder().isPrefix(true).withPrevKV(true).build();
        var deleted = wait(kv.delete(bytes("k/"), delete));
        equal(deleted.getDeleted(), 2L);
        equal(pairs(deleted.getPrevKvs()), List.of("k/a=3", "k/b=2"));
        System.out.println("keys");
    }

    private static void transactions(Client client) throws Exception {
        var kv = client.getKVClient();
        Cmp absent = new Cmp(bytes("t"), Cmp.Op.EQUAL, CmpTarget.version(0));
        for (boolean isFirst : new boolean[] {true, false}) {
            TxnResponse answer =
                wait(kv.txn().If(absent).Then(Op.put(bytes("t"), bytes("made"), PutOption.DEFAULT)).Else(Op.get(bytes("t"), GetOption.DEFAULT)).commit());
            equal(answer.isSucceeded(), isFirst);
            if (!isFirst) {
                equal(pairs(answer.getGetResponses().get(0).getKvs()), List.of("t=made"));
            }
        }
        Op put = Op.put(bytes("t"), bytes("again"), PutOption.DEFAULT);
        refused(kv.txn().Then(put, put).commit(), "duplicate key given in txn request");
        System.out.println("transactions");
    }

    private static void watches(Client client) throws Exception {
        var kv = client.getKVClient();
        long begin = wait(kv.put(bytes("w/a"), bytes("1"))).getHeader().getRevision();
        wait(kv.put(bytes("w/a"), bytes("2")));
        BlockingQueue<String> events = new LinkedBlockingQueue<>();
        BlockingQueue<Throwable> errors = new LinkedBlockingQueue<>();
        var options = WatchOption.builder().isPrefix(true).withRevision(begin).withPrevKV(true).build();
        var watcher = client.getWatchClient().watch(bytes("w/"), options, answer -> {
            for (WatchEvent event : answer.getEvents()) {
                String before = event.getPrevKV().getVersion() == 0 ? "" : text(event.getPrevKV().getValue());
                events.add(event.getEventType() + " " + text(event.getKeyValue().getKey()) + " " + before + ">" + text(event.getKeyValue().getValue()));
            }
        }, errors::add);
        equal(events.poll(PATIENCE_SECONDS, TimeUnit.SECONDS), "PUT w/a >1");
        equal(events.poll(PATIENCE_SECONDS, TimeUnit.SECONDS), "PUT w/a 1>2");
        wait(kv.delete(bytes("w/a")));
        equal(events.poll(PATIENCE_SECONDS, TimeUnit.SECONDS), "DELETE w/a 2>");
        watcher.close();
        equal(errors.size(), 0);
        System.out.println("watches");
    }

    private static void leases(Client client) throws Exception {
        var kv = client.getKVClient();
        var lease = client.getLeaseClient();
        long id = wait(lease.grant(60)).getID();
        wait(kv.put(bytes("l/a"), bytes("1"), PutOption.builder().withLeaseId(id).build()));
        equal(wait(lease.keepAliveOnce(id)).getTTL(), 60L);
        var told = wait(lease.timeToLive(id, LeaseOption.builder().withAttachedKeys().build()));
        equal(told.getGrantedTTL(), 60L);
        equal(told.getKeys().stream().map(Main::text).collect(Collectors.toList()), List.of("l/a"));
        CountDownLatch renewed = new CountDownLatch(1);
        var kept = lease.keepAlive(id, new StreamObserver<LeaseKeepAliveResponse>() {
            @Override
            public void onNext(LeaseKeepAliveResponse answer) {
                renewed.countDown();
            }

            @Override
            public void onError(Throwable error) {}

            @Override
            public void onCompleted() {}
        });
        equal(renewed.await(PATIENCE_SECONDS, TimeUnit.SECONDS), true);
        kept.close();
        wait(lease.revoke(id));
        equal(wait(kv.get(bytes("l/a"))).getCount(), 0L);
        refused(lease.revoke(id), "requested lease not found");
        System.out.println("leases");
    }

    private static void locks(Client client) throws Exception {
        var lock = client.getLockClient();
        long first = wait(client.getLeaseClient().grant(60)).getID();
        long second = wait(client.getLeaseClient().grant(60)).getID();
        ByteSequence held = wait(lock.lock(bytes("room"), first)).getKey();
        var waiting = lock.lock(bytes("room"), second);
        equal(wait(client.getKVClient().get(held)).getCount(), 1L);
        equal(waiting.isDone(), false);
        wait(lock.unlock(held));
        wait(lock.unlock(wait(waiting).getKey()));
        System.out.println("locks");
    }

    private static void elections(Client client) throws Exception {
        Election election = client.getElectionClient();
        long first = wait(client.getLeaseClient().grant(60)).getID();
        long second = wait(client.getLeaseClient().grant(60)).getID();
        CampaignResponse won = wait(election.campaign(bytes("chair"), first, bytes("one")));
        BlockingQueue<String> leaders = new LinkedBlockingQueue<>();
        election.observe(bytes("chair"), new Election.Listener() {
            @Override
            public void onNext(io.etcd.jetcd.election.LeaderResponse answer) {
                leaders.add(text(answer.getKv().getValue()));
            }

            @Override
            public void onError(Throwable error) {
                leaders.add(error.toString());
            }

            @Override
            public void onCompleted() {}
        });
        equal(leaders.poll(PATIENCE_SECONDS, TimeUnit.SECONDS), "one");
        var next = election.campaign(bytes("chair"), second, bytes("two"));
        wait(election.proclaim(won.getLeader(), bytes("one again")));
        equal(leaders.poll(PATIENCE_SECONDS, TimeUnit.SECONDS), "one again");
        equal(text(wait(election.leader(bytes("chair"))).getKv().getValue()), "one again");
        wait(election.resign(won.getLeader()));
        wait(next);
        equal(leaders.poll(PATIENCE_SECONDS, TimeUnit.SECONDS), "two");
        System.out.println("elections");
    }

    private static void cluster(Client client) throws Exception {
        equal(wait(client.getClusterClient().listMember()).getMembers().size(), 1);
        var maintenance = client.getMaintenanceClient();
        var status = wait(maintenance.statusMember(endpoint));
        equal(status.getVersion().startsWith("3."), true);
        equal(status.getLeader() != 0, true);
        equal(wait(maintenance.listAlarms()).getAlarms().size(), 0);
        wait(maintenance.defragmentMember(endpoint));
        equal(wait(maintenance.hashKV(endpoint, 0)).getHash() != 0, true);
        System.out.println("cluster");
    }

    private static void compaction(Client client) throws Exception {
        var kv = client.getKVClient();
        long before = wait(kv.put(bytes("c"), bytes("1"))).getHeader().getRevision();
        long after = wait(kv.put(bytes("c"), bytes("2"))).getHeader().getRevision();
        wait(kv.compact(after));
        refused(kv.get(bytes("c"), GetOption.builder().withRevision(before).build()), "required revision has been compacted");
        BlockingQueue<Throwable> errors = new LinkedBlockingQueue<>();
        var options = WatchOption.builder().withRevision(before).build();
        client.getWatchClient().watch(bytes("c"), options, answer -> {}, errors::add);
        Throwable error = errors.poll(PATIENCE_SECONDS, TimeUnit.SECONDS);
        equal(error instanceof EtcdException && error.getMessage().contains("required revision has been compacted"), true);
        System.out.println("compaction");
    }

    private static void users(Client client) throws Exception {
        var auth = client.getAuthClient();
        wait(auth.userAdd(bytes("root"), bytes("a-passw0rd")));
        wait(auth.userGrantRole(bytes("root"), bytes("root")));
        wait(auth.userAdd(bytes("reader"), bytes("another-passw0rd")));
        wait(auth.roleAdd(bytes("readers")));
        wait(auth.roleGrantPermission(bytes("readers"), bytes("open/"), bytes("open0"), Permission.Type.READ));
        wait(auth.userGrantRole(bytes("reader"), bytes("readers")));
        equal(wait(auth.userGet(bytes("reader"))).getRoles(), List.of("readers"));
        wait(auth.authEnable());
        try (Client root = builder().user(bytes("root")).password(bytes("a-passw0rd")).build();
            Client reader = builder().user(bytes("reader")).password(bytes("another-passw0rd")).build();
            Client stranger = builder().user(bytes("reader")).password(bytes("wrong")).build()) {
            wait(root.getKVClient().put(bytes("open/a"), bytes("1")));
            equal(pairs(wait(reader.getKVClient().get(bytes("open/a"))).getKvs()), List.of("open/a=1"));
            refused(reader.getKVClient().get(bytes("closed")), "permission denied");
            refused(reader.getKVClient().put(bytes("open/a"), bytes("2")), "permission denied");
            refused(stranger.getKVClient().get(bytes("open/a")), "authentication failed, invalid user ID or password");
            wait(root.getAuthClient().authDisable());
        }
        System.out.println("users");
    }
}
