//! The recorded answers of etcd 3.7.3 hold: for etcd itself, and for us.
//!
//! The files in `api/` say a rule of etcd's API in prose, then show it: a request and the answer the real server gave. Both
//! servers get the same requests in the same order on an empty store, and must give the same answers, byte for byte but for
//! what `session.rs` puts in order. The format is told in `api/README.md`.
//!
//! The same files are run once more through the JSON gateway of both (`gateway_client.rs` says what is held against what). Files that say nothing of users
//! are run both ways with authentication on as well, as root: the answers are the same.
//!
//! - `STERNPOST_API=watch` runs only files whose name contains that word.
//! - `STERNPOST_RECORD=1` writes the answers of the real etcd into the files. There is no way to record our own.
//! - `STERNPOST_REQUIRE_PEERS=1` makes a missing etcd a failure; without it the test says so and passes.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};

use support::case_file::CaseFile;
use support::gateway_client::ASKED;
use support::process::{Program, required};
use support::raw_client::descriptors;
use support::session::{Auth, Session, Way};

/// Servers that run at the same time: starting etcd is mostly waiting.
const FILES_AT_ONCE: usize = 4;
/// After so many differences in one file the rest says nothing new.
const DIFFERENCES_SHOWN_MAX: usize = 12;
/// Files about what our server does not serve yet. They hold for etcd; each must still differ from us, so that the list is true.
const NOT_SERVED_YET: [&str; 1] = ["downgrade.txt"];
/// The suite may grow, not shrink: requests of all files, and of those without users, which are also asked with authentication on.
const REQUESTS_MIN: usize = 1_540;
const WITHOUT_USERS_MIN: usize = 800;
/// Of those, what must have gone through a gateway when it was asked for: nearly all but streams of ranges and broken messages.
const GATEWAY_REQUESTS_MIN: usize = 400;

#[test]
fn sternpost_answers_as_recorded() {
    if let Err(missing) = Program::Sternpost.binary() {
        eprintln!("skipped: {missing}");
        return;
    }
    let seen = check_all(Program::Sternpost, Way::Grpc, Auth::Off);
    if std::env::var_os("STERNPOST_API").is_none() {
        fields_are_recorded(&seen);
    }
}

/// `surface/fields.txt` has the methods and fields that the cases show, with the files that do: `surface.rs` goes by it.
fn fields_are_recorded(seen: &BTreeMap<String, BTreeSet<String>>) {
    let lines = seen.iter().map(|(name, files)| {
        let files: Vec<&str> = files.iter().map(String::as_str).collect();
        format!("{name}: {}\n", files.join(" "))
    });
    let text: String = lines.collect();
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/surface/fields.txt");
    if std::env::var_os("STERNPOST_REGENERATE").is_some() {
        std::fs::write(&path, &text).expect("the file can be written");
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == text,
        "fields.txt is not what the cases show: run with STERNPOST_REGENERATE=1 and commit the difference"
    );
}

#[test]
fn sternpost_answers_as_recorded_from_its_disk() {
    check_all(Program::SternpostOnDisk, Way::Grpc, Auth::Off);
}

#[test]
fn etcd_answers_as_recorded() {
    if let Err(missing) = Program::Etcd.binary() {
        assert!(!required("STERNPOST_REQUIRE_PEERS"), "{missing}");
        eprintln!("skipped: {missing}");
        return;
    }
    check_all(Program::Etcd, Way::Grpc, Auth::Off);
}

#[test]
fn sternpost_answers_as_recorded_through_its_gateway() {
    check_all(Program::Sternpost, Way::Gateway, Auth::Off);
}

#[test]
fn etcd_answers_as_recorded_through_its_gateway() {
    if Program::Etcd.binary().is_ok() {
        check_all(Program::Etcd, Way::Gateway, Auth::Off);
    }
}

#[test]
fn sternpost_answers_as_recorded_with_authentication_on() {
    check_all(Program::Sternpost, Way::Grpc, Auth::Root);
}

#[test]
fn etcd_answers_as_recorded_with_authentication_on() {
    if Program::Etcd.binary().is_ok() {
        check_all(Program::Etcd, Way::Grpc, Auth::Root);
    }
}

#[test]
fn sternpost_answers_as_recorded_through_its_gateway_with_authentication_on() {
    check_all(Program::Sternpost, Way::Gateway, Auth::Root);
}

#[test]
fn etcd_answers_as_recorded_through_its_gateway_with_authentication_on() {
    if Program::Etcd.binary().is_ok() {
        check_all(Program::Etcd, Way::Gateway, Auth::Root);
    }
}

#[test]
fn the_suite_is_as_large_as_promised() {
    let count = |file: &CaseFile| file.requests().count();
    let (requests, without_users): (usize, usize) = (
        files("").iter().map(count).sum(),
        files("").iter().filter(|file| !is_about_users(file)).map(count).sum(),
    );
    assert!(requests >= REQUESTS_MIN, "{requests} requests");
    assert!(without_users >= WITHOUT_USERS_MIN, "{without_users} of them without users");
}

/// It sets up users of its own, brings tokens, or shows what is seen without any.
fn is_about_users(file: &CaseFile) -> bool {
    let of_auth = descriptors().get_service_by_name("etcdserverpb.Auth").expect("a service of etcd");
    file.requests().any(|step| {
        let word = step.request[0].split(' ').next().unwrap_or_default();
        let asks_auth = of_auth.methods().any(|method| method.name() == word);
        let mentions = ["/v3/auth/", "metadata token=", "metadata authorization="];
        asks_auth || step.request.iter().any(|line| mentions.iter().any(|text| line.contains(text)))
    })
}

#[test]
fn reading_and_writing_a_file_changes_nothing() {
    for file in files("") {
        let answers: Vec<_> = file.requests().map(|step| step.answer.clone()).collect();
        let text = std::fs::read_to_string(&file.path).expect("readable");
        assert_eq!(file.render(&answers), text, "{}", file.name());
    }
}

fn files(filter: &str) -> Vec<CaseFile> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/api");
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)
        .expect("tests/api")
        .map(|entry| entry.expect("readable").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().contains(filter)))
        .collect();
    paths.sort();
    paths.iter().map(|path| CaseFile::read(path)).collect()
}

/// One program at a time: a dozen servers on two processors answer in pieces where they answer at once, the real one too.
static ONE_PROGRAM: Mutex<()> = Mutex::new(());

/// What the files show that were answered as recorded: names, with their files.
fn check_all(program: Program, way: Way, auth: Auth) -> BTreeMap<String, BTreeSet<String>> {
    let _alone = ONE_PROGRAM.lock().unwrap_or_else(PoisonError::into_inner);
    let record =
        required("STERNPOST_RECORD") && program == Program::Etcd && (way, auth) == (Way::Grpc, Auth::Off);
    let asked_before = ASKED.load(Ordering::Relaxed);
    let mut queue = files(&std::env::var("STERNPOST_API").unwrap_or_default());
    if auth == Auth::Root {
        queue.retain(|file| !is_about_users(file));
    }
    queue.reverse();
    let (queue, failures) = (Mutex::new(queue), Mutex::new(Vec::new()));
    let seen = Mutex::new(BTreeMap::<String, BTreeSet<String>>::new());
    let work = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        loop {
            let Some(file) = queue.lock().expect("no panic under the lock").pop() else { return };
            // A panic of one file is its failure; the other files still run.
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                runtime.block_on(check_file(program, way, auth, &file, record, &seen))
            }));
            let failure = match result {
                Ok(None) => continue,
                Ok(Some(failure)) => failure,
                Err(_) => format!("{}: panicked, see above", file.name()),
            };
            failures.lock().expect("no panic under the lock").push(failure);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..FILES_AT_ONCE {
            scope.spawn(work);
        }
    });
    let mut failures = failures.into_inner().expect("no panic under the lock");
    failures.sort();
    assert!(
        failures.is_empty(),
        "{program:?} answers otherwise than recorded, by {way:?}, authentication {auth:?}\n\n{}",
        failures.join("\n")
    );
    let asked = ASKED.load(Ordering::Relaxed) - asked_before;
    if way == Way::Gateway && std::env::var_os("STERNPOST_API").is_none() {
        assert!(asked >= GATEWAY_REQUESTS_MIN, "{asked} requests went through the gateway");
    }
    seen.into_inner().expect("no panic under the lock")
}

/// Runs one file; `None` if all its answers are as recorded (or now recorded).
async fn check_file(
    program: Program,
    way: Way,
    auth: Auth,
    file: &CaseFile,
    record: bool,
    seen: &Mutex<BTreeMap<String, BTreeSet<String>>>,
) -> Option<String> {
    let closes = file.requests().any(|step| step.request.iter().any(|line| line.ends_with(" close")));
    let way = if closes && way == Way::Gateway { Way::GatewayWithoutStreams } else { way };
    let mut session = Session::new(program, way, auth, descriptors());
    let (mut answers, mut differences) = (Vec::new(), Vec::new());
    for step in file.requests() {
        let answer = match session.run(step).await {
            Ok(answer) => answer,
            Err(error) => return Some(format!("{}:{}: {error}", file.path.display(), step.line)),
        };
        if answer != step.answer {
            differences.push(format!(
                "{}:{}\n{}\n  recorded:\n{}\n  now:\n{}\n",
                file.path.display(),
                step.line,
                indented(&step.request),
                indented(&step.answer),
                indented(&answer),
            ));
        }
        answers.push(answer);
        if differences.len() >= DIFFERENCES_SHOWN_MAX && !record {
            differences.push(format!("{}: and the rest was not tried", file.name()));
            break;
        }
    }
    if program != Program::Etcd && NOT_SERVED_YET.contains(&file.name().as_str()) {
        let all_served = format!("{}: served now, so it leaves the list NOT_SERVED_YET", file.name());
        return differences.is_empty().then_some(all_served);
    }
    if record {
        std::fs::write(&file.path, file.render(&answers)).expect("the file can be written");
        return None;
    }
    if differences.is_empty() {
        let (name, mut seen) = (file.name(), seen.lock().expect("no panic under the lock"));
        for field in std::mem::take(&mut session.seen.0) {
            seen.entry(field).or_default().insert(name.trim_end_matches(".txt").to_owned());
        }
        return None;
    }
    if std::env::var_os("STERNPOST_LOG").is_some() {
        differences.push(format!("the server's log ends:\n{}", session.log_tail()));
    }
    Some(differences.join("\n"))
}

fn indented(lines: &[String]) -> String {
    lines.iter().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}
