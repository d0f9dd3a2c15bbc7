//! A kube-apiserver and a kube-controller-manager as nobody here wrote them, over any server that speaks etcd's language.
//!
//! **Contract.** `start` returns when the API server calls itself ready, its storage included; `Kubeadm` makes the command lines that kubeadm gives
//! to a kubelet, the storage's among them, and runs them as they are. Dropping a value kills its programs. What they log goes to files of its folder,
//! whose ends are printed when a test fails.

#![allow(unreachable_pub, reason = "a part of a test program")]
use super::support::cluster::until;
use super::support::command::{Ended, Running, run};
use super::support::process::{cache_folder, free_port, required};
use rustix::process::{Pid, Signal, kill_process};
use std::cell::RefCell;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const TOKEN: &str = "a-token-of-the-tests";
/// Of a network of tests; nobody outside of its namespace has it.
const HOST_ADDRESS: &str = "10.77.83.2";
const PROGRAMS: [&str; 4] = ["kube-apiserver", "kube-controller-manager", "kubeadm", "kubectl"];
const LOG_TAIL_BYTES: usize = 6_000;

/// How its storage is reached.
pub struct Storage {
    /// Client URLs of all members.
    pub endpoints: Vec<String>,
    /// Authority, certificate and key of the API server as a client of its storage.
    pub tls: Option<(PathBuf, PathBuf, PathBuf)>,
}

impl Storage {
    pub fn plain(endpoints: Vec<String>) -> Self {
        Self { endpoints, tls: None }
    }

    fn flags(&self) -> Vec<String> {
        let mut flags = vec![format!("--etcd-servers={}", self.endpoints.join(","))];
        if let Some((ca, cert, key)) = &self.tls {
            flags.push(format!("--etcd-cafile={}", ca.display()));
            flags.push(format!("--etcd-certfile={}", cert.display()));
            flags.push(format!("--etcd-keyfile={}", key.display()));
        }
        flags
    }
}

/// A program that `build.sh` makes, or `None` after saying so.
fn program(name: &str) -> Option<PathBuf> {
    let path = cache_folder("STERNPOST_KUBERNETES", "kubernetes").join(name);
    if path.is_file() {
        return Some(path);
    }
    let missing = format!("no {} (server/tests/kubernetes/build.sh builds it)", path.display());
    assert!(!required("STERNPOST_REQUIRE_KUBERNETES"), "{missing}");
    eprintln!("skipped: {missing}");
    None
}

/// The programs that run, and kubectl beside them.
pub struct ControlPlane {
    folder: tempfile::TempDir,
    kubeconfig: PathBuf,
    /// The network namespace that everything runs in, if it is not this program's.
    space: Option<String>,
    children: RefCell<Vec<(&'static str, Child)>>,
}

impl ControlPlane {
    /// Are its programs here? Says so if not.
    pub fn is_here() -> bool {
        PROGRAMS.iter().all(|name| program(name).is_some())
    }

    /// Starts both over this storage. `flags` are further ones of the API server.
    pub async fn start(storage: &Storage, flags: &[&str]) -> Self {
        let mut plane = Self::new(None);
        plane.kubeconfig = plane.path("kubeconfig");
        let port = free_port();
        plane.write_files(port);

        let key = plane.path("accounts.key");
        let mut command = plane.command("kube-apiserver");
        command
            .args(storage.flags())
            .arg("--bind-address=127.0.0.1")
            .arg(format!("--secure-port={port}"))
            .arg(format!("--cert-dir={}", plane.path("certs").display()))
            .arg("--service-account-issuer=https://kubernetes.default.svc")
            .arg(format!("--service-account-key-file={}", plane.path("accounts.pub").display()))
            .arg(format!("--service-account-signing-key-file={}", key.display()))
            .arg(format!("--token-auth-file={}", plane.path("tokens.csv").display()))
            .arg("--authorization-mode=RBAC")
            .arg("--service-cluster-ip-range=10.0.0.0/24")
            .args(flags);
        plane.spawn("kube-apiserver", &mut command);
        plane.is_ready().await;

        let mut command = plane.command("kube-controller-manager");
        command
            .arg(format!("--kubeconfig={}", plane.kubeconfig.display()))
            .arg(format!("--service-account-private-key-file={}", key.display()))
            .args(["--secure-port=0", "--leader-elect=true"]);
        plane.spawn("kube-controller-manager", &mut command);
        plane
    }

    fn new(space: Option<String>) -> Self {
        let folder = tempfile::Builder::new().prefix("sternpost-kubernetes-").tempdir().unwrap();
        Self { folder, kubeconfig: PathBuf::new(), space, children: RefCell::default() }
    }

    /// A program of Kubernetes, in the network namespace.
    fn command(&self, name: &str) -> Command {
        self.command_of(&program(name).expect("asked before"))
    }

    fn command_of(&self, program: &Path) -> Command {
        let Some(space) = &self.space else { return Command::new(program) };
        // `ip` becomes the program that it starts, so signals reach that.
        let mut command = Command::new("ip");
        command.args(["netns", "exec", space]).arg(program);
        command
    }

    async fn is_ready(&self) {
        until("the API server to be ready", async || {
            self.expect_alive();
            let ended = self.try_kubectl(&["get", "--raw", "/readyz"]);
            (ended.success && ended.out == "ok").then_some(())
        })
        .await;
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write_files(&self, port: u16) {
        let key = rcgen::KeyPair::generate().unwrap();
        std::fs::write(self.path("accounts.key"), key.serialize_pem()).unwrap();
        std::fs::write(self.path("accounts.pub"), key.public_key_pem()).unwrap();
        std::fs::write(self.path("tokens.csv"), format!("{TOKEN},admin,1,\"system:masters\"\n")).unwrap();
        let kubeconfig = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "tests",
            "clusters": [{"name": "tests", "cluster":
                {"server": format!("https://127.0.0.1:{port}"), "insecure-skip-tls-verify": true}}],
            "users": [{"name": "admin", "user": {"token": TOKEN}}],
            "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "admin"}}],
        });
        std::fs::write(self.path("kubeconfig"), kubeconfig.to_string()).unwrap();
    }

    fn spawn(&self, name: &'static str, command: &mut Command) {
        let log = File::create(self.path(name).with_extension("log")).unwrap();
        let child = command
            .current_dir(self.folder.path())
            .env("HOME", self.folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        self.children.borrow_mut().push((name, child));
    }

    fn expect_alive(&self) {
        for (name, child) in self.children.borrow_mut().iter_mut() {
            if let Some(status) = child.try_wait().unwrap() {
                panic!("{name} ended: {status}");
            }
        }
    }

    fn kubectl_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.command("kubectl");
        command
            .arg(format!("--kubeconfig={}", self.kubeconfig.display()))
            .arg(format!("--cache-dir={}", self.path("cache").display()))
            .args(arguments);
        command
    }

    /// kubectl with these arguments, however it ends.
    pub fn try_kubectl(&self, arguments: &[&str]) -> Ended {
        run(&mut self.kubectl_command(arguments), "")
    }

    /// Its output; it must end well.
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        self.try_kubectl(arguments).well()
    }

    /// The same with something to read.
    pub fn kubectl_reads(&self, arguments: &[&str], input: &str) -> String {
        self.try_kubectl_reads(arguments, input).well()
    }

    /// The same, however it ends.
    pub fn try_kubectl_reads(&self, arguments: &[&str], input: &str) -> Ended {
        run(&mut self.kubectl_command(arguments), input)
    }

    /// kubectl that goes on, as with `--watch`.
    pub fn kubectl_running(&self, arguments: &[&str]) -> Running {
        Running::start(&mut self.kubectl_command(arguments))
    }

    /// What a path of the API answers.
    pub fn json(&self, path: &str) -> serde_json::Value {
        serde_json::from_str(&self.kubectl(&["get", "--raw", path])).unwrap()
    }

    /// Waits until a command ends well and prints this.
    pub async fn prints(&self, arguments: &[&str], wanted: &str) {
        let what = format!("kubectl {} to print {wanted:?}", arguments.join(" "));
        until(&what, async || {
            self.expect_alive();
            let ended = self.try_kubectl(arguments);
            (ended.success && ended.out.trim() == wanted).then_some(())
        })
        .await;
    }

    /// Asks all to end, and waits.
    pub fn stop(&self) {
        let names: Vec<_> = self.children.borrow().iter().map(|(name, _)| *name).rev().collect();
        names.into_iter().for_each(|name| self.stop_one(name));
    }

    fn stop_one(&self, name: &str) {
        let mut children = self.children.borrow_mut();
        let place = children.iter().position(|(other, _)| *other == name).expect("it runs");
        let (_, mut child) = children.remove(place);
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        child.wait().unwrap();
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        for (name, child) in self.children.borrow_mut().iter_mut() {
            let name = *name;
            let _ = child.kill();
            let _ = child.wait();
            if std::thread::panicking() {
                eprintln!("--- {name}\n{}", tail(&self.folder.path().join(name).with_extension("log")));
            }
        }
    }
}

/// The only host of a cluster that kubeadm makes: a network namespace with an address of its own.
pub struct Kubeadm {
    /// What runs on it.
    pub plane: ControlPlane,
    space: String,
}

impl Kubeadm {
    /// The host with everything that `kubeadm init` writes; nothing runs yet. `None`, after saying so, where there can be no such host.
    pub fn new() -> Option<Self> {
        let space = format!("sternpost-k8s-{}", std::process::id());
        let outer = format!("k8s{}", std::process::id());
        let host = Self { plane: ControlPlane::new(Some(space.clone())), space };
        let space = &host.space;
        let commands = [
            format!("netns add {space}"),
            format!("link add {outer} type veth peer name inner netns {space}"),
            format!("-n {space} address add {HOST_ADDRESS}/24 dev inner"),
            format!("-n {space} link set inner up"),
            format!("-n {space} link set lo up"),
            format!("link set {outer} up"),
        ];
        for command in commands {
            let ended = Command::new("ip").args(command.split(' ')).output();
            if !ended.is_ok_and(|ended| ended.status.success()) {
                eprintln!("skipped: network namespaces cannot be made here (root and ip are needed)");
                return None;
            }
        }
        host.write_files();
        Some(host)
    }

    fn write_files(&self) {
        let path = |name: &str| self.plane.path(name).display().to_string();
        let host = serde_json::json!({
            "apiVersion": "kubeadm.k8s.io/v1beta4", "kind": "InitConfiguration",
            "localAPIEndpoint": {"advertiseAddress": HOST_ADDRESS, "bindPort": 6443},
            "nodeRegistration": {"name": "node", "criSocket": "unix:///run/none.sock"},
        });
        let cluster = serde_json::json!({
            "apiVersion": "kubeadm.k8s.io/v1beta4", "kind": "ClusterConfiguration", "kubernetesVersion": "v1.37.2",
            "certificatesDir": path("pki"), "etcd": {"local": {"dataDir": path("etcd")}},
        });
        std::fs::write(self.plane.path("kubeadm.yaml"), format!("{host}\n---\n{cluster}\n")).unwrap();
        std::fs::create_dir(self.plane.path("manifests")).unwrap();
        let config = ["--config", &path("kubeadm.yaml")].map(str::to_owned);
        let phases: [(&str, &[&str]); 4] = [
            ("certs all", &[]),
            ("kubeconfig all", &["--kubeconfig-dir", &path("kubeconfigs")]),
            ("etcd local", &["--dry-run"]),
            ("control-plane all", &["--dry-run"]),
        ];
        for (phase, flags) in phases {
            let mut command = self.plane.command("kubeadm");
            command.args(["init", "phase"]).args(phase.split(' ')).args(&config).args(flags);
            run(command.env("KUBEADM_INIT_DRYRUN_DIR", path("manifests")), "").well();
        }
    }

    /// The command line in a manifest, its program first. Where kubeconfigs lie is the one thing that kubeadm does not let be chosen.
    pub fn command_line(&self, manifest: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.plane.path("manifests").join(manifest)).unwrap();
        let pod: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
        let line = pod["spec"]["containers"][0]["command"].as_array().expect("a command").iter();
        let kubeconfigs = format!("{}/", self.plane.path("kubeconfigs").display());
        line.map(|word| word.as_str().expect("a word").replace("/etc/kubernetes/", &kubeconfigs)).collect()
    }

    /// Starts what the manifest of etcd starts, with this program in etcd's place, until both probes are answered.
    pub async fn start_etcd(&self, binary: &Path) {
        let line = self.command_line("etcd.yaml");
        assert_eq!(line[0], "etcd");
        let mut command = self.plane.command_of(binary);
        self.plane.spawn("etcd", command.args(&line[1..]));
        for path in ["/readyz", "/livez"] {
            until(&format!("etcd's {path}"), async || {
                self.plane.expect_alive();
                (self.probe(path)? == "ok").then_some(())
            })
            .await;
        }
    }

    fn probe(&self, path: &str) -> Option<String> {
        let mut command = self.plane.command_of(Path::new("bash"));
        let request = format!(
            "exec 3<>/dev/tcp/127.0.0.1/2381; printf 'GET {path} HTTP/1.0\\r\\n\\r\\n' >&3; tail -n 1 <&3"
        );
        let ended = run(command.args(["-c", &request]), "");
        ended.success.then(|| ended.out.trim().to_owned())
    }

    /// Asks it to end, as a kubelet does.
    pub fn stop_etcd(&self) {
        self.plane.stop_one("etcd");
    }

    /// Starts the API server and the controllers, as their manifests say.
    pub async fn start_the_others(&mut self) {
        for name in ["kube-apiserver", "kube-controller-manager"] {
            let line = self.command_line(&format!("{name}.yaml"));
            let mut command = self.plane.command(name);
            self.plane.spawn(name, command.args(&line[1..]));
            self.plane.kubeconfig = self.plane.path("kubeconfigs/super-admin.conf");
            self.plane.is_ready().await;
        }
    }

    /// A step of `kubeadm init` that needs a running cluster.
    pub fn kubeadm(&self, phase: &str) -> String {
        let config = self.plane.path("kubeadm.yaml");
        let mut command = self.plane.command("kubeadm");
        command.args(["init", "phase"]).args(phase.split(' ')).arg("--config").arg(config);
        command.arg("--kubeconfig").arg(&self.plane.kubeconfig);
        run(&mut command, "").well()
    }
}

impl Drop for Kubeadm {
    fn drop(&mut self) {
        // The interface outside goes with the one inside.
        let _ = Command::new("ip").args(["netns", "del", &self.space]).output();
    }
}

fn tail(path: &Path) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(text.get(text.len().saturating_sub(LOG_TAIL_BYTES)..).unwrap_or_default())
        .into_owned()
}
