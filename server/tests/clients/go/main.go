// Command client drives a server through etcd's own Go client: one scenario a run, exit status 0 if all of it held.
//
//	client ENDPOINT SCENARIO
//
// The scenario "watch-restart" prints "restart" when it wants the server restarted and goes on after a line on its input.
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"reflect"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	recipe "go.etcd.io/etcd/client/v3/experimental/recipes"
	"go.etcd.io/etcd/client/v3/kubernetes"
	"go.etcd.io/etcd/client/v3/leasing"
	"go.etcd.io/etcd/client/v3/namespace"
	"go.etcd.io/etcd/client/v3/ordering"
	"go.uber.org/zap"
)

// Nothing here takes longer; a hang is a failure.
const limit = 60 * time.Second

var scenarios = map[string]func(context.Context, *clientv3.Client){
	"kv":            kv,
	"range":         ranges,
	"txn":           txn,
	"watch":         watch,
	"watch-restart": watchRestart,
	"lease":         lease,
	"session":       session,
	"mutex":         mutex,
	"election":      election,
	"stm":           stm,
	"recipes":       recipes,
	"wrappers":      wrappers,
	"kubernetes":    kube,
	"maintenance":   maintenance,
}

// By TLS, if CLIENT_CACERT, CLIENT_CERT and CLIENT_KEY name files; as a user, if CLIENT_USER and CLIENT_PASSWORD are there.
func config() clientv3.Config {
	config := clientv3.Config{Endpoints: []string{os.Args[1]}, DialTimeout: 10 * time.Second, Logger: zap.NewNop()}
	if cacert := os.Getenv("CLIENT_CACERT"); cacert != "" {
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(one(os.ReadFile(cacert)))
		pair := one(tls.LoadX509KeyPair(os.Getenv("CLIENT_CERT"), os.Getenv("CLIENT_KEY")))
		config.TLS = &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}}
	}
	config.Username, config.Password = os.Getenv("CLIENT_USER"), os.Getenv("CLIENT_PASSWORD")
	return config
}

func main() {
	if len(os.Args) != 3 || scenarios[os.Args[2]] == nil {
		fmt.Fprintln(os.Stderr, "usage: client ENDPOINT SCENARIO")
		os.Exit(2)
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	client, err := clientv3.New(config())
	must(err)
	scenarios[os.Args[2]](ctx, client)
	must(client.Close())
	fmt.Println("ok", os.Args[2])
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func one[T any](value T, err error) T {
	must(err)
	return value
}

func equal(what string, got, want any) {
	if !reflect.DeepEqual(got, want) {
		panic(fmt.Sprintf("%s: got %v, want %v", what, got, want))
	}
}

func refused(what string, err, want error) {
	if !errors.Is(err, want) {
		panic(fmt.Sprintf("%s: got error %v, want %v", what, err, want))
	}
}

func keys(response *clientv3.GetResponse) []string {
	var found []string
	for _, kv := range response.Kvs {
		found = append(found, string(kv.Key))
	}
	return found
}

func kv(ctx context.Context, client *clientv3.Client) {
	first := one(client.Put(ctx, "kv/a", "1"))
	second := one(client.Put(ctx, "kv/a", "2", clientv3.WithPrevKV()))
	equal("revisions", second.Header.Revision, first.Header.Revision+1)
	equal("previous value", string(second.PrevKv.Value), "1")
	got := one(client.Get(ctx, "kv/a"))
	equal("value", string(got.Kvs[0].Value), "2")
	equal("version", got.Kvs[0].Version, int64(2))
	old := one(client.Get(ctx, "kv/a", clientv3.WithRev(first.Header.Revision)))
	equal("old value", string(old.Kvs[0].Value), "1")
	deleted := one(client.Delete(ctx, "kv/a", clientv3.WithPrevKV()))
	equal("deleted", deleted.Deleted, int64(1))
	equal("deleted value", string(deleted.PrevKvs[0].Value), "2")
	equal("gone", one(client.Get(ctx, "kv/a")).Count, int64(0))

	_, err := client.Put(ctx, "", "x")
	refused("empty key", err, rpctypes.ErrEmptyKey)
	_, err = client.Get(ctx, "kv/a", clientv3.WithRev(1<<40))
	refused("future revision", err, rpctypes.ErrFutureRev)
	_, err = client.Put(ctx, "kv/a", string(make([]byte, 1600*1024)))
	refused("large request", err, rpctypes.ErrRequestTooLarge)

	one(client.Compact(ctx, second.Header.Revision, clientv3.WithCompactPhysical()))
	_, err = client.Get(ctx, "kv/a", clientv3.WithRev(first.Header.Revision))
	refused("compacted revision", err, rpctypes.ErrCompacted)
}

func ranges(ctx context.Context, client *clientv3.Client) {
	for i := range 25 {
		one(client.Put(ctx, fmt.Sprintf("range/%02d", i), fmt.Sprint(100-i)))
	}
	all := one(client.Get(ctx, "range/", clientv3.WithPrefix()))
	equal("count", all.Count, int64(25))
	page := one(client.Get(ctx, "range/", clientv3.WithPrefix(), clientv3.WithLimit(3)))
	equal("page", keys(page), []string{"range/00", "range/01", "range/02"})
	equal("more", page.More, true)
	newest := one(client.Get(ctx, "range/", clientv3.WithLastRev()...))
	equal("newest", keys(newest), []string{"range/24"})
	sorted := one(client.Get(ctx, "range/", clientv3.WithPrefix(), clientv3.WithLimit(2),
		clientv3.WithSort(clientv3.SortByValue, clientv3.SortAscend)))
	equal("by value", keys(sorted), []string{"range/00", "range/24"})
	only := one(client.Get(ctx, "range/", clientv3.WithPrefix(), clientv3.WithCountOnly()))
	equal("only the count", only.Count, int64(25))
	from := one(client.Get(ctx, "range/23", clientv3.WithFromKey(), clientv3.WithRange("range/99")))
	equal("from", keys(from), []string{"range/23", "range/24"})

	stream := one(client.GetStream(ctx, "range/", clientv3.WithPrefix()))
	merged := one(clientv3.GetStreamToGetResponse(stream))
	equal("streamed", keys(merged), keys(all))
	equal("streamed count", merged.Count, int64(25))
}

func txn(ctx context.Context, client *clientv3.Client) {
	create := func() *clientv3.TxnResponse {
		return one(client.Txn(ctx).
			If(clientv3.Compare(clientv3.CreateRevision("txn/a"), "=", 0)).
			Then(clientv3.OpPut("txn/a", "created"), clientv3.OpPut("txn/b", "with it")).
			Else(clientv3.OpGet("txn/a")).
			Commit())
	}
	equal("created", create().Succeeded, true)
	second := create()
	equal("created twice", second.Succeeded, false)
	equal("else", string(second.Responses[0].GetResponseRange().Kvs[0].Value), "created")

	nested := one(client.Txn(ctx).Then(
		clientv3.OpTxn(
			[]clientv3.Cmp{clientv3.Compare(clientv3.Value("txn/a"), "=", "created")},
			[]clientv3.Op{clientv3.OpPut("txn/c", "nested")},
			[]clientv3.Op{clientv3.OpDelete("txn/c")}),
		clientv3.OpGet("txn/c"),
	).Commit())
	equal("nested", nested.Responses[0].GetResponseTxn().Succeeded, true)
	equal("seen after", string(nested.Responses[1].GetResponseRange().Kvs[0].Value), "nested")

	_, err := client.Txn(ctx).Then(clientv3.OpPut("txn/d", "1"), clientv3.OpPut("txn/d", "2")).Commit()
	refused("duplicate", err, rpctypes.ErrDuplicateKey)
	var many []clientv3.Op
	for i := range 129 {
		many = append(many, clientv3.OpPut(fmt.Sprintf("txn/many/%d", i), ""))
	}
	_, err = client.Txn(ctx).Then(many...).Commit()
	refused("too many", err, rpctypes.ErrTooManyOps)
	one(client.Txn(ctx).Then(many[:128]...).Commit())
}

func watch(ctx context.Context, client *clientv3.Client) {
	ctx, cancel := context.WithCancel(ctx)
	first := one(client.Put(ctx, "watch/a", "1"))
	past := client.Watch(ctx, "watch/", clientv3.WithPrefix(), clientv3.WithRev(first.Header.Revision), clientv3.WithPrevKV())
	one(client.Put(ctx, "watch/a", "2"))
	one(client.Delete(ctx, "watch/a"))
	var events []*clientv3.Event
	for len(events) < 3 {
		response := <-past
		must(response.Err())
		events = append(events, response.Events...)
	}
	equal("create", events[0].IsCreate(), true)
	equal("modify", events[1].IsModify(), true)
	equal("delete", events[2].Type, clientv3.EventTypeDelete)
	equal("what was deleted", string(events[2].PrevKv.Value), "2")

	must(client.RequestProgress(ctx))
	for {
		response := <-past
		must(response.Err())
		if response.IsProgressNotify() {
			equal("progress", response.Header.Revision, events[2].Kv.ModRevision)
			break
		}
	}
	// Many watches share the client's one stream.
	var all []clientv3.WatchChan
	for i := range 100 {
		all = append(all, client.Watch(ctx, fmt.Sprintf("watch/many/%d", i)))
	}
	for i := range 100 {
		one(client.Put(ctx, fmt.Sprintf("watch/many/%d", i), fmt.Sprint(i)))
	}
	for i, channel := range all {
		response := <-channel
		must(response.Err())
		equal("many", string(response.Events[0].Kv.Value), fmt.Sprint(i))
	}
	one(client.Compact(ctx, events[2].Kv.ModRevision))
	compacted := <-client.Watch(ctx, "watch/a", clientv3.WithRev(first.Header.Revision))
	refused("compacted", compacted.Err(), rpctypes.ErrCompacted)
	cancel()
	for range past {
	}
}

// A client's watch goes on over a restart of the server: nothing lost, nothing twice.
func watchRestart(ctx context.Context, client *clientv3.Client) {
	channel := client.Watch(ctx, "restart/", clientv3.WithPrefix())
	one(client.Put(ctx, "restart/before", "1"))
	response := <-channel
	must(response.Err())
	equal("before", string(response.Events[0].Kv.Key), "restart/before")
	last := response.Events[0].Kv.ModRevision

	fmt.Println("restart")
	one(bufio.NewReader(os.Stdin).ReadString('\n'))

	for i := range 10 {
		one(client.Put(ctx, fmt.Sprintf("restart/after/%d", i), ""))
	}
	for seen := 0; seen < 10; {
		response := <-channel
		must(response.Err())
		for _, event := range response.Events {
			equal("after", string(event.Kv.Key), fmt.Sprintf("restart/after/%d", seen))
			equal("revision", event.Kv.ModRevision, last+1)
			last = event.Kv.ModRevision
			seen++
		}
	}
}

func lease(ctx context.Context, client *clientv3.Client) {
	granted := one(client.Grant(ctx, 60))
	one(client.Put(ctx, "lease/a", "1", clientv3.WithLease(granted.ID)))
	told := one(client.TimeToLive(ctx, granted.ID, clientv3.WithAttachedKeys()))
	equal("granted", told.GrantedTTL, int64(60))
	equal("keys", string(told.Keys[0]), "lease/a")
	equal("renewed", one(client.KeepAliveOnce(ctx, granted.ID)).TTL, int64(60))
	equal("leases", len(one(client.Leases(ctx)).Leases), 1)
	one(client.Revoke(ctx, granted.ID))
	equal("gone", one(client.Get(ctx, "lease/a")).Count, int64(0))
	_, err := client.Put(ctx, "lease/a", "2", clientv3.WithLease(granted.ID))
	refused("no lease", err, rpctypes.ErrLeaseNotFound)
	_, err = client.KeepAliveOnce(ctx, granted.ID)
	refused("no lease to renew", err, rpctypes.ErrLeaseNotFound)

	// Kept alive past its time, then left alone.
	short := one(client.Grant(ctx, 2))
	put := one(client.Put(ctx, "lease/short", "1", clientv3.WithLease(short.ID)))
	keeping, stop := context.WithCancel(ctx)
	answers := one(client.KeepAlive(keeping, short.ID))
	for range 5 {
		answer := <-answers
		equal("kept", answer.TTL, int64(2))
	}
	equal("kept over its time", one(client.Get(ctx, "lease/short")).Count, int64(1))
	stop()
	deleted := <-client.Watch(ctx, "lease/short", clientv3.WithRev(put.Header.Revision+1))
	must(deleted.Err())
	equal("expired", deleted.Events[0].Type, clientv3.EventTypeDelete)
}

func session(ctx context.Context, client *clientv3.Client) {
	opened := one(concurrency.NewSession(client, concurrency.WithTTL(5)))
	one(client.Put(ctx, "session/a", "1", clientv3.WithLease(opened.Lease())))
	must(opened.Close())
	equal("gone with its session", one(client.Get(ctx, "session/a")).Count, int64(0))
	select {
	case <-opened.Done():
	case <-ctx.Done():
		panic("the session does not end")
	}
}

func mutex(ctx context.Context, client *clientv3.Client) {
	first := one(concurrency.NewSession(client))
	held := concurrency.NewMutex(first, "mutex/")
	must(held.Lock(ctx))
	second := one(concurrency.NewSession(client))
	waiting := concurrency.NewMutex(second, "mutex/")
	refused("try", waiting.TryLock(ctx), concurrency.ErrLocked)
	locked := make(chan error, 1)
	go func() { locked <- waiting.Lock(ctx) }()
	must(held.Unlock(ctx))
	must(<-locked)
	must(waiting.Unlock(ctx))

	// Eight workers, one counter, no lost update.
	var inside, done atomic.Int64
	ended := make(chan error, 8)
	for range 8 {
		go func() {
			own, err := concurrency.NewSession(client)
			if err != nil {
				ended <- err
				return
			}
			defer own.Close()
			lock := concurrency.NewMutex(own, "counter/")
			for range 5 {
				if err := lock.Lock(ctx); err != nil {
					ended <- err
					return
				}
				if inside.Add(1) != 1 {
					ended <- errors.New("two hold the lock")
					return
				}
				done.Add(1)
				inside.Add(-1)
				if err := lock.Unlock(ctx); err != nil {
					ended <- err
					return
				}
			}
			ended <- nil
		}()
	}
	for range 8 {
		must(<-ended)
	}
	equal("done", done.Load(), int64(40))
	must(first.Close())
	must(second.Close())
}

func election(ctx context.Context, client *clientv3.Client) {
	first := one(concurrency.NewSession(client))
	second := one(concurrency.NewSession(client))
	one1, one2 := concurrency.NewElection(first, "election/"), concurrency.NewElection(second, "election/")
	_, err := one1.Leader(ctx)
	refused("nobody yet", err, concurrency.ErrElectionNoLeader)
	must(one1.Campaign(ctx, "first"))
	observed := one2.Observe(ctx)
	equal("observed", string((<-observed).Kvs[0].Value), "first")
	must(one1.Proclaim(ctx, "first again"))
	equal("proclaimed", string((<-observed).Kvs[0].Value), "first again")
	won := make(chan error, 1)
	go func() { won <- one2.Campaign(ctx, "second") }()
	must(one1.Resign(ctx))
	must(<-won)
	for string((<-observed).Kvs[0].Value) != "second" {
	}
	// The end of a leader's session ends its leadership.
	must(second.Close())
	third := one(concurrency.NewSession(client))
	one3 := concurrency.NewElection(third, "election/")
	must(one3.Campaign(ctx, "third"))
	equal("leader", string(one(one3.Leader(ctx)).Kvs[0].Value), "third")
	must(third.Close())
	must(first.Close())
}

// Software transactional memory: transfers between accounts keep the sum.
func stm(ctx context.Context, client *clientv3.Client) {
	for i := range 4 {
		one(client.Put(ctx, fmt.Sprintf("stm/%d", i), "100"))
	}
	ended := make(chan error, 4)
	for worker := range 4 {
		go func() {
			for i := range 10 {
				from, to := fmt.Sprintf("stm/%d", (worker+i)%4), fmt.Sprintf("stm/%d", (worker+i+1)%4)
				_, err := concurrency.NewSTM(client, func(s concurrency.STM) error {
					var a, b int
					fmt.Sscan(s.Get(from), &a)
					fmt.Sscan(s.Get(to), &b)
					s.Put(from, fmt.Sprint(a-1))
					s.Put(to, fmt.Sprint(b+1))
					return nil
				}, concurrency.WithAbortContext(ctx))
				if err != nil {
					ended <- err
					return
				}
			}
			ended <- nil
		}()
	}
	for range 4 {
		must(<-ended)
	}
	sum := 0
	for _, kv := range one(client.Get(ctx, "stm/", clientv3.WithPrefix())).Kvs {
		var account int
		fmt.Sscan(string(kv.Value), &account)
		sum += account
	}
	equal("sum", sum, 400)
}

func recipes(ctx context.Context, client *clientv3.Client) {
	queue := recipe.NewQueue(client, "queue")
	for i := range 5 {
		must(queue.Enqueue(fmt.Sprint(i)))
	}
	for i := range 5 {
		equal("queue", one(queue.Dequeue()), fmt.Sprint(i))
	}
	priority := recipe.NewPriorityQueue(client, "priority")
	must(priority.Enqueue("low", 2))
	must(priority.Enqueue("high", 1))
	equal("priority", one(priority.Dequeue()), "high")
	equal("priority", one(priority.Dequeue()), "low")

	own := one(concurrency.NewSession(client))
	lock := recipe.NewRWMutex(own, "rwmutex")
	must(lock.RLock())
	must(lock.RUnlock())
	must(lock.Lock())
	must(lock.Unlock())

	barrier := recipe.NewBarrier(client, "barrier")
	must(barrier.Hold())
	passed := make(chan error, 1)
	go func() { passed <- barrier.Wait() }()
	must(barrier.Release())
	must(<-passed)

	both := make(chan error, 2)
	for range 2 {
		go func() {
			member, err := concurrency.NewSession(client)
			if err == nil {
				double := recipe.NewDoubleBarrier(member, "double", 2)
				if err = double.Enter(); err == nil {
					err = double.Leave()
				}
			}
			both <- err
		}()
	}
	must(<-both)
	must(<-both)
	must(own.Close())
}

// Wrappers that other programs build on: name spaces, ordering, and the leasing cache.
func wrappers(ctx context.Context, client *clientv3.Client) {
	space := namespace.NewKV(client.KV, "space/")
	one(space.Put(ctx, "a", "1"))
	equal("inside", keys(one(space.Get(ctx, "", clientv3.WithPrefix()))), []string{"a"})
	equal("outside", keys(one(client.Get(ctx, "space/", clientv3.WithPrefix()))), []string{"space/a"})
	watched := namespace.NewWatcher(client.Watcher, "space/").Watch(ctx, "b")
	one(space.Put(ctx, "b", "2"))
	equal("watched", string((<-watched).Events[0].Kv.Key), "b")

	ordered := ordering.NewKV(client.KV, func(clientv3.Op, clientv3.OpResponse, int64) error {
		return errors.New("the server went back in time")
	})
	one(ordered.Put(ctx, "ordered", "1"))
	equal("ordered", string(one(ordered.Get(ctx, "ordered", clientv3.WithSerializable())).Kvs[0].Value), "1")

	cached, closeCache, err := leasing.NewKV(client, "leasing/")
	must(err)
	one(client.Put(ctx, "cached", "1"))
	equal("fetched", string(one(cached.Get(ctx, "cached")).Kvs[0].Value), "1")
	equal("from the cache", string(one(cached.Get(ctx, "cached")).Kvs[0].Value), "1")
	one(cached.Put(ctx, "cached", "2"))
	equal("through the cache", string(one(client.Get(ctx, "cached")).Kvs[0].Value), "2")
	closeCache()
}

// The interface that kube-apiserver uses.
func kube(ctx context.Context, _ *clientv3.Client) {
	client := one(kubernetes.New(config()))
	put := one(client.Kubernetes.OptimisticPut(ctx, "/registry/pods/a", []byte("1"), 0, kubernetes.PutOptions{}))
	equal("created", put.Succeeded, true)
	again := one(client.Kubernetes.OptimisticPut(ctx, "/registry/pods/a", []byte("2"), 0,
		kubernetes.PutOptions{GetOnFailure: true}))
	equal("created twice", again.Succeeded, false)
	equal("what is there", string(again.KV.Value), "1")
	updated := one(client.Kubernetes.OptimisticPut(ctx, "/registry/pods/a", []byte("2"), put.Revision, kubernetes.PutOptions{}))
	equal("updated", updated.Succeeded, true)
	for i := range 5 {
		one(client.Kubernetes.OptimisticPut(ctx, fmt.Sprintf("/registry/pods/b%d", i), []byte("x"), 0, kubernetes.PutOptions{}))
	}
	page := one(client.Kubernetes.List(ctx, "/registry/pods/", kubernetes.ListOptions{Limit: 4}))
	equal("page", len(page.Kvs), 4)
	equal("of", page.Count, int64(6))
	rest := one(client.Kubernetes.List(ctx, "/registry/pods/",
		kubernetes.ListOptions{Revision: page.Revision, Continue: string(page.Kvs[3].Key) + "\x00"}))
	equal("rest", len(rest.Kvs), 2)
	equal("count", one(client.Kubernetes.Count(ctx, "/registry/pods/", kubernetes.CountOptions{})), int64(6))
	deleted := one(client.Kubernetes.OptimisticDelete(ctx, "/registry/pods/a", put.Revision,
		kubernetes.DeleteOptions{GetOnFailure: true}))
	equal("deleted too late", deleted.Succeeded, false)
	deleted = one(client.Kubernetes.OptimisticDelete(ctx, "/registry/pods/a", updated.Revision, kubernetes.DeleteOptions{}))
	equal("deleted", deleted.Succeeded, true)
	must(client.Close())
}

func maintenance(ctx context.Context, client *clientv3.Client) {
	endpoint := os.Args[1]
	status := one(client.Status(ctx, endpoint))
	equal("leader", status.Leader, status.Header.MemberId)
	equal("no errors", len(status.Errors), 0)
	if status.DbSize <= 0 {
		panic("etcdctl divides by the size")
	}
	one(client.Put(ctx, "maintenance/a", "1"))
	hash := one(client.HashKV(ctx, endpoint, 0))
	equal("hash", one(client.HashKV(ctx, endpoint, hash.HashRevision)).Hash, hash.Hash)
	equal("alarms", len(one(client.AlarmList(ctx)).Alarms), 0)
	one(client.Defragment(ctx, endpoint))
	members := one(client.MemberList(ctx)).Members
	equal("members", len(members), 1)
	equal("member", members[0].ID, status.Header.MemberId)
	must(client.Sync(ctx))
	equal("endpoints", client.Endpoints(), members[0].ClientURLs)
}
