//! The state machine by itself: entries in, results and notices out.
use super::command::{Kind, LeaseExpiry, Origin, encode, encode_lease_expiry};
use super::*;
use crate::wire::etcdserverpb::alarm_request::AlarmAction;
use crate::wire::etcdserverpb::{
    AlarmMember, AlarmRequest, LeaseGrantRequest, LeaseRevokeRequest, Member, PutRequest,
};
use bytes::Bytes;
use std::sync::Mutex;
use sternpost_engine::mvcc::StoreOptions;

#[derive(Default)]
struct Heard {
    results: Mutex<Vec<(u64, Applied)>>,
    notices: Arc<Mutex<Vec<Notice>>>,
}

impl Results for Heard {
    fn deliver(&self, id: u64, applied: Applied) {
        self.results.lock().unwrap().push((id, applied));
    }
    fn stop(&self) {}
}

struct NoticeList(Arc<Mutex<Vec<Notice>>>);

impl Notices for NoticeList {
    fn notice(&mut self, notice: Notice) {
        self.0.lock().unwrap().push(notice);
    }
}

fn machine(quota: Quota) -> (Machine, Arc<Heard>) {
    let heard = Arc::new(Heard::default());
    let (_, writer) = StoreWriter::new(StoreOptions::default());
    let notices = Box::new(NoticeList(Arc::clone(&heard.notices)));
    let mut machine = Machine::new(writer, Arc::default(), Arc::clone(&heard) as _, notices, quota);
    let member = Member { id: 3, peer_ur_ls: vec!["http://a:1".to_owned()], ..Member::default() };
    let genesis = GenesisState { cluster_id: 9, feature_level: 1, members: vec![member], restored: None };
    machine.restore(1, 1, &genesis.encode());
    (machine, heard)
}

fn apply(machine: &mut Machine, commands: &[Vec<u8>], replay: bool) {
    let index = machine.applied_index() + 1;
    machine.apply(&Entry { index, term: 4, commands: commands.iter().map(Vec::as_slice).collect(), replay });
    machine.flush();
}

fn put(id: u64, key: &'static str, lease: i64) -> Vec<u8> {
    let put = PutRequest { key: Bytes::from_static(key.as_bytes()), lease, ..Default::default() };
    encode(Kind::Put, Origin::Client, id, &put)
}

fn grant(id: u64, lease: i64, ttl: i64) -> Vec<u8> {
    encode(Kind::LeaseGrant, Origin::Client, id, &LeaseGrantRequest { id: lease, ttl })
}

fn take(heard: &Heard) -> Vec<(u64, Applied)> {
    std::mem::take(&mut heard.results.lock().unwrap())
}

#[test]
fn results_come_by_id_in_order_and_not_while_the_log_is_replayed() {
    let (mut machine, heard) = machine(Quota::new(None));
    apply(&mut machine, &[put(7, "a", 0), put(8, "b", 5)], false);
    let results = take(&heard);
    let revision = |outcome: &Applied| match &outcome.result {
        Ok(Outcome::Put(put)) => Ok(put.revision),
        other => Err(other.clone()),
    };
    assert_eq!((results[0].0, revision(&results[0].1)), (7, Ok(2)));
    assert_eq!((results[1].0, revision(&results[1].1)), (8, Err(Err(ApiError::LeaseNotFound))));
    assert_eq!(machine.view.term(), 4);

    apply(&mut machine, &[put(9, "c", 0)], true);
    assert_eq!(take(&heard), []);
    assert_eq!(machine.writer.store().revision(), 3);
    assert_eq!(machine.view.counters.puts.load(Ordering::Relaxed), 1, "replayed puts are not counted");
    assert_eq!(machine.applied_index(), 3);
}

#[test]
#[should_panic(expected = "A4")]
fn an_entry_out_of_order_stops_the_machine() {
    let (mut machine, _) = machine(Quota::new(None));
    machine.apply(&Entry { index: 5, term: 1, commands: Vec::new(), replay: false });
}

#[test]
#[should_panic(expected = "A2: log entry 2 holds a command that cannot be applied")]
fn a_command_of_a_later_build_stops_the_machine() {
    let (mut machine, _) = machine(Quota::new(None));
    let mut command = put(7, "a", 0);
    command[1] = 99;
    apply(&mut machine, &[command], true);
}

/// Twenty puts in one entry, estimated at 257 bytes each: the room of four.
#[test]
fn a_put_over_the_quota_is_applied_and_flagged() {
    let limit = view::EMPTY_STORE_BYTES + 4 * 257 + 1;
    let (mut machine, heard) = machine(Quota::new(Some(limit)));
    let keys = ["a", "b", "c", "d", "e", "f"];
    let puts: Vec<_> = (0..6).map(|index| put(index, keys[index as usize], 0)).collect();
    apply(&mut machine, &puts, false);
    let flags: Vec<_> = take(&heard).iter().map(|(_, applied)| applied.over_quota).collect();
    assert_eq!(flags, [false, false, false, false, true, true]);
    assert_eq!(machine.writer.store().revision(), 7, "all were applied");
}

#[test]
fn alarms_are_kept_as_records_and_block_what_they_should() {
    let (mut machine, heard) = machine(Quota::new(None));
    let alarm = |id, action: AlarmAction, kind: AlarmType| {
        let request = AlarmRequest { action: action.into(), member_id: 3, alarm: kind.into() };
        encode(Kind::Alarm, Origin::Client, id, &request)
    };
    apply(&mut machine, &[alarm(1, AlarmAction::Activate, AlarmType::Nospace), put(2, "a", 0)], false);
    assert_eq!(take(&heard)[1].1, Applied::refused(ApiError::NoSpace));
    let kept = [AlarmMember { member_id: 3, alarm: AlarmType::Nospace.into() }];
    assert_eq!(records::alarms(machine.writer.store()), kept);
    assert!(machine.view.has_alarm(AlarmType::Nospace) && !machine.view.has_alarm(AlarmType::Corrupt));
    apply(&mut machine, &[alarm(3, AlarmAction::Activate, AlarmType::Corrupt), put(4, "a", 0)], false);
    assert_eq!(take(&heard)[1].1, Applied::refused(ApiError::Corrupt), "CORRUPT comes before NOSPACE");
    let off = [
        alarm(5, AlarmAction::Deactivate, AlarmType::Corrupt),
        alarm(6, AlarmAction::Deactivate, AlarmType::Nospace),
        put(7, "a", 0),
    ];
    apply(&mut machine, &off, false);
    assert!(take(&heard)[2].1.result.is_ok());
    assert_eq!(records::alarms(machine.writer.store()), []);
}

#[test]
fn a_lease_ends_with_its_keys_and_an_expiry_of_an_older_grant_does_not_end_it() {
    let (mut machine, heard) = machine(Quota::new(None));
    apply(&mut machine, &[grant(1, 7, 60)], false);
    apply(&mut machine, &[put(2, "b", 7), put(3, "a", 7)], false);
    let revoke = encode(Kind::LeaseRevoke, Origin::Client, 4, &LeaseRevokeRequest { id: 7 });
    apply(&mut machine, &[revoke, grant(5, 7, 30)], false);
    assert_eq!(machine.writer.store().revision(), 4, "both keys in one revision");
    take(&heard);
    let old = encode_lease_expiry(6, LeaseExpiry { lease: 7, granted_index: 2 });
    let new = encode_lease_expiry(7, LeaseExpiry { lease: 7, granted_index: 4 });
    apply(&mut machine, &[old, new], false);
    let results = take(&heard);
    assert_eq!(results[0].1, Applied::refused(ApiError::LeaseNotFound));
    assert_eq!(results[1].1.result, Ok(Outcome::LeaseRevoke { revision: 4 }));
    assert_eq!(records::leases(machine.writer.store()), []);
    let granted = |ttl, granted_index| Notice::LeaseGranted { lease: 7, ttl, granted_index };
    let ended = Notice::LeaseEnded { lease: 7 };
    let expected = [granted(60, 2), ended.clone(), granted(30, 4), ended];
    assert_eq!(*heard.notices.lock().unwrap(), expected);
}

/// A1 over what a restart does: a machine that replays the same entries, in other batches, ends in the same state and
/// knows the same leases and alarms.
#[test]
fn the_same_commands_give_the_same_state() {
    let commands = [
        grant(1, 7, 60),
        put(2, "a", 7),
        put(3, "b", 8),
        encode(Kind::Compact, Origin::Client, 4, &pb::CompactionRequest { revision: 2, physical: false }),
        encode(
            Kind::MemberPublish,
            Origin::RootInternal,
            5,
            &Member { id: 3, name: "m".to_owned(), ..Member::default() },
        ),
        grant(6, 9, 60),
    ];
    let (mut first, _) = machine(Quota::new(None));
    let (mut second, _) = machine(Quota::new(Some(1)));
    for command in &commands {
        apply(&mut first, std::slice::from_ref(command), false);
    }
    apply(&mut second, &commands[..1], true);
    for rest in 1..commands.len() {
        apply(&mut second, &commands[rest..rest + 1], true);
    }
    let records = |machine: &Machine| machine.writer.store().system_scan(b"");
    assert_eq!(records(&first), records(&second));
    assert_eq!(first.writer.store().revision(), second.writer.store().revision());
    let member = records::member(first.writer.store(), 3).unwrap();
    assert_eq!((member.name.as_str(), &member.peer_ur_ls[..]), ("m", &["http://a:1".to_owned()][..]));
    assert_eq!(first.leases.iter().collect::<Vec<_>>(), second.leases.iter().collect::<Vec<_>>());
}

#[test]
fn a_rejected_command_is_heard_by_its_proposer() {
    let (mut machine, heard) = machine(Quota::new(None));
    machine.rejected(&put(7, "a", 0), &Rejection::NoSpace);
    assert_eq!(take(&heard), [(7, Applied::refused(ApiError::NoSpace))]);
}

#[test]
fn the_member_table_is_the_genesis_and_what_members_have_said_since() {
    let heard = Arc::new(Heard::default());
    let (_, writer) = StoreWriter::new(StoreOptions::default());
    let notices = Box::new(NoticeList(Arc::clone(&heard.notices)));
    let mut machine =
        Machine::new(writer, Arc::default(), Arc::clone(&heard) as _, notices, Quota::new(None));
    assert_eq!(records::cluster(machine.writer.store()), None);
    assert!(crate::identity::member_table(machine.writer.store()).is_empty());
    let member = |id: u64| Member {
        id,
        name: format!("m{id}"),
        peer_ur_ls: vec![format!("http://a:{id}")],
        ..Member::default()
    };
    let genesis = GenesisState {
        cluster_id: 9,
        feature_level: 1,
        members: vec![member(3), member(4), member(5)],
        restored: None,
    };
    machine.restore(1, 1, &genesis.encode());
    assert_eq!(crate::identity::member_table(machine.writer.store()), genesis.encode());

    let said =
        Member { id: 4, name: "m4".into(), client_ur_ls: vec!["http://c:1".into()], ..Member::default() };
    apply(&mut machine, &[encode(Kind::MemberPublish, Origin::RootInternal, 1, &said)], false);
    let mut expected = genesis.clone();
    expected.members[1].client_ur_ls = vec!["http://c:1".into()];
    let table = crate::identity::member_table(machine.writer.store());
    assert_eq!(GenesisState::decode(&table), Some(expected));

    // Somebody who is no member changes nothing.
    let stranger = Member { id: 6, ..said };
    apply(&mut machine, &[encode(Kind::MemberPublish, Origin::RootInternal, 2, &stranger)], false);
    assert_eq!(take(&heard)[1].1.result, Err(ApiError::MemberNotFound));
    assert_eq!(records::members(machine.writer.store()).len(), 3);
}

fn quota(id: u64, prefix: &str, keys_max: Option<u64>) -> Vec<u8> {
    let quota = command::PrefixQuota { prefix: prefix.as_bytes().to_vec(), keys_max };
    encode(Kind::PrefixQuota, Origin::Client, id, &quota)
}

/// What became of each command: empty for done, else the text of the refusal.
fn texts(heard: &Heard) -> Vec<String> {
    let text = |applied: &Applied| applied.result.as_ref().err().map_or(String::new(), ToString::to_string);
    take(heard).iter().map(|(_, applied)| text(applied)).collect()
}

#[test]
fn a_prefix_takes_keys_up_to_its_quota_and_changes_beyond_it() {
    let (mut machine, heard) = machine(Quota::new(None));
    apply(&mut machine, &[put(1, "p/a", 0), quota(2, "p/", Some(2)), put(3, "p/b", 0)], false);
    assert_eq!(texts(&heard), ["", "", ""]);
    apply(&mut machine, &[put(4, "p/c", 0), put(5, "q/c", 0), put(6, "p/a", 0)], false);
    let full = "sternpost: the quota of keys that begin with \"p/\" is used up: 2 of 2";
    assert_eq!(texts(&heard), [full, "", ""], "other keys and those that exist are taken");
    assert_eq!(machine.view.counters.refused_by_prefix.load(Ordering::Relaxed), 1);
    let uses = machine.view.prefix_quotas();
    let use_of = |keys, keys_max| prefix_quota::PrefixUse { prefix: "p/".into(), keys_max, keys };
    assert_eq!(**uses, [use_of(2, 2)]);

    // A deletion makes room for one; a lower quota takes nothing away.
    let delete = pb::DeleteRangeRequest { key: "p/a".into(), ..Default::default() };
    let delete = encode(Kind::DeleteRange, Origin::Client, 7, &delete);
    apply(&mut machine, &[delete, put(8, "p/c", 0), put(9, "p/d", 0), quota(10, "p/", Some(1))], false);
    assert_eq!(texts(&heard), ["", "", full, ""]);
    assert_eq!(**machine.view.prefix_quotas(), [use_of(2, 1)]);
    apply(&mut machine, &[put(11, "p/b", 0), put(12, "p/e", 0), quota(13, "p/", None)], false);
    assert_eq!(texts(&heard), ["", &full.replace("2 of 2", "2 of 1"), ""]);
    apply(&mut machine, &[put(14, "p/e", 0), quota(15, "p/", None)], false);
    assert_eq!(texts(&heard), ["", "sternpost: this prefix has no quota"]);
    assert!(machine.view.prefix_quotas().is_empty());
}

#[test]
fn a_transaction_beyond_a_quota_is_refused_as_a_whole_and_judged_by_the_branch_it_takes() {
    let (mut machine, heard) = machine(Quota::new(None));
    apply(&mut machine, &[quota(1, "p/", Some(2)), put(2, "p/a", 0)], false);
    take(&heard);
    let op = |key: &str| {
        let put = PutRequest { key: key.to_owned().into(), ..Default::default() };
        pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(put)) }
    };
    let exists = |key: &str| pb::Compare {
        key: key.to_owned().into(),
        target: pb::compare::CompareTarget::Version.into(),
        result: pb::compare::CompareResult::Greater.into(),
        target_union: Some(pb::compare::TargetUnion::Version(0)),
        ..Default::default()
    };
    let txn = |id, txn: pb::TxnRequest| encode(Kind::Txn, Origin::Client, id, &txn);
    let two = vec![op("other"), op("p/b"), op("p/c")];
    let too_many = txn(3, pb::TxnRequest { success: two.clone(), ..Default::default() });
    let other_branch = txn(
        4,
        pb::TxnRequest { compare: vec![exists("p/a")], success: vec![op("p/a"), op("p/b")], failure: two },
    );
    let revision = machine.writer.store().revision();
    apply(&mut machine, &[too_many], false);
    assert!(texts(&heard)[0].ends_with("is used up: 1 of 2"));
    assert_eq!(machine.writer.store().revision(), revision, "nothing of it was done");
    apply(&mut machine, &[other_branch, put(5, "p/d", 0)], false);
    let texts = texts(&heard);
    assert_eq!(texts[0], "");
    assert!(texts[1].ends_with("is used up: 2 of 2"));
}

/// A1: whoever replays refuses what was refused, and counts what is there.
#[test]
fn a_replay_refuses_the_same_commands_for_a_quota() {
    let mut commands = vec![quota(1, "p/", Some(2))];
    commands.extend([put(2, "p/a", 0), put(3, "p/b", 0), put(4, "p/c", 0), quota(5, "p/c", Some(0))]);
    commands.extend([quota(6, "p/", Some(9)), put(7, "p/c", 0), put(8, "p/d", 0)]);
    let (mut first, heard) = machine(Quota::new(None));
    let (mut second, _) = machine(Quota::new(None));
    for command in &commands {
        apply(&mut first, std::slice::from_ref(command), false);
        apply(&mut second, std::slice::from_ref(command), true);
        // As at a start.
        second.load();
    }
    let refused = texts(&heard).iter().filter(|text| !text.is_empty()).count();
    assert_eq!(refused, 2, "p/c, by either quota");
    assert_eq!(first.state_sum(), second.state_sum());
    assert_eq!(**first.view.prefix_quotas(), **second.view.prefix_quotas());
    assert_eq!(first.view.prefix_quotas()[0].keys, 3);
}
