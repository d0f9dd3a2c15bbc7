// How long clients are blind when a member of three dies, stops or is stopped: etcd and sternpost in turn, with etcd's own client.
//
// Two kinds of clients put 256 bytes in closed loops all the while. Two *pinned* ones for each member know that member alone: whatever the cluster
// can acknowledge, one of them hears; the longest time in which none of them heard anything is the cluster's gap. One *ordinary* client
// knows all members, as applications do; its gap is the longest time between two of its acknowledgements, with the client's own
// retries and its caller's: a failed put is tried again at once. While a member is stopped (not dead), the pinned clients of that member are left out; the
// same while its disk is frozen. The
// ordinary client may be in the middle of a call to it, which ends by the caller's own time-out of 10 s whatever the servers do.
//
// A gap counts wherever it lies in the some three seconds behind the fault: a disk that does not answer for a moment then is in it too. So the longest
// gap that begins with the fault, within 100 ms of it, is told beside it, and the longest write of a client of the disk itself, which puts 4 KiB there
// all the while, without any server in between.
//
// Every put counts up; at the end every client's last acknowledged count has to be there.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

const (
	membersCount     = 3
	pinnedPerMember  = 2
	valueBytes       = 256
	requestTime      = 10 * time.Second
	steadyBefore     = time.Second
	quietAfter       = 2 * time.Second
	longestGap       = 30 * time.Second
	faultBegins      = 100 * time.Millisecond
	diskPause        = 5 * time.Millisecond
	patience         = 60 * time.Second
	leaveOutOfNobody = -1
)

// Bytes of the file system that a member's disk is, when disks are frozen.
const diskBytes = 4 << 30

type member struct {
	number     int
	clientPort int
	peerPort   int
	command    *exec.Cmd
	log        *os.File
	// Where its disk is mounted, if it has one of its own.
	mount string
}

type cluster struct {
	binary    string
	directory string
	members   []*member
}

func freePort() int {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fail("no free port: %v", err)
	}
	defer listener.Close()
	return listener.Addr().(*net.TCPAddr).Port
}

func fail(format string, arguments ...any) {
	fmt.Fprintf(os.Stderr, "failover: "+format+"\n", arguments...)
	os.Exit(1)
}

func (m *member) endpoint() string { return fmt.Sprintf("127.0.0.1:%d", m.clientPort) }

func (c *cluster) start(m *member) {
	var initial []string
	for _, other := range c.members {
		initial = append(initial, fmt.Sprintf("m%d=http://127.0.0.1:%d", other.number, other.peerPort))
	}
	client, peer := "http://"+m.endpoint(), fmt.Sprintf("http://127.0.0.1:%d", m.peerPort)
	name := fmt.Sprintf("m%d", m.number)
	data := filepath.Join(c.directory, name)
	if m.mount != "" {
		data = filepath.Join(m.mount, "data")
	}
	m.command = exec.Command(c.binary, "--name="+name, "--data-dir="+data,
		"--listen-client-urls="+client, "--advertise-client-urls="+client,
		"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer,
		"--initial-cluster="+strings.Join(initial, ","), "--initial-cluster-state=new")
	log, err := os.OpenFile(filepath.Join(c.directory, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		fail("%v", err)
	}
	m.log = log
	m.command.Stdout, m.command.Stderr = log, log
	if err := m.command.Start(); err != nil {
		fail("start %s: %v", c.binary, err)
	}
}

func run(name string, arguments ...string) {
	if output, err := exec.Command(name, arguments...).CombinedOutput(); err != nil {
		fail("%s %v: %v: %s", name, arguments, err, output)
	}
}

// mountDisk gives a member a file system of its own on a file, which can be frozen.
func (m *member) mountDisk(directory string) {
	image := filepath.Join(directory, fmt.Sprintf("m%d.disk", m.number))
	m.mount = filepath.Join(directory, fmt.Sprintf("m%d.mount", m.number))
	run("truncate", "-s", strconv.Itoa(diskBytes), image)
	run("mkfs.ext4", "-q", image)
	if err := os.MkdirAll(m.mount, 0o700); err != nil {
		fail("%v", err)
	}
	run("mount", "-o", "loop", image, m.mount)
}

func startCluster(binary, directory string, ownDisks bool) *cluster {
	if err := os.MkdirAll(directory, 0o700); err != nil {
		fail("%v", err)
	}
	c := &cluster{binary: binary, directory: directory}
	for number := range membersCount {
		c.members = append(c.members, &member{number: number, clientPort: freePort(), peerPort: freePort()})
	}
	for _, m := range c.members {
		if ownDisks {
			m.mountDisk(directory)
		}
		c.start(m)
	}
	return c
}

func (c *cluster) stop() {
	for _, m := range c.members {
		_ = m.command.Process.Signal(syscall.SIGCONT)
		_ = m.command.Process.Kill()
		_ = m.command.Wait()
		m.log.Close()
		// What the kernel still has to close holds it for a moment.
		for try := 0; m.mount != "" && try < 100; try++ {
			if exec.Command("umount", m.mount).Run() == nil {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
}

func connect(endpoints ...string) *clientv3.Client {
	client, err := clientv3.New(clientv3.Config{Endpoints: endpoints, DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		fail("connect: %v", err)
	}
	return client
}

// clients are one for each member, and everybody's endpoints.
func (c *cluster) clients() (watchers []*clientv3.Client, all []string) {
	for _, m := range c.members {
		watchers = append(watchers, connect(m.endpoint()))
		all = append(all, m.endpoint())
	}
	return watchers, all
}

// leader waits until all members name the same leader and have applied what it has; its number.
func (c *cluster) leader(clients []*clientv3.Client) (int, uint64) {
	end := time.Now().Add(patience)
	for time.Now().Before(end) {
		ids := make([]uint64, membersCount)
		leaders := make([]uint64, membersCount)
		applied := make([]uint64, membersCount)
		ok := true
		for number, m := range c.members {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			status, err := clients[number].Status(ctx, m.endpoint())
			cancel()
			if err != nil {
				ok = false
				break
			}
			ids[number], leaders[number] = status.Header.MemberId, status.Leader
			applied[number] = status.RaftAppliedIndex
		}
		if ok && leaders[0] != 0 && leaders[0] == leaders[1] && leaders[1] == leaders[2] {
			behind := slices.Max(applied) - slices.Min(applied)
			if number := slices.Index(ids, leaders[0]); number >= 0 && behind < 1000 {
				return number, ids[(number+1)%membersCount]
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	fail("no leader that everybody knows")
	return 0, 0
}

// prober puts in a closed loop and notes when it was acknowledged.
type prober struct {
	mutex        sync.Mutex
	member       int
	acknowledged []time.Time
	last         int
	key          string
	client       *clientv3.Client
}

func (p *prober) run(ctx context.Context) {
	for count := 1; ctx.Err() == nil; count++ {
		value := fmt.Sprintf("%010d", count) + strings.Repeat("x", valueBytes-10)
		for ctx.Err() == nil {
			putting, cancel := context.WithTimeout(ctx, requestTime)
			_, err := p.client.Put(putting, p.key, value)
			cancel()
			if err == nil {
				now := time.Now()
				p.mutex.Lock()
				p.acknowledged = append(p.acknowledged, now)
				p.last = count
				p.mutex.Unlock()
				break
			}
			time.Sleep(time.Millisecond)
		}
	}
}

func (p *prober) since(begin time.Time) []time.Time {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	at, _ := slices.BinarySearchFunc(p.acknowledged, begin, time.Time.Compare)
	return slices.Clone(p.acknowledged[at:])
}

// diskProber writes a page and syncs it, over and over, and notes when that was done.
type diskProber struct {
	mutex sync.Mutex
	// When each began and how long it took.
	syncs []diskSync
}

type diskSync struct {
	begin time.Time
	took  time.Duration
}

func (p *diskProber) run(ctx context.Context, path string) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		fail("%v", err)
	}
	defer file.Close()
	page := make([]byte, 4096)
	for ctx.Err() == nil {
		begin := time.Now()
		_, err := file.WriteAt(page, 0)
		if err == nil {
			err = syscall.Fdatasync(int(file.Fd()))
		}
		if err != nil {
			fail("%v", err)
		}
		p.mutex.Lock()
		p.syncs = append(p.syncs, diskSync{begin, time.Since(begin)})
		p.mutex.Unlock()
		time.Sleep(diskPause)
	}
}

// longest of those that were under way between begin and end, and are done.
func (p *diskProber) longest(begin, end time.Time) (longest time.Duration) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	for _, one := range p.syncs {
		if one.begin.Before(end) && one.begin.Add(one.took).After(begin) {
			longest = max(longest, one.took)
		}
	}
	return longest
}

// gap is the longest time without an acknowledgement from begin to end, of those that begin within `within`, and how long after begin it began.
func gap(times []time.Time, begin, end time.Time, within time.Duration) (longest, after time.Duration) {
	slices.SortFunc(times, time.Time.Compare)
	last := begin
	for _, at := range append(times, end) {
		if since := last.Sub(begin); since <= within && at.Sub(last) > longest {
			longest, after = at.Sub(last), since
		}
		last = at
	}
	return longest, after
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

type gaps struct {
	Cluster  []float64 `json:"cluster_ms"`
	Fault    []float64 `json:"cluster_at_the_fault_ms"`
	Ordinary []float64 `json:"ordinary_ms"`
	Disk     []float64 `json:"disk_ms"`
}

type result struct {
	Server string          `json:"server"`
	Gaps   map[string]gaps `json:"gaps"`
	Puts   int             `json:"puts"`
	Lost   int             `json:"lost"`
}

func measure(name, binary, directory string, faults []string, tries int) result {
	c := startCluster(binary, directory, slices.Contains(faults, "freeze"))
	defer c.stop()
	watchers, all := c.clients()
	c.leader(watchers)
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	var pinned []*prober
	begin := func(p *prober) { group.Go(func() { p.run(ctx) }) }
	for number, m := range c.members {
		for one := range pinnedPerMember {
			p := &prober{member: number, key: fmt.Sprintf("pinned-%d-%d", number, one), client: connect(m.endpoint())}
			pinned = append(pinned, p)
			begin(p)
		}
	}
	ordinary := &prober{member: leaveOutOfNobody, key: "ordinary", client: connect(all...)}
	begin(ordinary)
	disk := &diskProber{}
	group.Go(func() { disk.run(ctx, filepath.Join(directory, "control")) })

	outcome := result{Server: name, Gaps: map[string]gaps{}}
	for _, fault := range faults {
		var found gaps
		for try := range tries {
			leader, next := c.leader(watchers)
			time.Sleep(steadyBefore + time.Duration(rand.IntN(200))*time.Millisecond)
			m := c.members[leader]
			from := time.Now()
			leaveOut := leaveOutOfNobody
			switch fault {
			case "kill":
				_ = m.command.Process.Kill()
				_ = m.command.Wait()
			case "term":
				_ = m.command.Process.Signal(syscall.SIGTERM)
				go func() { _ = m.command.Wait() }()
			case "stop":
				_ = m.command.Process.Signal(syscall.SIGSTOP)
				leaveOut = leader
			case "freeze":
				run("fsfreeze", "-f", m.mount)
				leaveOut = leader
			case "move":
				moving, stop := context.WithTimeout(context.Background(), requestTime)
				_, err := watchers[leader].MoveLeader(moving, next)
				stop()
				if err != nil {
					fmt.Fprintf(os.Stderr, "%s: move-leader: %v\n", name, err)
				}
			default:
				fail("no fault is called %q", fault)
			}
			// Until the ordinary client has been served again for a while, or for very long.
			for time.Since(from) < longestGap {
				time.Sleep(50 * time.Millisecond)
				served := ordinary.since(from.Add(steadyBefore / 2))
				if len(served) > 0 && time.Since(served[0]) > quietAfter {
					break
				}
			}
			until := time.Now()
			var acknowledged []time.Time
			for _, p := range pinned {
				if p.member != leaveOut {
					acknowledged = append(acknowledged, p.since(from)...)
				}
			}
			clusterGap, after := gap(acknowledged, from, until, longestGap)
			faultGap, _ := gap(acknowledged, from, until, faultBegins)
			ordinaryGap, _ := gap(ordinary.since(from), from, until, longestGap)
			longestSync := disk.longest(from, until)
			found.Cluster = append(found.Cluster, milliseconds(clusterGap))
			found.Fault = append(found.Fault, milliseconds(faultGap))
			found.Ordinary = append(found.Ordinary, milliseconds(ordinaryGap))
			found.Disk = append(found.Disk, milliseconds(longestSync))
			fmt.Fprintf(os.Stderr, "%s: %s %d of %d: cluster %v (begun %v after it), at the fault %v, ordinary client %v, disk alone %v\n",
				name, fault, try+1, tries, clusterGap.Round(time.Millisecond), after.Round(time.Millisecond),
				faultGap.Round(time.Millisecond), ordinaryGap.Round(time.Millisecond), longestSync.Round(time.Millisecond))
			switch fault {
			case "kill":
				c.start(m)
			case "term":
				for m.command.ProcessState == nil {
					time.Sleep(10 * time.Millisecond)
				}
				c.start(m)
			case "stop":
				_ = m.command.Process.Signal(syscall.SIGCONT)
			case "freeze":
				run("fsfreeze", "-u", m.mount)
			}
		}
		outcome.Gaps[fault] = found
	}
	c.leader(watchers)
	cancel()
	group.Wait()
	for _, p := range append(pinned, ordinary) {
		outcome.Puts += len(p.acknowledged)
		reading, stop := context.WithTimeout(context.Background(), requestTime)
		read, err := watchers[0].Get(reading, p.key)
		stop()
		if err != nil || len(read.Kvs) != 1 {
			fail("%s: read %s: %v", name, p.key, err)
		}
		count, _ := strconv.Atoi(string(read.Kvs[0].Value[:10]))
		if count < p.last {
			outcome.Lost++
			fmt.Fprintf(os.Stderr, "%s: LOST: %s was acknowledged up to %d and is %d\n", name, p.key, p.last, count)
		}
	}
	return outcome
}

// quantile of what is measured; with 20 tries the 99th is the greatest.
func quantile(values []float64, q float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	at := int(float64(len(sorted)) * q)
	return sorted[min(at, len(sorted)-1)]
}

func main() {
	etcd := flag.String("etcd", "", "etcd's program")
	sternpost := flag.String("sternpost", "target/release/sternpost", "sternpost's program")
	directory := flag.String("directory", "", "where the members keep their data")
	faults := flag.String("faults", "kill,stop,term,move", "which faults, in this order; freeze needs root: the disks are then file systems on files")
	tries := flag.Int("tries", 20, "how often each")
	file := flag.String("json", "", "a file for everything that was measured")
	changes := flag.Int("recipes", 0, "instead: hold the client's lock and election recipes over so many changes of the leader")
	flag.Parse()
	if *directory == "" {
		fail("--directory says where, on the disk that matters")
	}
	names := strings.Split(*faults, ",")
	var results []result
	for _, contestant := range [][2]string{{"etcd", *etcd}, {"sternpost", *sternpost}} {
		if contestant[1] == "" {
			continue
		}
		folder := filepath.Join(*directory, contestant[0])
		if err := os.RemoveAll(folder); err != nil {
			fail("%v", err)
		}
		if *changes > 0 {
			recipes(contestant[0], contestant[1], folder, *changes)
			_ = os.RemoveAll(folder)
			continue
		}
		results = append(results, measure(contestant[0], contestant[1], folder, names, *tries))
		_ = os.RemoveAll(folder)
	}
	if *changes > 0 {
		return
	}
	fmt.Printf("| milliseconds without an acknowledgement, %d tries | p50 | p90 | greatest |\n|---|---|---|---|\n", *tries)
	for _, fault := range names {
		for _, r := range results {
			for _, kind := range []struct {
				name   string
				values []float64
			}{
				{"cluster", r.Gaps[fault].Cluster},
				{"cluster, begun with the fault", r.Gaps[fault].Fault},
				{"one ordinary client", r.Gaps[fault].Ordinary},
				{"a write of the disk alone", r.Gaps[fault].Disk},
			} {
				fmt.Printf("| %s, %s, %s | %.0f | %.0f | %.0f |\n", fault, r.Server, kind.name,
					quantile(kind.values, 0.5), quantile(kind.values, 0.9), quantile(kind.values, 1))
			}
		}
	}
	for _, r := range results {
		fmt.Printf("\n%s: %d puts acknowledged, %d clients lost one.\n", r.Server, r.Puts, r.Lost)
	}
	if *file != "" {
		text, _ := json.MarshalIndent(results, "", "  ")
		if err := os.WriteFile(*file, append(text, '\n'), 0o600); err != nil {
			fail("%v", err)
		}
	}
}
