// Package peers pins the versions of the real etcd programs that Sternpost is compared with.
//
// The programs are named as `tool` in go.mod: that keeps their modules required and checked by go.sum although nothing is
// imported here. build.sh compiles them. etcd's own modules cannot be installed with `go install …@version`, since they
// carry `replace` lines; required from another module, those lines have no effect.
package peers
