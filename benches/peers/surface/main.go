// Surface prints all that clients and operators of etcd can name: methods, fields of messages, paths of the gateway, flags, keys of the
// configuration file, metrics. One a line, sorted, out of etcd's own descriptors, flag set and registry. It is recorded in
// server/tests/surface/etcd.txt, which server/tests/surface.rs holds against what is here:
//
//	cd benches/peers && go run ./surface > ../../server/tests/surface/etcd.txt
package main

import (
	"flag"
	"fmt"
	"net/url"
	"os"
	"reflect"
	"regexp"
	"sort"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/version"
	"go.etcd.io/etcd/server/v3/embed"
	_ "go.etcd.io/etcd/server/v3/etcdmain" // For what it registers.
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

var lines = map[string]bool{}

func say(format string, values ...any) {
	lines[fmt.Sprintf(format, values...)] = true
}

func main() {
	for _, file := range []protoreflect.FileDescriptor{
		etcdserverpb.File_rpc_proto, v3lockpb.File_v3lock_proto, v3electionpb.File_v3election_proto,
	} {
		services := file.Services()
		for i := 0; i < services.Len(); i++ {
			methods := services.Get(i).Methods()
			for j := 0; j < methods.Len(); j++ {
				method(methods.Get(j))
			}
		}
	}
	flags()
	keys("", reflect.TypeOf(embed.Config{}))
	metrics()

	fmt.Printf("# etcd %s; written by benches/peers/surface\n", version.Version)
	sorted := make([]string, 0, len(lines))
	for line := range lines {
		sorted = append(sorted, line)
	}
	sort.Strings(sorted)
	fmt.Println(strings.Join(sorted, "\n"))
}

func method(method protoreflect.MethodDescriptor) {
	kind := "unary"
	switch {
	case method.IsStreamingClient():
		kind = "both"
	case method.IsStreamingServer():
		kind = "answers"
	}
	name := fmt.Sprintf("%s/%s", method.Parent().FullName(), method.Name())
	say("method %s %s %s %s", name, kind, method.Input().FullName(), method.Output().FullName())
	message(method.Input())
	message(method.Output())
	rule, ok := proto.GetExtension(method.Options(), annotations.E_Http).(*annotations.HttpRule)
	if !ok || rule == nil {
		return
	}
	for _, rule := range append([]*annotations.HttpRule{rule}, rule.AdditionalBindings...) {
		say("route %s %s", rule.GetPost(), name)
	}
}

func message(message protoreflect.MessageDescriptor) {
	fields := message.Fields()
	for i := 0; i < fields.Len(); i++ {
		field := fields.Get(i)
		kind := field.Kind().String()
		if field.Message() != nil {
			kind = string(field.Message().FullName())
		}
		if field.Enum() != nil {
			kind = string(field.Enum().FullName())
			values := field.Enum().Values()
			for j := 0; j < values.Len(); j++ {
				say("value %s.%s %d", kind, values.Get(j).Name(), values.Get(j).Number())
			}
		}
		line := fmt.Sprintf("field %s.%s %d %s %s", message.FullName(), field.Name(), field.Number(), field.Cardinality(), kind)
		if lines[line] {
			continue
		}
		say("%s", line)
		if field.Message() != nil {
			messageOnce(field.Message())
		}
	}
}

var seen = map[protoreflect.FullName]bool{}

func messageOnce(descriptor protoreflect.MessageDescriptor) {
	if !seen[descriptor.FullName()] {
		seen[descriptor.FullName()] = true
		message(descriptor)
	}
}

// The flags that embed knows, and those few that the program adds (etcdmain/config.go, whose set of flags is not exported).
func flags() {
	set := flag.NewFlagSet("etcd", flag.ContinueOnError)
	embed.NewConfig().AddFlags(set)
	set.VisitAll(func(f *flag.Flag) { say("flag %s %q", f.Name, f.DefValue) })
	for name, value := range map[string]string{
		"config-file": "", "discovery-fallback": "exit", "initial-cluster-state": "new", "v2-deprecation": "write-only", "version": "false",
	} {
		say("flag %s %q", name, value)
	}
	for _, name := range strings.Fields(`cluster-active-size cluster-remove-delay cluster-sync-interval config force max-result-buffer
		max-retry-attempts peer-heartbeat-interval peer-election-timeout retry-interval snapshot v vv test.coverprofile test.outputdir`) {
		say("dropped %s", name)
	}
}

// Keys of the YAML file: embed's type by its tags, and those that it reads as texts first (embed/config.go, configJSON).
func keys(path string, kind reflect.Type) {
	for kind.Kind() == reflect.Pointer {
		kind = kind.Elem()
	}
	for i := 0; i < kind.NumField(); i++ {
		field := kind.Field(i)
		tag, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		if tag == "" || tag == "-" || !field.IsExported() {
			continue
		}
		inner := field.Type
		for inner.Kind() == reflect.Pointer {
			inner = inner.Elem()
		}
		if inner.Kind() == reflect.Struct && strings.HasPrefix(inner.PkgPath(), "go.etcd.io") {
			keys(path+tag+".", inner)
			continue
		}
		say("key %s%s", path, tag)
	}
	if path != "" {
		return
	}
	for _, tag := range strings.Fields(`listen-peer-urls listen-client-urls listen-client-http-urls initial-advertise-peer-urls
		advertise-client-urls cors host-whitelist feature-gates`) {
		say("key %s", tag)
	}
	for _, block := range []string{"client-transport-security", "peer-transport-security"} {
		for _, tag := range strings.Fields(`cert-file key-file client-cert-file client-key-file client-cert-auth trusted-ca-file
			auto-tls allowed-cn allowed-hostname skip-client-san-verification`) {
			say("key %s.%s", block, tag)
		}
	}
}

var description = regexp.MustCompile(`^Desc\{fqName: "([^"]*)".*variableLabels: \{([^}]*)\}\}$`)

// What a member registers, whether it has values yet or not; the types of what has.
func metrics() {
	directory, err := os.MkdirTemp("", "surface")
	check(err)
	defer os.RemoveAll(directory)
	config := embed.NewConfig()
	config.Dir, config.LogLevel, config.Metrics = directory, "error", "extensive"
	peer, client := url.URL{Scheme: "http", Host: "127.0.0.1:23980"}, url.URL{Scheme: "http", Host: "127.0.0.1:23979"}
	config.ListenPeerUrls, config.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	config.ListenClientUrls, config.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	member, err := embed.StartEtcd(config)
	check(err)
	<-member.Server.ReadyNotify()
	families, err := prometheus.DefaultGatherer.Gather()
	check(err)
	kinds := map[string]string{}
	for _, family := range families {
		kinds[family.GetName()] = strings.ToLower(family.GetType().String())
	}
	descriptions := make(chan *prometheus.Desc)
	go func() {
		prometheus.DefaultRegisterer.(*prometheus.Registry).Describe(descriptions)
		close(descriptions)
	}()
	for one := range descriptions {
		parts := description.FindStringSubmatch(one.String())
		if parts == nil {
			fmt.Fprintln(os.Stderr, "not understood:", one)
			continue
		}
		kind, labels := kinds[parts[1]], strings.Split(parts[2], ",")
		if kind == "" {
			kind = "-"
		}
		sort.Strings(labels)
		say("%s", strings.TrimSpace(fmt.Sprintf("metric %s %s %s", parts[1], kind, strings.Join(labels, ","))))
	}
	member.Close()
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
