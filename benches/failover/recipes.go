package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

const (
	sessionSeconds = 10
	lockers        = 4
	candidates     = 3
)

// guarded is what one holder at a time may be in.
type guarded struct {
	inside     atomic.Int32
	entered    atomic.Int64
	violations atomic.Int64
	expired    atomic.Int64
}

// hold notes that somebody is in, does the work and notes that he is out. Two at a time violate the guarantee, unless the session of one has ended: then he has
// been told.
func (g *guarded) hold(session *concurrency.Session, work func()) {
	if g.inside.Add(1) != 1 {
		select {
		case <-session.Done():
			g.expired.Add(1)
		default:
			g.violations.Add(1)
		}
	}
	g.entered.Add(1)
	work()
	g.inside.Add(-1)
}

// recipes has the lock and the election of etcd's client library used by several clients while the leader changes.
func recipes(name, binary, directory string, changes int) {
	c := startCluster(binary, directory, false)
	defer c.stop()
	watchers, all := c.clients()
	c.leader(watchers)
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	var locks, elections guarded
	// Of the counter: at least so often, and at most so often more.
	var sure, unsure atomic.Int64
	for range lockers {
		client := connect(all...)
		group.Go(func() { lockAndCount(ctx, client, &locks, &sure, &unsure) })
	}
	for number := range candidates {
		client := connect(all...)
		group.Go(func() { campaign(ctx, client, number, &elections) })
	}
	for change := range changes {
		leader, next := c.leader(watchers)
		time.Sleep(300 * time.Millisecond)
		m := c.members[leader]
		switch change % 3 {
		case 0:
			_ = m.command.Process.Kill()
			_ = m.command.Wait()
			time.Sleep(500 * time.Millisecond)
			c.start(m)
		case 1:
			_ = m.command.Process.Signal(syscall.SIGTERM)
			_ = m.command.Wait()
			c.start(m)
		default:
			moving, stop := context.WithTimeout(ctx, requestTime)
			_, err := watchers[leader].MoveLeader(moving, next)
			stop()
			if err != nil {
				fmt.Fprintf(os.Stderr, "%s: move-leader: %v\n", name, err)
			}
		}
		fmt.Fprintf(os.Stderr, "%s: change %d of %d: %d times locked, %d times elected\n", name, change+1, changes,
			locks.entered.Load(), elections.entered.Load())
	}
	c.leader(watchers)
	cancel()
	group.Wait()
	reading, stop := context.WithTimeout(context.Background(), requestTime)
	defer stop()
	read, err := watchers[0].Get(reading, "counter")
	if err != nil || len(read.Kvs) != 1 {
		fail("%s: the counter cannot be read: %v", name, err)
	}
	count, _ := strconv.ParseInt(string(read.Kvs[0].Value), 10, 64)
	fmt.Printf("%s: %d changes of the leader; locked %d times, two holders at once %d times, sessions that ended inside %d; "+
		"counter %d, of %d to %d; elected %d times, two leaders at once %d times, sessions that ended inside %d\n",
		name, changes, locks.entered.Load(), locks.violations.Load(), locks.expired.Load(),
		count, sure.Load(), sure.Load()+unsure.Load(),
		elections.entered.Load(), elections.violations.Load(), elections.expired.Load())
	if locks.violations.Load() > 0 || elections.violations.Load() > 0 || count < sure.Load() || count > sure.Load()+unsure.Load() {
		fail("%s: a guarantee of the recipes was broken", name)
	}
}

// session waits until there is one, or nobody wants it any more.
func session(ctx context.Context, client *clientv3.Client) *concurrency.Session {
	for ctx.Err() == nil {
		if s, err := concurrency.NewSession(client, concurrency.WithTTL(sessionSeconds)); err == nil {
			return s
		}
		time.Sleep(10 * time.Millisecond)
	}
	return nil
}

// end gives a session's keys up at once; what does not get through, its lease ends.
func end(client *clientv3.Client, s *concurrency.Session) {
	s.Orphan()
	revoking, stop := context.WithTimeout(context.Background(), requestTime)
	defer stop()
	_, _ = client.Revoke(revoking, s.Lease())
}

// lockAndCount counts a key up under the lock, by reading it and writing one more: two holders would lose a count.
func lockAndCount(ctx context.Context, client *clientv3.Client, g *guarded, sure, unsure *atomic.Int64) {
	for ctx.Err() == nil {
		s := session(ctx, client)
		if s == nil {
			return
		}
		mutex := concurrency.NewMutex(s, "/lock")
		for ctx.Err() == nil {
			if err := mutex.Lock(ctx); err != nil {
				break
			}
			g.hold(s, func() {
				writing, stop := context.WithTimeout(context.Background(), requestTime)
				defer stop()
				read, err := client.Get(writing, "counter")
				if err != nil {
					return
				}
				count := int64(0)
				if len(read.Kvs) == 1 {
					count, _ = strconv.ParseInt(string(read.Kvs[0].Value), 10, 64)
				}
				written, err := client.Txn(writing).If(mutex.IsOwner()).
					Then(clientv3.OpPut("counter", strconv.FormatInt(count+1, 10))).Commit()
				switch {
				case err != nil:
					unsure.Add(1)
					// What was sent may still be applied; nobody may count on before it is known that it was not.
					time.Sleep(requestTime)
				case written.Succeeded:
					sure.Add(1)
				}
			})
			unlocking, stop := context.WithTimeout(context.Background(), requestTime)
			err := mutex.Unlock(unlocking)
			stop()
			if err != nil {
				break
			}
		}
		end(client, s)
	}
}

func campaign(ctx context.Context, client *clientv3.Client, number int, g *guarded) {
	for ctx.Err() == nil {
		s := session(ctx, client)
		if s == nil {
			return
		}
		election := concurrency.NewElection(s, "/election")
		for ctx.Err() == nil {
			if err := election.Campaign(ctx, strconv.Itoa(number)); err != nil {
				break
			}
			g.hold(s, func() {
				proclaiming, stop := context.WithTimeout(context.Background(), requestTime)
				_ = election.Proclaim(proclaiming, fmt.Sprintf("%d again", number))
				stop()
				time.Sleep(10 * time.Millisecond)
			})
			resigning, stop := context.WithTimeout(context.Background(), requestTime)
			err := election.Resign(resigning)
			stop()
			if err != nil {
				break
			}
		}
		end(client, s)
	}
}
